"""Quotes inside the application's own process: for those who were granted the provisioning device, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster_addon import GRANTED
from cluster_jobs import attesting, job
from kubectl import Kubectl
from relying_party import RelyingParty, quote_in

pytestmark = pytest.mark.usefixtures("enabled")
IN_PROC = {"confcom.dev/quote-mode": "in-proc"}


@pytest.mark.promise("M8")
def test_with_a_grant_the_pod_quotes_by_itself(
    run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    spec = attesting(image, "0a")
    spec["containers"][0]["command"][2] = "ls /dev/sgx_provision && " + spec["containers"][0]["command"][2]
    log = run(job("in-proc", GRANTED, spec, annotations=IN_PROC))
    assert "quotes in-proc" in log
    assert "/dev/sgx_provision" in log
    assert relying_party.verify(quote_in(log), "0a")["exit_code"] == 0


@pytest.mark.promise("M8")
@pytest.mark.promise("M10")
@pytest.mark.parametrize("by", ["annotation", "limit"])
def test_without_a_grant_it_is_refused_with_what_to_do(
    cluster: Kubectl, made: Callable[..., Any], image: str, by: str
) -> None:
    spec = attesting(image, "0b")
    if by == "limit":
        spec["containers"][0]["resources"]["limits"]["sgx.intel.com/provision"] = "1"
    made(job("not-granted", "e2e", spec, annotations=IN_PROC if by == "annotation" else None))
    words = ("events", "-n", "e2e", "--field-selector", "involvedObject.name=not-granted,reason=FailedCreate")
    reason = cluster.wait("the refusal", lambda: [event["message"] for event in cluster.items(*words)])[0]
    assert "ask an operator for the grant e2e/default" in reason
    assert "confcom.dev/quote-mode: out-of-proc" in reason


@pytest.mark.promise("M8")
def test_both_modes_in_one_container_are_refused(cluster: Kubectl, made: Callable[..., Any], image: str) -> None:
    spec = attesting(image, "0c", env=[{"name": "SGX_AESM_ADDR", "value": "1"}])
    made(job("both", GRANTED, spec, annotations=IN_PROC))
    words = ("events", "-n", GRANTED, "--field-selector", "involvedObject.name=both,reason=FailedCreate")
    reason = cluster.wait("the refusal", lambda: [event["message"] for event in cluster.items(*words)])[0]
    assert "SGX_AESM_ADDR" in reason
