"""custom.metrics.k8s.io: paths as HPA sends them, label selectors, quantities, pods and their owners."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.errors import FormatError
from confcom.protocols.custom_metrics import (
    ALL,
    PATH,
    FrontProxy,
    MetricRequest,
    Value,
    failure,
    parse_front_proxy,
    parse_request,
    parse_scaled_pod,
    parse_selector,
    quantity,
    resource_list,
    value_list,
)
from epc_api import make_pod


def asked(path: str, query: str = "") -> MetricRequest | None:
    return parse_request(f"{PATH}{path}".encode(), query.encode())


def test_hpa_sends_the_star_in_percent_encoding() -> None:
    found = asked("/namespaces/shop/pods/%2A/sgx_epc_used_ratio", "labelSelector=app%3Dweb")
    assert found is not None
    assert found[:4] == ("shop", "pods", ALL, "sgx_epc_used_ratio")
    assert [one.key for one in found.selector] == ["app"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/namespaces/shop/pods/web-1/m", ("shop", "pods", "web-1", "m")),
        ("/namespaces/shop/deployments.apps/web/m", ("shop", "deployments.apps", "web", "m")),
        ("/namespaces/shop/metrics/m", ("shop", "namespaces", "shop", "m")),
        ("/namespaces/shop/pods/a%2Fb/m", ("shop", "pods", "a/b", "m")),
    ],
)
def test_paths(path: str, expected: tuple[str, ...]) -> None:
    found = asked(path)
    assert found is not None
    assert found[:4] == expected


@pytest.mark.parametrize("path", ["", "/", "/namespaces", "/namespaces/a/pods/b", "/namespaces/a/pods/b/c/d", "/x/y/z"])
def test_other_paths_are_none(path: str) -> None:
    assert asked(path) is None
    assert parse_request(b"/apis/custom.metrics.k8s.io/v1beta1/namespaces/a/pods/b/c", b"") is None


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("labelSelector=a%3D1&labelSelector=b%3D2", "twice"),
        ("metricLabelSelector=a%3D1", "have none"),
        ("labelSelector=%3D%3D", "cannot read"),
        ("labelSelector=" + "a," * 40 + "a", "more than 32 parts"),
        ("x=" + "y" * 8192, "longer"),
        ("&".join(f"p{number}=1" for number in range(17)), "16 parameters"),
    ],
)
def test_queries_that_cannot_be_answered_as_they_are_meant(query: str, word: str) -> None:
    with pytest.raises(FormatError, match=word):
        asked("/namespaces/a/pods/%2A/m", query)


def test_an_object_takes_no_selector_of_pods() -> None:
    with pytest.raises(FormatError, match=r"ask for pods/\*"):
        asked("/namespaces/a/deployments.apps/web/m", "labelSelector=a%3D1")
    assert asked("/namespaces/a/deployments.apps/web/m", "labelSelector=&metricLabelSelector=") is not None


LABELS = {"app": "web", "tier": "", "n": "7", "example.com/x": "y", "in": "out"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("  ", True),
        ("app=web", True),
        (" app == web ", True),
        ("app=web,tier=", True),
        ("app=other", False),
        ("app!=web", False),
        ("absent!=web", True),
        ("absent=", False),
        ("app in (a, web)", True),
        ("app in ( \n web\t)", True),
        ("tier in ()", True),
        ("app in (a,b),n=7", False),
        ("app notin (a,b)", True),
        ("absent notin (a)", True),
        ("tier", True),
        ("absent", False),
        ("!absent", True),
        ("! app", False),
        ("n>6", True),
        ("n < 7", False),
        ("app>1", False),
        ("example.com/x=y", True),
        ("in in (out)", True),
        ("in", True),
    ],
)
def test_selectors_as_kubernetes_decides(text: str, expected: bool) -> None:
    assert all(one.matches(LABELS) for one in parse_selector(text)) is expected


@pytest.mark.parametrize(
    "text",
    [
        "=",
        "a=b,",
        ",a",
        "a b",
        "a=b c",
        "a in b",
        "a in (b",
        "a in (b c)",
        "a notin (x,b\nc)",
        "a=(b)",
        "a>b",
        "!",
        "-a",
        "a=b;c",
    ],
)
def test_selectors_that_are_none(text: str) -> None:
    with pytest.raises(FormatError):
        parse_selector(text)


@given(st.text(max_size=300), st.binary(max_size=200))
def test_any_text_is_a_request_or_a_format_error(text: str, raw: bytes) -> None:
    for call in (
        lambda: parse_selector(text),
        lambda: parse_request(raw, text.encode(errors="replace")),
        lambda: parse_request(PATH.encode() + b"/namespaces/a/pods/*/m", b"labelSelector=" + raw),
    ):
        with suppress(FormatError):
            call()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.4, "1400m"), (0.1, "100m"), (0.3, "300m"), (1 / 3, "334m"), (2 << 40, str(2 << 40)), (2.0, "2")],
)
def test_quantities_are_rounded_up_to_thousandths(value: float, text: str) -> None:
    assert quantity(value) == text


def test_values_as_hpa_reads_them() -> None:
    request = MetricRequest("shop", "pods", ALL, "m")
    found = json.loads(value_list(request, [Value("web-1", 1.4, "2026-11-29T10:00:00Z", 60)]))
    assert found == {
        "kind": "MetricValueList",
        "apiVersion": "custom.metrics.k8s.io/v1beta2",
        "metadata": {},
        "items": [
            {
                "describedObject": {"kind": "Pod", "namespace": "shop", "name": "web-1", "apiVersion": "v1"},
                "metric": {"name": "m", "selector": None},
                "timestamp": "2026-11-29T10:00:00Z",
                "windowSeconds": 60,
                "value": "1400m",
            }
        ],
    }
    of_namespace = json.loads(value_list(MetricRequest("shop", "namespaces", "shop", "m"), [Value("shop", 1, "t")]))
    assert of_namespace["items"][0]["describedObject"] == {"kind": "Namespace", "name": "shop", "apiVersion": "v1"}


def test_discovery_names_every_metric_of_every_resource() -> None:
    found = json.loads(resource_list(["m"]))
    assert found["groupVersion"] == "custom.metrics.k8s.io/v1beta2"
    assert {"pods/m", "deployments.apps/m", "namespaces/m"} <= {one["name"] for one in found["resources"]}
    assert json.loads(failure(503, "why"))["reason"] == "ServiceUnavailable"


def owned(kind: str, name: str, *, api: str = "apps/v1", labels: dict[str, str] | None = None, **more: Any) -> Any:
    pod = make_pod("web-1", labels=labels or {}, mib=10)
    reference = {"apiVersion": api, "kind": kind, "name": name, "uid": "u", "controller": True} | more
    pod["metadata"]["ownerReferences"] = [reference]
    pod["status"]["podIP"] = "10.0.0.7"
    return parse_scaled_pod(pod)


def test_the_deployment_above_a_replica_set() -> None:
    found = owned("ReplicaSet", "web-5d4f", labels={"pod-template-hash": "5d4f"})
    assert found.owners == {("replicasets.apps", "web-5d4f"), ("deployments.apps", "web")}
    assert (found.address, found.runs, found.requests, found.finished) == ("10.0.0.7", True, True, False)
    assert owned("ReplicaSet", "web-5d4f").owners == {("replicasets.apps", "web-5d4f")}
    assert owned("ReplicaSet", "web-5d4f", labels={"pod-template-hash": ""}).owners == {
        ("replicasets.apps", "web-5d4f")
    }


@pytest.mark.parametrize(
    ("ready", "runs"),
    [
        ({"status": "True"}, True),
        ({"status": "False", "reason": "ContainersNotReady"}, True),
        ({"status": "False"}, False),
    ],
)
def test_a_pod_of_a_lost_node_is_one_that_is_unready_without_a_reason(ready: dict[str, str], runs: bool) -> None:
    """So the node's controller marks it; the kubelet gives its reason."""
    pod = make_pod("web-1")
    pod["status"]["conditions"] = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready"} | ready]
    assert parse_scaled_pod(pod).runs is runs


def test_amounts_and_claims_are_told_apart() -> None:
    claiming = make_pod("web-1")
    claiming["spec"]["resourceClaims"] = [{"name": "any", "resourceClaimName": "some"}]
    claiming["spec"]["containers"][0]["resources"] = {"claims": [{"name": "any"}]}
    found = [parse_scaled_pod(one) for one in (make_pod("web-1", mib=1), claiming, make_pod("web-1"))]
    assert [(one.requests, one.claims) for one in found] == [(True, False), (False, True), (False, False)]


def test_other_owners() -> None:
    assert owned("StatefulSet", "db").owners == {("statefulsets.apps", "db")}
    assert owned("Job", "once", api="batch/v1").owners == {("jobs.batch", "once")}
    assert owned("StatefulSet", "db", controller=False).owners == frozenset()
    assert owned("Rollout", "x", api="argoproj.io/v1alpha1").owners == frozenset()


def test_whom_the_api_server_says_is_its_front_proxy() -> None:
    data = {"requestheader-client-ca-file": "PEM", "requestheader-allowed-names": '["front-proxy-client"]'}
    found = parse_front_proxy(data)
    assert found == FrontProxy(b"PEM", frozenset({"front-proxy-client"}))
    assert found.accepts("front-proxy-client")
    assert not found.accepts("admin")
    assert not found.accepts(None)
    anybody = parse_front_proxy(data | {"requestheader-allowed-names": "[]"})
    assert anybody.accepts("other")
    assert not anybody.accepts(None)
    for broken in ({}, {"requestheader-client-ca-file": " "}, data | {"requestheader-allowed-names": "x"}):
        with pytest.raises(FormatError, match="requestheader"):
            parse_front_proxy(broken)
