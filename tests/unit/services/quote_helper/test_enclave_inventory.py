"""The inventory of enclaves: what it reads from a quote, and what keeps it small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some
from prometheus_client import CollectorRegistry, generate_latest

from confcom.formats.sgx import ReportBody
from confcom.protocols.custom_metrics import Sample, parse_samples
from confcom.services.quote_helper.peers import OURSELVES
from confcom.services.quote_helper.telemetry import MAX_ENCLAVES, MAX_PER_PEER, EnclaveInventory

ENCLAVES = "confcom_quote_helper_enclave_quotes_total"
LAST = "confcom_quote_helper_enclave_last_quote_timestamp_seconds"
DEBUG = "confcom_quote_helper_debug_quotes_total"
UNEXPECTED = "confcom_quote_helper_unexpected_signer_quotes_total"
DROPPED = "confcom_quote_helper_enclave_peers_dropped_total"
SIGNER = bytes(range(32))


def quote(build: int = 0, *, signer: bytes = SIGNER, flags: int = 5, body: bytes = b"") -> bytes:
    """A quote with this report body; by default one of build number `build`."""
    if not body:
        made = bytearray(384)
        made[48:56] = flags.to_bytes(8, "little")
        made[64:96] = build.to_bytes(32, "big")
        made[128:160] = signer
        made[256:260] = (7).to_bytes(2, "little") + (3).to_bytes(2, "little")
        body = bytes(made)
    return bytes(48) + body + bytes(200)


def shown(inventory: EnclaveInventory) -> dict[str, list[Sample]]:
    registry = CollectorRegistry()
    registry.register(inventory)
    page = generate_latest(registry).decode()
    return {name: list(parse_samples(page, {name})) for name in (ENCLAVES, LAST, DEBUG, UNEXPECTED, DROPPED)}


def test_an_enclave_is_shown_with_all_that_its_quote_says() -> None:
    inventory = EnclaveInventory()
    inventory.record("pod a", quote(9), 1.0)
    inventory.record("pod a", quote(9), 2.0)
    found = shown(inventory)
    (one,) = found[ENCLAVES]
    assert one.labels == {
        "peer": "pod a", "mr_enclave": f"{9:064x}", "mr_signer": SIGNER.hex(), "isv_prod_id": "7", "isv_svn": "3",
        "debug": "false", "signer_expected": "",
    }  # fmt: skip
    assert one.value == 2
    assert found[LAST][0].labels == one.labels
    assert found[DEBUG][0].value == 0
    assert found[UNEXPECTED] == []  # nothing is unexpected where nothing was said to be expected


@given(some.binary(min_size=384, max_size=384))
def test_every_report_body_is_read_as_the_codec_reads_it(data: bytes) -> None:
    body = ReportBody.parse(data)
    inventory = EnclaveInventory()
    inventory.record("uid 0", quote(body=data), 0.0)
    (one,) = shown(inventory)[ENCLAVES]
    assert one.labels["mr_enclave"] == body.mr_enclave.hex()
    assert one.labels["mr_signer"] == body.mr_signer.hex()
    assert (one.labels["isv_prod_id"], one.labels["isv_svn"]) == (str(body.isv_prod_id), str(body.isv_svn))
    assert one.labels["debug"] == ("true" if body.attributes.debug else "false")


def test_what_an_enclave_may_choose_freely_makes_no_second_entry() -> None:
    inventory = EnclaveInventory()
    for number in range(100):
        body = bytearray(384)
        body[20:320] = bytes(300)
        body[56] = number  # XFRM
        body[192:196] = number.to_bytes(4, "big")  # CONFIGID
        body[320:324] = number.to_bytes(4, "big")  # REPORTDATA
        inventory.record("pod a", quote(body=bytes(body)), float(number))
    (one,) = shown(inventory)[ENCLAVES]
    assert one.value == 100


def test_debug_enclaves_and_unexpected_signers_are_counted_from_zero() -> None:
    inventory = EnclaveInventory([SIGNER.hex().upper()])
    assert shown(inventory)[UNEXPECTED][0].value == 0
    inventory.record("pod a", quote(1), 1.0)
    inventory.record("pod a", quote(1, flags=7), 1.0)
    inventory.record("pod a", quote(2, signer=bytes(32)), 1.0)
    found = shown(inventory)
    assert (found[DEBUG][0].value, found[UNEXPECTED][0].value) == (1, 1)
    words = {(one.labels["debug"], one.labels["signer_expected"]) for one in found[ENCLAVES]}
    assert words == {("false", "true"), ("true", "true"), ("false", "false")}


def test_one_peer_with_ever_new_enclaves_takes_its_own_room_alone_and_hides_no_debug_enclave() -> None:
    inventory = EnclaveInventory()
    inventory.record("pod good", quote(1), 0.0)
    for number in range(10 * MAX_ENCLAVES):
        inventory.record("pod flood", quote(number), 1.0 + number)
    inventory.record("pod flood", quote(10**9, flags=7), 1e6)
    found = shown(inventory)
    of_flood = [one for one in found[ENCLAVES] if one.labels["peer"] == "pod flood"]
    assert len(of_flood) == MAX_PER_PEER + 2
    others = {one.labels["debug"]: one.value for one in of_flood if one.labels["mr_enclave"] == "others"}
    assert others == {"false": 10 * MAX_ENCLAVES - MAX_PER_PEER, "true": 1}
    assert [one.labels["peer"] for one in found[ENCLAVES]].count("pod good") == 1
    assert found[DEBUG][0].value == 1
    assert found[DROPPED][0].value == 0


def test_ever_new_peers_displace_those_without_a_quote_for_longest() -> None:
    inventory = EnclaveInventory()
    inventory.record("pod quiet", quote(1), 0.0)
    inventory.record("pod busy", quote(1), 1.0)
    for number in range(2 * MAX_ENCLAVES):
        inventory.record("pod busy", quote(1), 2.0 + number)
        inventory.record(f"pod {number}", quote(number, flags=7), 2.0 + number)
    found = shown(inventory)
    peers = {one.labels["peer"] for one in found[ENCLAVES]}
    assert len(found[ENCLAVES]) == MAX_ENCLAVES
    assert "pod busy" in peers
    assert "pod quiet" not in peers
    assert found[DROPPED][0].value == MAX_ENCLAVES + 2
    assert found[DEBUG][0].value == 2 * MAX_ENCLAVES  # no counter falls with what is dropped


def test_the_helpers_own_tests_and_what_is_no_quote_are_left_out() -> None:
    inventory = EnclaveInventory()
    inventory.record(OURSELVES, quote(1, flags=7), 0.0)
    inventory.record("pod a", bytes(307), 0.0)
    found = shown(inventory)
    assert found[ENCLAVES] == []
    assert found[DEBUG][0].value == 0
