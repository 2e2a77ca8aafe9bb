"""What a decision costs: linear in the pod, whatever the pod has many of, and bounded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from confcom.admission.decision import MOST, AdmissionContext, Decision, decide_debug, decide_pod
from confcom.errors import FormatError
from confcom.protocols.admission import MAX_UID, difference, has_more_values, parse_review
from confcom.services.webhook.webhook import review
from sgx_pods import AESMD, EPC, HELPER, INTEL, PROVISION, container, pod

HERE = AdmissionContext(namespace="apps", largest_node=168, helper=False)
ASKS = {"name": "SGX_AESM_ADDR", "value": "1"}


class Counted(str):
    """Text of which each comparison is a call, so that a search through a list counts for what it is."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)  # type: ignore[arg-type]

    def __hash__(self) -> int:
        return str.__hash__(self)


def counted(value: Any) -> Any:
    if isinstance(value, dict):
        return {Counted(name): counted(member) for name, member in value.items()}
    if isinstance(value, list):
        return [counted(element) for element in value]
    return Counted(value) if isinstance(value, str) else value


def calls(decide: Callable[[], Decision], given: Any) -> int:
    """Calls, of Python and of C, that a decision and its patch take."""
    count = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        difference(given, decide().pod)
    finally:
        sys.setprofile(None)
    return count


def many(form: str, make: Callable[[int], Any], count: int) -> list[Any]:
    return [make(number) | {"name": f"{form}{number}"} for number in range(count)]


MANY: dict[str, Callable[[int], Any]] = {
    "volumes named as ours": lambda n: pod(
        container(limits={INTEL: "10Mi"}, env=[ASKS]),
        volumes=[{"name": "aesmd-socket"}, *many("aesmd-socket-", lambda _: {"emptyDir": {}}, n)],
    ),
    "volumes of the folder": lambda n: pod(
        container(limits={INTEL: "10Mi"}, env=[ASKS]),
        volumes=many("v", lambda _: {"hostPath": {"path": f"/x/../{AESMD}"}}, n),
    ),
    "containers": lambda n: pod(*many("c", lambda _: container(limits={INTEL: "10Mi"}, env=[ASKS]), n // 10)),
    "containers that ask for the device": lambda n: pod(
        *many("c", lambda _: container(limits={INTEL: "10Mi", PROVISION: "1"}), n // 10)
    ),
    "containers with an annotation each": lambda n: pod(
        *many("c", lambda _: container(limits={INTEL: "10Mi"}), n // 10),
        annotations={f"quote-mode.confcom.dev/c{number}": "out-of-proc" for number in range(n // 10)},
    ),
    "annotations about no container": lambda n: pod(
        *many("c", lambda _: container(limits={INTEL: "10Mi"}), n // 10),
        annotations={f"quote-mode.confcom.dev/x{number}": "out-of-proc" for number in range(n)},
    ),
    "containers of one name": lambda n: pod(
        *(container("c", limits={INTEL: "10Mi"}) for _ in range(n // 10)),
        annotations={"quote-mode.confcom.dev/c": "out-of-proc", "sgx.intel.com/quote-provider": "c"},
    ),
    "variables": lambda n: pod(container(limits={INTEL: "10Mi"}, env=[*many("A", lambda _: {"value": "1"}, n), ASKS])),
    "mounts": lambda n: pod(
        container(limits={INTEL: "1Mi"}, env=[ASKS], volumeMounts=many("v", lambda _: {"mountPath": "/run/aesmd/x"}, n))
    ),
    "mounts in containers": lambda n: pod(
        *many("c", lambda _: container(env=[ASKS], volumeMounts=[{"name": "v", "mountPath": AESMD}] * 10), n // 10)
    ),
    "resources": lambda n: pod(container(limits={INTEL: "10Mi"} | {f"a.b/x{number}": "1" for number in range(n)})),
    "labels": lambda n: (
        pod(container(limits={INTEL: "10Mi"}))
        | {"metadata": {"name": "p", "labels": {f"l{number}": "x" for number in range(n)}}}
    ),
    "mistakes": lambda n: pod(*many("c", lambda _: container(limits={EPC: "10Mi"}, image="a b"), n // 10)),
    "sidecars and init containers": lambda n: pod(
        container(),
        initContainers=many("i", lambda _: container(limits={INTEL: "10Mi"}, restartPolicy="Always"), n // 10),
    ),
}


@pytest.mark.parametrize("what", MANY)
@pytest.mark.parametrize("wiring", ["plugin", "host-path"])
def test_twice_as_much_takes_at_most_twice_as_long(what: str, wiring: Any) -> None:
    given = AdmissionContext(namespace="apps", largest_node=168, helper=False, wiring=wiring)
    small, large = counted(MANY[what](500)), counted(MANY[what](1000))
    base = calls(lambda: decide_pod(small, given), small)
    assert calls(lambda: decide_pod(large, given), large) <= 2.3 * base


def test_ephemeral_containers_take_no_longer_either() -> None:
    def added(count: int) -> Any:
        return counted(pod(ephemeralContainers=many("d", lambda _: container(env=[ASKS]), count)))

    former = counted(pod())
    small, large = added(50), added(100)
    base = calls(lambda: decide_debug(small, former, HERE), small)
    assert calls(lambda: decide_debug(large, former, HERE), large) <= 2.3 * base


TOO_MANY: dict[str, Callable[[int], Any]] = {
    "containers": lambda n: pod(*many("c", lambda _: container(limits={EPC: "1"}), n)),
    "volumes": lambda n: pod(container(limits={EPC: "1"}), volumes=many("v", lambda _: {}, n)),
    "environment variables": lambda n: pod(container(limits={EPC: "1"}, env=many("A", lambda _: {}, n))),
    "volume mounts": lambda n: pod(
        container(limits={EPC: "1"}, volumeMounts=many("v", lambda _: {"mountPath": "/x"}, n))
    ),
    "annotations": lambda n: pod(container(limits={EPC: "1"}), annotations={f"a{number}": "" for number in range(n)}),
}


@pytest.mark.parametrize("things", TOO_MANY)
def test_what_there_is_too_much_of_is_counted_in_the_refusal(things: str) -> None:
    most = MOST[things]
    assert not decide_pod(TOO_MANY[things](most), HERE).refusals
    (found,) = decide_pod(TOO_MANY[things](most + 1), HERE).refusals
    assert found.code == "too-many"
    assert found.sentence.startswith(f"The pod has {most + 1} {things}, and a pod that uses SGX has at most {most}.")


def body(thing: Any, **more: Any) -> bytes:
    request = {"uid": "7", "operation": "CREATE", "namespace": "apps", "object": thing} | more
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


@pytest.mark.parametrize(
    "thing",
    [
        pod(container(limits={EPC: "1"}), volumes=many("v", lambda _: {"emptyDir": {}}, 30_000)),
        pod(container(limits={EPC: "1"}, env=many("A", lambda _: {"value": "x"}, 70_000))),
        {"x": [[]] * 1_000_000},
        {"x": [{"a": {}}] * 100_000},
    ],
)
def test_values_are_counted_before_they_are_made(thing: Any) -> None:
    """0.9 MB with 30,000 volumes held the only event loop for 16 s."""
    answer, event = review(body(thing), "mutate", lambda _: HERE)
    assert event.refusals == ("too-many",)
    message = json.loads(answer)["response"]["status"]["message"]
    assert "The pod has more than 65536 values, and a pod that uses SGX has at most 65536. " in message


def test_what_texts_say_is_not_counted() -> None:
    """An annotation with 65,000 commas, such as a configuration in JSON, was taken for as many values."""
    thing = pod(container(limits={EPC: "1"}), annotations={"a": '\\",[{\\\\"' * 20_000})
    _, event = review(body(thing), "mutate", lambda _: HERE)
    assert event.outcome == "patched"


@pytest.mark.parametrize(("count", "too_many"), [(65_536, False), (65_537, True)])
def test_values_are_counted_exactly(count: int, too_many: bool) -> None:
    thing = json.dumps(['",[{\\', *[0] * (count - 1)]).encode()  # the bracket is one value, each comma another
    assert has_more_values(msgspec.Raw(thing)) is too_many


def test_numbers_with_exponents_are_not_computed() -> None:
    """20 µs each; the API server writes amounts as text, so what they would be is of no interest."""
    limits = {EPC: "1"} | {f"a.b/x{number}": 1.5e300 for number in range(1000)}
    _, event = review(body(pod(container(limits=limits))), "mutate", lambda _: HERE)
    assert event.outcome == "patched"


def test_a_long_uid_is_not_repeated() -> None:
    assert parse_review(body(pod(), uid="7" * MAX_UID)).uid == "7" * MAX_UID
    with pytest.raises(FormatError, match="length <= 64"):
        parse_review(body(pod(), uid="7" * 8_000_000))


def test_the_largest_answer_is_small() -> None:
    """Most containers that a pod may have, each with everything to change: what clients that do not read hold up."""
    limits = {INTEL: "10Mi", "alibabacloud.com/sgx_epc_MiB": "10", HELPER: "2"}
    thing = pod(*many("c", lambda _: container(limits=limits, env=[]), MOST["containers"]))
    answer, event = review(body(thing), "mutate", lambda _: AdmissionContext(namespace="apps"))
    assert event.outcome == "patched"
    assert len(answer) < 400_000
