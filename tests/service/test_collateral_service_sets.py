"""Which TCB evaluation set clients get: what they name, what the service is pinned to, what their group is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confcom.collateral.documents import Document, DocumentKey
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralNotFound, ConfigError
from confcom.protocols.pcs import TcbSets
from running_collateral_service import (
    BUILT_FMSPC,
    BUILT_NOW,
    BUILT_ROOTS,
    BuiltUpstream,
    Clock,
    RunningService,
    running_service,
)

PATH = "/sgx/certification/v4"
TCB = f"{PATH}/tcb?fmspc={BUILT_FMSPC}"
# BuiltUpstream's standard set is 20, its early one 21; it has every number.


def number(service: RunningService, path: str) -> int:
    reply = service.ask(path)
    assert reply.status == 200, reply.body
    (body,) = (value for name, value in json.loads(reply.body).items() if name != "signature")
    return int(body["tcbEvaluationDataNumber"])


class Sets(BuiltUpstream):
    """An upstream that lacks some sets."""

    def __init__(self, *lacking: str | int) -> None:
        super().__init__()
        self.lacking = lacking

    def fetch_document(self, key: DocumentKey) -> Document:
        if key.update in self.lacking:
            raise CollateralNotFound(f"no {key}")
        return super().fetch_document(key)


def test_standard_is_what_the_service_or_the_group_is_pinned_to(tmp_path: Path) -> None:
    pins = ("19", "canary=early", "intel=standard", "frozen=18")
    with running_service(tmp_path / "s", BuiltUpstream(), BUILT_ROOTS, Clock(BUILT_NOW), tcb_sets=pins) as service:
        for _ in range(2):  # the second time from memory
            for group, pinned in (("", 19), ("/group/canary", 21), ("/group/intel", 20), ("/group/frozen", 18)):
                for path in (TCB, f"{TCB}&update=standard", f"{PATH}/qe/identity", f"{TCB}&update=Standard"):
                    assert number(service, group + path) == pinned
                assert number(service, f"{group}/tdx/certification/v4/tcb?fmspc={BUILT_FMSPC}") == pinned
                # What is asked for by its name or number is given as it is.
                assert number(service, f"{group}{TCB}&update=early") == 21
                assert number(service, f"{group}{TCB}&tcbEvaluationDataNumber=17") == 17
                both = service.ask(f"{group}{TCB}&update=standard&tcbEvaluationDataNumber=17")
                assert (both.status, both.json["field"]) == (400, "tcbEvaluationDataNumber")
                assert service.ask(f"{group}{PATH}/pckcrl?ca=platform").status == 200
        assert service.metric("cache_total", result="memory") > 0
        assert service.metric("requests_total", path="sgx/v4/tcb", status="200") == 2 * 4 * 5
        for unknown in ("/group/none", "/group/", "/group/canary/group/frozen", "/group/CANARY", "/group/%63anary%00"):
            reply = service.ask(unknown + TCB)
            assert (reply.status, reply.json["message"]) == (404, "there is no such group of clients")
        assert service.ask("/group/canary").status == service.ask("/group/canary/").status == 404


def test_a_pin_that_is_moved_is_in_force_at_once(tmp_path: Path) -> None:
    for pins, pinned in ((("19",), 19), ((), 20), (("early",), 21), (("19",), 19)):
        with running_service(tmp_path / "s", Sets(), BUILT_ROOTS, Clock(BUILT_NOW), tcb_sets=pins) as service:
            assert number(service, TCB) == pinned


def test_every_set_that_is_served_and_the_coming_one_are_there_before_they_are_asked_for(tmp_path: Path) -> None:
    settings = {"tcb_sets": ("19", "frozen=18"), "fmspcs": (BUILT_FMSPC,)}
    with running_service(tmp_path / "s", BuiltUpstream(), BUILT_ROOTS, Clock(BUILT_NOW), **settings) as service:
        service.wait_until(lambda: service.ask("/readyz").status == 200)
        service.wait_until(lambda: service.metric("refresh_total", outcome="renewed") == 2 + 4 * 2)
    with CollateralStore(tmp_path / "s", roots=BUILT_ROOTS, create=False) as store:
        kept = {key.update for key in store.document_keys() if key.fmspc == bytes.fromhex(BUILT_FMSPC)}
    assert kept == {"standard", "early", 18, 19}


def test_a_set_that_is_gone_is_refused_to_its_group_alone(tmp_path: Path) -> None:
    settings = {"tcb_sets": ("frozen=18",), "fmspcs": (BUILT_FMSPC,)}
    with running_service(tmp_path / "s", Sets(18), BUILT_ROOTS, Clock(BUILT_NOW), **settings) as service:
        service.wait_until(lambda: service.metric("refresh_total", outcome="failed") >= 2)
        ready = service.ask("/readyz")
        assert (ready.status, ready.json["sets"]) == (200, {"": "standard", "frozen": "18"})
        assert ready.json["warning"] == (
            f"fresh collateral is lacking for FMSPC {BUILT_FMSPC} (sgx) by set 18, "
            "to which clients of the group frozen are pinned"
        )
        lacking = {gap["document"]: gap["groups"] for gap in ready.json["lacking"]}
        assert lacking == {
            f"SGX TCB info of FMSPC {BUILT_FMSPC} (set 18)": ["frozen"], "QE identity (set 18)": ["frozen"],
        }  # fmt: skip
        service.ask("/metrics")
        assert service.metric("ready") == 1
        assert service.metric("lacking", group="frozen", tee="sgx", fmspc=BUILT_FMSPC) == 2
        assert service.metric("tcb_set", group="frozen", set="18") == 1
        assert service.metric("tcb_set", group="", set="standard") == 1
        assert number(service, TCB) == number(service, f"/group/frozen{TCB}&update=early") - 1 == 20
        refused = service.ask("/group/frozen" + TCB)
        assert refused.status == 404
        assert refused.json["message"].startswith(
            "clients of the group frozen are pinned to set 18, which is not available"
        )
        assert "move the pin (--tcb-set frozen=SET)" in refused.json["advice"]
        assert refused.json["missing"]["update"] == "18"


def test_a_pin_of_all_clients_that_is_gone_is_no_readiness(tmp_path: Path) -> None:
    settings = {"tcb_sets": ("18",), "fmspcs": (BUILT_FMSPC,)}
    with running_service(tmp_path / "s", Sets(18), BUILT_ROOTS, Clock(BUILT_NOW), **settings) as service:
        service.wait_until(lambda: service.metric("refresh_total", outcome="failed") >= 2)
        ready = service.ask("/readyz")
        assert (ready.status, "warning" in ready.json) == (503, False)
        assert "clients of clients" not in ready.json["reason"]
        assert "to which clients without a group are pinned" in ready.json["reason"]
        refused = service.ask(TCB).json
        assert refused["message"].startswith("clients without a group are pinned to set 18")
        assert "(--tcb-set SET)" in refused["advice"]


def test_a_set_that_is_kept_from_when_it_was_the_standard_one_is_served(tmp_path: Path) -> None:
    settings = {"fmspcs": (BUILT_FMSPC,)}
    with running_service(tmp_path / "s", BuiltUpstream(), BUILT_ROOTS, Clock(BUILT_NOW), **settings) as service:
        service.wait_until(lambda: number(service, TCB) == 20 == number(service, f"{TCB}&update=standard"))
        assert service.ask(f"{PATH}/qe/identity").status == service.ask(f"{PATH}/pckcrl?ca=platform").status == 200
        assert service.ask(f"{PATH}/rootcacrl").status == 200
    settings["tcb_sets"] = ("20",)
    with running_service(tmp_path / "s", Sets(20), BUILT_ROOTS, Clock(BUILT_NOW), **settings) as service:
        assert service.ask("/readyz").json["lacking"] == []
        assert number(service, TCB) == 20


def test_one_fmspc_without_collateral_does_not_take_the_service_from_others(tmp_path: Path) -> None:
    settings = {"fmspcs": (BUILT_FMSPC, "0123456789ab")}
    with running_service(tmp_path / "s", BuiltUpstream(), BUILT_ROOTS, Clock(BUILT_NOW), **settings) as service:
        service.wait_until(lambda: service.metric("refresh_total", outcome="failed") >= 1)
        ready = service.ask("/readyz")
        assert ready.status == 200
        assert ready.json["warning"] == "fresh collateral is lacking for FMSPC 0123456789ab (sgx)"
        assert service.metric("lacking", group="", tee="sgx", fmspc="0123456789ab") >= 1
        assert number(service, TCB) == 20


def test_a_source_without_early_sets_is_no_fault(tmp_path: Path) -> None:
    settings = {"fmspcs": (BUILT_FMSPC,)}
    with running_service(tmp_path / "s", Sets("early"), BUILT_ROOTS, Clock(BUILT_NOW), **settings) as service:
        service.wait_until(lambda: service.metric("refresh_total", outcome="unchanged") >= 2)
        service.wait_until(lambda: service.ask("/readyz").status == 200)
        assert service.metric("refresh_total", outcome="failed") == 0


@pytest.mark.parametrize(
    "named",
    ["0", "-1", "1.5", "2147483648", "late", "", "a=b", "A=early", "=early=early", "a b=19", "19,20", f"{'a' * 64}=19"],
)
def test_pins_that_make_no_sense_are_refused(named: str) -> None:
    with pytest.raises(ConfigError, match="tcb_sets"):
        TcbSets.parse(["canary=early", named])


def test_a_pin_is_given_once() -> None:
    for named in (("19", "20"), ("a=19", "a=20")):
        with pytest.raises(ConfigError, match="twice"):
            TcbSets.parse(named)
