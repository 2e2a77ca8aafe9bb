"""AdmissionReview: what is read of it, what is answered, and what is not taken for one."""

from __future__ import annotations

import base64
import json

import pytest

from confcom.errors import FormatError
from confcom.protocols.admission import (
    DEBUG_CONDITION,
    MAX_REVIEW,
    POD_CONDITION,
    SGX_RESOURCES,
    ServiceClient,
    allowance,
    mutating_webhooks,
    parse_object,
    parse_review,
    refusal,
    validating_webhooks,
)


def a_review(**request: object) -> bytes:
    wanted = {"uid": "u", "operation": "CREATE", "object": {"kind": "Pod"}} | request
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": wanted}).encode()


def test_a_review_is_read_with_its_object_as_it_came() -> None:
    pod = {"kind": "Pod", "of the future": {"a": [1.5, None]}}
    found = parse_review(a_review(object=pod, subResource="ephemeralcontainers", oldObject={}, unknown=1, dryRun=True))
    assert parse_object(found.object) == pod | {"of the future": {"a": ["1.5", None]}}
    assert parse_object(found.old_object) == {}
    assert (found.sub_resource, found.namespace, found.dry_run) == ("ephemeralcontainers", "", True)


def test_an_object_that_is_not_there_is_empty() -> None:
    found = parse_review(a_review(object=None))
    assert (parse_object(found.object), parse_object(found.old_object)) == ({}, {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        a_review(object=[]),
        a_review(uid=1),
        a_review().replace(b"/v1", b"/v1beta1"),
        a_review().replace(b"AdmissionReview", b"ConversionReview"),
        b'{"apiVersion":' + b"[" * 100_000,
        a_review() + b" " * MAX_REVIEW,
        a_review(object={"a": 1}).replace(b": 1}", b": 1" + b"0" * 10_000 + b"}"),
    ],
)
def test_anything_else_is_no_review(data: bytes) -> None:
    with pytest.raises(FormatError, match="AdmissionReview"):
        parse_object(parse_review(data).object)


def test_answers_are_what_the_api_server_reads() -> None:
    patch = [{"op": "add", "path": "/a~1b", "value": "ä"}]
    answer = json.loads(allowance("u", patch=patch, warnings=["w" * 300]))
    assert answer["response"] == {
        "uid": "u",
        "allowed": True,
        "patchType": "JSONPatch",
        "patch": base64.b64encode(json.dumps(patch, ensure_ascii=False, separators=(",", ":")).encode()).decode(),
        "warnings": ["w" * 256],
    }
    assert json.loads(allowance("u"))["response"] == {"uid": "u", "allowed": True}
    refused = json.loads(refusal("u", "no", status=403, reason="Forbidden"))["response"]
    assert refused == {"uid": "u", "allowed": False, "status": {"code": 403, "reason": "Forbidden", "message": "no"}}


@pytest.mark.promise("M1")
def test_the_api_server_asks_about_sgx_pods_alone_and_never_lets_them_through_unasked() -> None:
    for entries in (mutating_webhooks(ServiceClient()), validating_webhooks(ServiceClient())):
        assert [entry["rules"][0]["resources"] for entry in entries] == [["pods"], ["pods/ephemeralcontainers"]]
        for entry in entries:
            assert entry["failurePolicy"] == "Fail"
            assert entry["sideEffects"] == "None"
            (condition,) = entry["matchConditions"]
            assert condition["expression"] in (POD_CONDITION, DEBUG_CONDITION)
            assert "caBundle" not in entry["clientConfig"]
    assert 'name.contains("sgx")' in POD_CONDITION
    # What the mutating one labels is all that the validating one is asked about: one evaluation for an ordinary pod.
    made, debugged = validating_webhooks(ServiceClient())
    assert made["objectSelector"] == {"matchLabels": {"confcom.dev/uses-sgx": "true"}}
    assert all("objectSelector" not in entry for entry in (debugged, *mutating_webhooks(ServiceClient())))
    assert all("sgx" in name for name in SGX_RESOURCES)
    (pods, _) = mutating_webhooks(ServiceClient(), ca_bundle=b"pem")
    assert pods["clientConfig"]["caBundle"] == base64.b64encode(b"pem").decode()
    assert pods["reinvocationPolicy"] == "IfNeeded"
