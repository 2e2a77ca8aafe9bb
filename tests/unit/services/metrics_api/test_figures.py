"""Values of pods and of what is above them, from pages of exporters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from confcom.errors import FormatError
from confcom.protocols.custom_metrics import MetricRequest, ScaledPod, parse_selector
from confcom.services.metrics_api.figures import (
    MAX_PEERS,
    EpcPage,
    Exporter,
    Figures,
    Refused,
    parse_epc_page,
    parse_quotes_page,
)

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
MIB = 1 << 20
PAGE = """\
confcom_epc_pass_age_seconds{node="n1"} 3.5
confcom_epc_requested_bytes{node="n1",namespace="shop",pod="web-1",container="a"} 10485760
confcom_epc_requested_bytes{node="n1",namespace="shop",pod="web-1",container=""} 1048576
confcom_epc_mapped_bytes{node="n1",namespace="shop",pod="web-1",container="a"} 9437184
confcom_epc_mapped_bytes{node="n1",namespace="shop",pod="web-2",container="a"} 5242880
confcom_epc_in_use_bytes{node="n1",namespace="shop",pod="web-2",container="a"} 1048576
confcom_epc_processes{node="n1",namespace="shop",pod="web-1",container="a"} 2
confcom_epc_over_limit_seconds{node="n1",namespace="shop",pod="web-1",container="a"} 12.5
confcom_epc_over_limit_seconds{node="n1",namespace="shop",pod="web-1",container="b"} 0
confcom_epc_node_mapped_bytes{node="n1"} 99
"""


def pod(name: str, **details: Any) -> ScaledPod:
    values: dict[str, Any] = {
        "uid": f"uid-{name}",
        "namespace": "shop",
        "name": name,
        "node": "n1",
        "address": "10.0.0.9",
        "labels": {"app": "web"},
        "owners": frozenset({("deployments.apps", "web")}),
        "requests": True,
        "claims": False,
        "runs": True,
        "finished": False,
    }
    return ScaledPod(**(values | details))


def exporter(page: str = PAGE, *, node: str = "n1", read: float = 100.0) -> Exporter:
    found = Exporter("metrics", node, "10.0.0.1")
    found.take_epc(parse_epc_page(page), read)
    return found


class Stage:
    def __init__(self, *pods: ScaledPod, exporters: list[Exporter] | None = None) -> None:
        self.figures = Figures(lambda: pods, stale_after=30.0)
        self.show(*([exporter()] if exporters is None else exporters))

    def show(self, *exporters: Exporter) -> None:
        found: dict[str, dict[str, list[Exporter]]] = {}
        for one in exporters:
            found.setdefault(one.component, {}).setdefault(one.node, []).append(one)
        self.figures.exporters = found

    def ask(self, metric: str, *, resource: str = "pods", name: str = "*", at: float = 102.0, **more: Any) -> Any:
        request = MetricRequest(more.pop("namespace", "shop"), resource, name, metric, **more)
        return {one.name: one.value for one in self.figures.answer(request, monotonic=at, now=NOW)}


def test_a_page_adds_containers_up() -> None:
    page = parse_epc_page(PAGE)
    assert page.age == 3.5
    assert page.pods["shop", "web-1"] == {
        "requested_bytes": 11 * MIB,
        "mapped_bytes": 9 * MIB,
        "processes": 2,
        "over_limit_seconds": 12.5,
    }


def test_what_the_kernel_counts_comes_before_what_is_mapped() -> None:
    taken = exporter()
    taken.take_epc(parse_epc_page(PAGE), 100.0)
    assert Stage(pod("web-2"), exporters=[taken]).ask("sgx_epc_used_bytes") == {"web-2": MIB}


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "1e30"])
@pytest.mark.parametrize("place", ["3.5", "10485760", "12.5"])
def test_what_is_no_amount_spoils_the_page_of_its_node_alone(place: str, value: str) -> None:
    with pytest.raises(FormatError, match="is no amount"):
        parse_epc_page(PAGE.replace(place, value))
    with pytest.raises(FormatError, match="is no amount"):
        parse_quotes_page(f'confcom_quote_helper_quotes_total{{peer="pod a"}} {value}\n')


def test_a_page_has_no_more_pods_than_a_node() -> None:
    lines = [f'confcom_quote_helper_quotes_total{{peer="pod {number}"}} 1' for number in range(MAX_PEERS)]
    assert len(parse_quotes_page("\n".join(lines))) == MAX_PEERS
    with pytest.raises(FormatError, match="more than 4096 pods"):
        parse_quotes_page("\n".join([*lines, 'confcom_quote_helper_quotes_total{peer="pod x"} 1']))
    mapped = [f'confcom_epc_mapped_bytes{{namespace="a",pod="{number}"}} 1' for number in range(MAX_PEERS + 1)]
    with pytest.raises(FormatError, match="more than 4096 pods"):
        parse_epc_page("\n".join(mapped))


@pytest.mark.parametrize("page", ["", PAGE.partition("\n")[2]])
def test_a_page_without_the_age_of_its_figures_counts_for_nothing(page: str) -> None:
    with pytest.raises(FormatError, match="how old"):
        parse_epc_page(page)


def test_a_page_of_an_exporter_that_knows_no_pods_counts_for_nothing() -> None:
    """It would leave its pods out of a sum, and HPA would end others."""
    assert parse_epc_page(PAGE + 'confcom_epc_pods_known{node="n1"} 1\n') == parse_epc_page(PAGE)
    with pytest.raises(FormatError, match="does not know the pods of its node"):
        parse_epc_page(PAGE + 'confcom_epc_pods_known{node="n1"} 0\n')


def test_values_of_pods() -> None:
    stage = Stage(pod("web-1"), pod("web-2"), pod("elsewhere", namespace="other"))
    assert stage.ask("sgx_epc_used_bytes") == {"web-1": 9 * MIB, "web-2": MIB}
    assert stage.ask("sgx_epc_used_ratio") == {"web-1": 9 / 11}, "no ratio without a request"
    assert stage.ask("sgx_enclave_processes", name="web-1") == {"web-1": 2}
    assert stage.ask("sgx_epc_over_limit_seconds", name="web-1") == {"web-1": 12.5}


def test_exactly_the_pods_of_the_selector() -> None:
    stage = Stage(pod("web-1"), pod("web-2", labels={"app": "db"}))
    assert stage.ask("sgx_epc_used_bytes", selector=parse_selector("app=db")) == {"web-2": MIB}
    assert stage.ask("sgx_epc_used_bytes", selector=parse_selector("app=none")) == {}


def test_a_star_is_no_name_and_a_name_is_no_star() -> None:
    with pytest.raises(Refused) as refused:
        Stage(pod("web-1")).ask("sgx_epc_used_bytes", name="web")
    assert refused.value.status == 404


def test_objects_above_pods() -> None:
    stage = Stage(pod("web-1"), pod("web-2"), pod("web-3", owners=frozenset()))
    assert stage.ask("sgx_epc_used_bytes", resource="deployments.apps", name="web") == {"web": 10 * MIB}
    assert stage.ask("sgx_epc_used_ratio", resource="namespaces", name="shop") == {"shop": 9 / 11}
    assert stage.ask("sgx_epc_over_limit_seconds", resource="deployments.apps", name="web") == {"web": 12.5}
    with pytest.raises(Refused, match="no pod of it runs") as refused:
        stage.ask("sgx_epc_used_bytes", resource="statefulsets.apps", name="web")
    assert refused.value.status == 404


def test_stale_pods_are_left_out() -> None:
    old = exporter(PAGE.replace("web-2", "web-3").replace("n1", "n2"), node="n2", read=70.0)
    stage = Stage(pod("web-1"), pod("web-3", node="n2"), exporters=[exporter(), old])
    # Read 32 s ago, of a look 3.5 s before.
    assert set(stage.ask("sgx_epc_used_bytes")) == {"web-1"}
    assert set(stage.ask("sgx_epc_used_bytes", at=96.4)) == {"web-1", "web-3"}


def test_a_sum_without_some_of_the_pods_is_refused() -> None:
    lost = Exporter("metrics", "n2", "10.0.0.2", failure="connection refused")
    stage = Stage(pod("web-1"), pod("web-3", node="n2"), exporters=[exporter(), lost])
    with pytest.raises(Refused) as refused:
        stage.ask("sgx_epc_used_bytes", resource="deployments.apps", name="web")
    assert refused.value.status == 503
    for word in ("1 pods", "n2", "10.0.0.2", "never", "connection refused"):
        assert word in refused.value.message


def test_pods_that_cannot_be_known_do_not_hinder_sums_if_they_request_nothing() -> None:
    gpu = pod("gpu", node="n8", requests=False, claims=True)
    stage = Stage(pod("web-1"), pod("plain", node="n9", requests=False), gpu)
    assert stage.ask("sgx_epc_used_bytes", resource="namespaces", name="shop") == {"shop": 9 * MIB}
    # Where EPC is measured, a claim may be one of EPC.
    stage.show(exporter(), Exporter("metrics", "n8", "10.0.0.8"))
    with pytest.raises(Refused, match="n8"):
        stage.ask("sgx_epc_used_bytes", resource="namespaces", name="shop")


def test_pods_of_a_lost_node_that_are_being_deleted_do_not_hinder_sums() -> None:
    """They stay until somebody deletes the node; their successors run, and have to be scaled."""
    lost = pod("web-3", node="n2", runs=False)
    assert Stage(pod("web-1"), lost).ask("sgx_epc_used_bytes", resource="deployments.apps", name="web") == {
        "web": 9 * MIB
    }
    # One that still has figures counts with them.
    stage = Stage(pod("web-1"), pod("web-2", runs=False))
    assert stage.ask("sgx_epc_used_bytes", resource="deployments.apps", name="web") == {"web": 10 * MIB}


def test_no_figures_at_all_say_why() -> None:
    stage = Stage(pod("web-1"), pod("web-2"), exporters=[])
    with pytest.raises(Refused, match="no exporter of EPC use runs on node n1") as refused:
        stage.ask("sgx_epc_used_bytes")
    assert refused.value.status == 503
    with pytest.raises(Refused, match="request or use no EPC"):
        Stage(pod("web-9", requests=False)).ask("sgx_epc_used_ratio")


def test_pods_that_wait_or_have_ended_are_left_out() -> None:
    stage = Stage(pod("web-1"), pod("web-2", node=""), pod("web-3", finished=True, node="n7"))
    assert stage.ask("sgx_epc_used_bytes", resource="deployments.apps", name="web") == {"web": 9 * MIB}


def test_a_node_says_nothing_about_pods_of_another_node() -> None:
    liar = exporter(PAGE.replace("n1", "n2"), node="n2")
    stage = Stage(pod("web-1", node="n1"), exporters=[liar])
    with pytest.raises(Refused, match="no exporter"):
        stage.ask("sgx_epc_used_bytes")


def test_of_two_exporters_during_an_upgrade_the_latest_look_counts() -> None:
    newer = exporter(PAGE.replace("3.5", "0.5").replace("9437184", "1048576"))
    assert Stage(pod("web-1"), exporters=[exporter(), newer]).ask("sgx_epc_used_bytes") == {"web-1": MIB}


@pytest.mark.parametrize(("resource", "metric"), [("services", "sgx_epc_used_bytes"), ("pods", "cpu")])
def test_unknown_names_are_answered_with_those_that_there_are(resource: str, metric: str) -> None:
    with pytest.raises(Refused, match=r"sgx_epc_used_bytes|deployments\.apps") as refused:
        Stage(pod("web-1")).ask(metric, resource=resource)
    assert refused.value.status == 404


def quotes(**counts: float) -> str:
    return "".join(f'confcom_quote_helper_quotes_total{{peer="{peer}"}} {count}\n' for peer, count in counts.items())


def page_of(**counts: float) -> dict[str, float]:
    text = quotes(**counts).replace('peer="uid_', 'peer="pod uid-').replace("web_", "web-")
    return parse_quotes_page(text)


def helper(*pages: tuple[float, dict[str, float]]) -> Exporter:
    found = Exporter("quote-helper", "n1", "10.0.0.3")
    for at, page in pages:
        found.take_quotes(page, at)
    return found


def test_quotes_per_second_by_the_uid_of_the_pod() -> None:
    stage = Stage(
        pod("web-1"),
        pod("web-2"),
        exporters=[helper((90.0, page_of(uid_web_1=5)), (100.0, page_of(uid_web_1=25, **{"uid 0": 7})))],
    )
    assert stage.ask("sgx_quotes_per_second") == {"web-1": 2.0, "web-2": 0.0}
    assert stage.ask("sgx_quotes_per_second", resource="deployments.apps", name="web") == {"web": 2.0}


def test_a_helper_that_started_again_counts_from_its_start() -> None:
    restarted = helper((80.0, page_of(uid_web_1=500)), (90.0, page_of(uid_web_1=3)), (100.0, page_of(uid_web_1=13)))
    assert Stage(pod("web-1"), exporters=[restarted]).ask("sgx_quotes_per_second") == {"web-1": 1.0}
    for before in (page_of(uid_web_9=500), page_of(uid_web_9=1, others=2)):
        restarted = helper((80.0, before), (90.0, page_of(uid_web_1=600)), (100.0, page_of(uid_web_1=610)))
        assert Stage(pod("web-1"), exporters=[restarted]).ask("sgx_quotes_per_second") == {"web-1": 1.0}


def test_the_last_minute_counts() -> None:
    old = helper((10.0, page_of(uid_web_1=0)), (40.0, page_of(uid_web_1=600)), (100.0, page_of(uid_web_1=660)))
    assert Stage(pod("web-1"), exporters=[old]).ask("sgx_quotes_per_second") == {"web-1": 1.0}


def test_one_page_is_no_rate_and_former_peers_had_no_quotes() -> None:
    begun = helper((100.0, page_of(uid_web_1=5)))
    with pytest.raises(Refused, match="last gave figures 2 s ago: too few yet for a rate"):
        Stage(pod("web-1"), exporters=[begun]).ask("sgx_quotes_per_second")
    with pytest.raises(Refused, match="not counted by a quote helper yet"):
        Stage(pod("web-1", requests=False), exporters=[begun]).ask("sgx_quotes_per_second")
    # Nor is there a sum while the helper of one node has just been started: it would leave that node's pods out.
    begun.node = "n2"
    serves = helper((90.0, page_of(uid_web_1=5)), (100.0, page_of(uid_web_1=15)))
    stage = Stage(pod("web-1"), pod("web-2", node="n2"), exporters=[serves, begun])
    assert stage.ask("sgx_quotes_per_second") == {"web-1": 1.0}
    with pytest.raises(Refused, match="no fresh figures of 1 pods: the quote helper of node n2"):
        stage.ask("sgx_quotes_per_second", resource="deployments.apps", name="web")
    # The helper counts the latest peers apart: web-2 had no quote, web-3 no late one.
    full = helper(
        (90.0, page_of(uid_web_1=5, uid_web_3=7, others=100)),
        (95.0, page_of(uid_web_1=10, others=107)),
        (100.0, page_of(uid_web_1=15, others=107)),
    )
    stage = Stage(pod("web-1"), pod("web-2"), pod("web-3"), exporters=[full])
    assert stage.ask("sgx_quotes_per_second") == {"web-1": 1.0, "web-2": 0.0, "web-3": 0.0}


def test_an_empty_page_of_a_node_without_pods_is_fresh() -> None:
    bare = Exporter("metrics", "n1", "10.0.0.1")
    bare.take_epc(EpcPage(0.0, {}), 100.0)
    with pytest.raises(Refused, match="began a moment ago"):
        Stage(pod("web-1"), exporters=[bare]).ask("sgx_epc_used_bytes")
