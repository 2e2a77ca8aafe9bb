"""Where containers get their quotes: opt-ins in three dialects, wiring, grants, contradictions."""

from __future__ import annotations

import copy

import pytest

from confcom.admission.decision import AdmissionContext, decide_debug, decide_pod
from confcom.admission.pod_json import Grants
from confcom.errors import ConfigError
from sgx_pods import AESMD, ENCLAVE, EPC, HELPER, PROVISION, canonical, container, labelled, pod

HERE = AdmissionContext(namespace="apps")
ELSEWHERE = AdmissionContext(namespace="apps", wiring="host-path")
"""Another device plugin, which brings nothing of the helper's."""
GRANTED = AdmissionContext(namespace="apps", grants=Grants.parse("apps/default, other/*"))
VARIABLE = {"name": "SGX_AESM_ADDR", "value": "1"}
VOLUME = {"name": "aesmd-socket", "hostPath": {"path": AESMD, "type": "Directory"}}
MOUNT = {"name": "aesmd-socket", "mountPath": AESMD, "readOnly": True}
OUT = {"confcom.dev/quote-mode": "out-of-proc"}
IN = {"confcom.dev/quote-mode": "in-proc"}


def sgx(name: str = "app", **more: object) -> dict:
    return container(name, {EPC: "10", ENCLAVE: "1"}, **more)


def codes(decision) -> list[str]:
    return [finding.code for finding in decision.refusals]


WAYS_TO_SAY_IT = pytest.mark.parametrize(
    ("annotations", "env"),
    [
        (OUT, None),
        ({"sgx.intel.com/quote-provider": "aesmd"}, None),
        ({"quote-mode.confcom.dev/app": "out-of-proc"}, None),
        (None, [{"name": "A", "value": "b"}, VARIABLE]),
        (None, [{"name": "SGX_AESM_ADDR", "value": "0"}]),
        (None, [{"name": "SGX_AESM_ADDR", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]),
        (OUT, [VARIABLE]),
    ],
)


@pytest.mark.promise("M9")
@WAYS_TO_SAY_IT
def test_out_of_proc_is_wired_whichever_way_it_is_said(annotations: dict | None, env: list | None) -> None:
    given = pod(sgx(**({} if env is None else {"env": env})), annotations=annotations)

    decision = decide_pod(given, HERE)

    assert not decision.refusals
    # Nothing that Pod Security forbids: neither volume nor mount.
    assert decision.pod["spec"].keys() == given["spec"].keys()
    (found,) = decision.pod["spec"]["containers"]
    assert found.keys() == given["spec"]["containers"][0].keys() | {"env"}
    assert found["resources"] == canonical(10, helper=True)
    assert found["env"] == (env or [VARIABLE])


@WAYS_TO_SAY_IT
def test_where_another_plugin_is_a_volume_of_the_host_does_it(annotations: dict | None, env: list | None) -> None:
    given = pod(sgx(**({} if env is None else {"env": env})), annotations=annotations)

    decision = decide_pod(given, ELSEWHERE)

    assert not decision.refusals
    assert decision.pod["spec"]["containers"][0]["resources"] == canonical(10)
    found = decision.pod["spec"]
    assert found["volumes"] == [VOLUME]
    assert found["containers"][0]["volumeMounts"] == [MOUNT]
    assert found["containers"][0]["env"] == (env or [VARIABLE])


@pytest.mark.promise("M8")
def test_only_sgx_containers_are_wired_by_an_annotation_of_the_pod() -> None:
    given = pod(sgx("a"), container("plain"), annotations=OUT, initContainers=[sgx("i"), container("j")])
    spec = decide_pod(given, HERE).pod["spec"]
    containers = spec["containers"] + spec["initContainers"]
    assert [one["name"] for one in containers if "env" in one] == ["a", "i"]
    assert [one["name"] for one in containers if HELPER in one["resources"].get("limits", {})] == ["a", "i"]


def test_the_resource_alone_says_it_as_well() -> None:
    given = pod(container(limits={EPC: "10", ENCLAVE: "1", HELPER: "1"}))
    for context in (HERE, ELSEWHERE):
        decision = decide_pod(given, context)
        assert decision.pod["spec"] == given["spec"] | {
            "containers": [given["spec"]["containers"][0] | {"env": [VARIABLE]}]
        }


def test_a_container_with_a_claim_is_brought_to_the_helper_by_the_resource() -> None:
    claims = [{"name": "epc"}]
    given = pod(container(resources={"claims": claims}), annotations=OUT, resourceClaims=[{"name": "epc"}])
    decision = decide_pod(given, HERE)
    assert not decision.refusals + decision.warnings
    found = {"claims": claims, "limits": {HELPER: "1"}, "requests": {HELPER: "1"}}
    assert decision.pod["spec"]["containers"][0]["resources"] == found


def test_what_the_pod_mounts_itself_is_left_alone() -> None:
    """The source pages' Job, which mounts the folder by hand."""
    mount = {"name": "var-run-aesmd", "mountPath": AESMD}
    volume = {"name": "var-run-aesmd", "hostPath": {"path": AESMD}}
    given = labelled(pod(sgx(env=[VARIABLE], volumeMounts=[mount]), volumes=[volume]))
    assert decide_pod(given, HERE).pod is given
    assert decide_pod(given, ELSEWHERE).pod is given


def test_a_volume_of_the_folder_is_used_by_its_name() -> None:
    volume = {"name": "sock", "hostPath": {"path": "/run/aesmd/"}}
    spec = decide_pod(pod(sgx(), annotations=OUT, volumes=[volume]), ELSEWHERE).pod["spec"]
    assert spec["volumes"] == [volume]
    assert spec["containers"][0]["volumeMounts"] == [MOUNT | {"name": "sock"}]


def test_a_name_that_is_taken_is_not_taken_twice() -> None:
    taken = [{"name": "aesmd-socket", "emptyDir": {}}, {"name": "aesmd-socket-2", "hostPath": {"path": "/x"}}]
    spec = decide_pod(pod(sgx(), annotations=OUT, volumes=taken), ELSEWHERE).pod["spec"]
    assert [volume["name"] for volume in spec["volumes"]] == ["aesmd-socket", "aesmd-socket-2", "aesmd-socket-3"]
    assert spec["containers"][0]["volumeMounts"][0]["name"] == "aesmd-socket-3"


def test_a_mount_of_the_socket_itself_is_warned_of() -> None:
    mount = {"name": "s", "mountPath": f"{AESMD}/aesm.socket"}
    volume = {"name": "s", "hostPath": {"path": f"{AESMD}/aesm.socket"}}
    decision = decide_pod(pod(sgx(env=[VARIABLE], volumeMounts=[mount]), volumes=[volume]), HERE)
    assert [warning.code for warning in decision.warnings] == ["socket-mounted"]


def test_the_variable_without_epc_is_wired_and_warned_of() -> None:
    decision = decide_pod(pod(container(env=[VARIABLE])), HERE)
    assert [warning.code for warning in decision.warnings] == ["variable-without-epc"]
    assert decision.pod["spec"]["containers"][0]["resources"] == {"limits": {HELPER: "1"}, "requests": {HELPER: "1"}}
    decision = decide_pod(pod(container(env=[VARIABLE])), ELSEWHERE)
    assert decision.pod["spec"]["volumes"] == [VOLUME]


@pytest.mark.complaint("azure-docs #93869", "gsc #99")
def test_without_the_helper_there_is_a_warning() -> None:
    """azure-docs 93869: an empty folder, because nobody had said that the helper must be enabled."""
    decision = decide_pod(pod(sgx(), annotations=OUT), AdmissionContext(namespace="apps", helper=False))
    assert "--enable-sgxquotehelper" in decision.warnings[0].sentence
    assert len(decision.warnings[0].sentence) <= 256


@pytest.mark.complaint("azure-docs #93869", "gsc #99")
def test_the_source_pages_job_is_warned_of_a_folder_that_is_empty() -> None:
    mount = {"name": "var-run-aesmd", "mountPath": AESMD}
    without = AdmissionContext(namespace="apps", helper=False)
    for volume, codes in (({"hostPath": {"path": AESMD}}, ["folder-empty"]), ({"emptyDir": {}}, [])):
        given = pod(sgx(env=[VARIABLE], volumeMounts=[mount]), volumes=[{"name": "var-run-aesmd"} | volume])
        decision = decide_pod(given, without)
        assert [warning.code for warning in decision.warnings] == codes
        assert all(len(warning.sentence) <= 256 for warning in decision.warnings)


@pytest.mark.promise("M3")
@pytest.mark.parametrize(
    "annotations", [IN, {"sgx.intel.com/quote-provider": "app"}, {"quote-mode.confcom.dev/app": "in-proc"}]
)
def test_in_proc_brings_the_provisioning_device_to_those_who_may_hold_it(annotations: dict) -> None:
    given = pod(sgx(), annotations=annotations)
    assert decide_pod(given, GRANTED).pod["spec"]["containers"][0]["resources"] == canonical(10, provision=True)
    refused = decide_pod(given, HERE)
    assert codes(refused) == ["provision-not-granted"]
    assert "ask an operator for the grant apps/default" in refused.refusals[0].sentence


def test_a_plain_request_of_the_provisioning_device_needs_the_grant_too() -> None:
    given = labelled(pod(container(limits={EPC: "10", ENCLAVE: "1", PROVISION: "1"})))
    assert codes(decide_pod(given, HERE)) == ["provision-not-granted"]
    assert decide_pod(given, GRANTED).pod is given


def test_a_grant_is_for_its_service_account() -> None:
    given = pod(container(limits={EPC: "10", PROVISION: "1"}), serviceAccountName="other")
    assert codes(decide_pod(given, GRANTED)) == ["provision-not-granted"]
    elsewhere = AdmissionContext(namespace="other", grants=GRANTED.grants)
    assert not decide_pod(given, elsewhere).refusals
    # The field's former name, which manifests may still have alone.
    for account, former, refused in (("", "default", False), ("", "other", True), ("other", "default", True)):
        written = pod(given["spec"]["containers"][0], serviceAccountName=account, serviceAccount=former)
        assert bool(decide_pod(written, GRANTED).refusals) is refused
    with pytest.raises(ConfigError, match="no grant"):
        Grants.parse("apps")


@pytest.mark.promise("M8")
@pytest.mark.parametrize(
    "given",
    [
        pod(sgx(env=[VARIABLE]), annotations=IN),
        pod(sgx(env=[VARIABLE]), annotations={"sgx.intel.com/quote-provider": "app"}),
        pod(container(limits={EPC: "10", PROVISION: "1"}), annotations=OUT),
        pod(container(limits={EPC: "10", PROVISION: "1"}, env=[VARIABLE])),
        pod(sgx(), annotations={"quote-mode.confcom.dev/app": "out-of-proc", "sgx.intel.com/quote-provider": "app"}),
        pod(container(limits={EPC: "10", HELPER: "1"}), annotations=IN),
        pod(container(limits={EPC: "10", HELPER: "1", PROVISION: "1"})),
    ],
)
def test_both_modes_in_one_container_are_refused(given: dict) -> None:
    decision = decide_pod(given, GRANTED)
    assert codes(decision) == ["both-modes"]
    assert decision.refusals[0].sentence.endswith("An application uses one of them: remove the other.")


def test_containers_of_one_pod_may_differ() -> None:
    given = pod(sgx("a"), sgx("b"), annotations=OUT | {"quote-mode.confcom.dev/b": "in-proc"})
    first, second = decide_pod(given, GRANTED).pod["spec"]["containers"]
    assert first["resources"] == canonical(10, helper=True)
    assert second["resources"] == canonical(10, provision=True)


@pytest.mark.parametrize(
    ("annotations", "code"),
    [
        ({"confcom.dev/quote-mode": "helper"}, "unknown-mode"),
        ({"quote-mode.confcom.dev/app": ""}, "unknown-mode"),
        ({"quote-mode.confcom.dev/ap": "in-proc"}, "unknown-container"),
        ({"sgx.intel.com/quote-provider": "ap"}, "unknown-container"),
        (IN | {"sgx.intel.com/quote-provider": "aesmd"}, "modes-differ"),
    ],
)
def test_annotations_that_cannot_be_meant_are_refused(annotations: dict, code: str) -> None:
    assert codes(decide_pod(pod(sgx(), annotations=annotations), GRANTED))[0] == code


@pytest.mark.parametrize("annotations", [OUT, IN, {"quote-mode.confcom.dev/app": "out-of-proc"}])
def test_an_annotation_without_epc_is_refused(annotations: dict) -> None:
    """intel 1695: what is to use SGX is never created without its device."""
    assert codes(decide_pod(pod(annotations=annotations), GRANTED))[0] == "mode-without-epc"


def test_a_pod_with_a_service_of_its_own_is_told_so() -> None:
    given = pod(sgx(), sgx("aesmd"), annotations={"sgx.intel.com/quote-provider": "aesmd"})
    assert codes(decide_pod(given, GRANTED)) == ["own-aesmd"]


def test_a_blank_in_an_image_is_refused_where_sgx_is_used() -> None:
    """The source pages' `oeciteam/sgx-test: 1.0`."""
    decision = decide_pod(pod(sgx(image="oeciteam/sgx-test: 1.0")), HERE)
    assert decision.refusals[0].sentence.endswith("Write oeciteam/sgx-test:1.0.")
    assert not decide_pod(pod(container(image="x: 1")), HERE).refusals


class TestDebug:
    def debugged(self, given: AdmissionContext = ELSEWHERE, **more: object) -> tuple[dict, dict]:
        """A wired pod, and the same with an ephemeral container."""
        former = decide_pod(pod(sgx(), annotations=OUT), given).pod
        after = copy.deepcopy(former)
        after["spec"]["ephemeralContainers"] = [{"name": "debugger", "image": "busybox"} | more]
        return after, former

    @pytest.mark.parametrize("given", [HERE, ELSEWHERE])
    def test_the_variable_gets_an_ephemeral_container_the_folder_where_the_pod_has_a_volume(
        self, given: AdmissionContext
    ) -> None:
        after, former = self.debugged(env=[VARIABLE])
        decision = decide_debug(after, former, given)
        assert not decision.refusals
        assert decision.pod["spec"]["ephemeralContainers"][0]["volumeMounts"] == [MOUNT]
        assert decision.pod["spec"] == after["spec"] | {
            "ephemeralContainers": decision.pod["spec"]["ephemeralContainers"]
        }
        assert decide_debug(decision.pod, former, given).pod is decision.pod

    def test_one_without_anything_is_left_alone(self) -> None:
        after, former = self.debugged(HERE)
        assert decide_debug(after, former, HERE).pod is after

    def test_one_that_is_there_already_is_left_alone(self) -> None:
        after, _ = self.debugged(env=[VARIABLE])
        assert decide_debug(after, after, HERE).pod is after

    def test_without_a_volume_it_is_refused(self) -> None:
        """It can request nothing, and what the pod's other containers were brought is not its own."""
        after, former = self.debugged(HERE, env=[VARIABLE])
        refused = decide_debug(after, former, HERE)
        assert codes(refused) == ["debug-volume"]
        assert "--copy-to" in refused.refusals[0].sentence

    @pytest.mark.parametrize("resource", [EPC, HELPER])
    def test_resources_are_refused(self, resource: str) -> None:
        after, former = self.debugged(resources={"limits": {resource: "10"}})
        assert codes(decide_debug(after, former, HERE)) == ["debug-resources"]
