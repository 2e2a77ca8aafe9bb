"""Collateral: genuine at any time or not at all; staleness is told apart, to the second."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pki_builder as intel
from confcom.appraisal.collateral import Collateral, VerifiedCollateral, verify_collateral
from confcom.collateral.bundle import load_bundle
from confcom.errors import (
    CertificateError,
    CollateralInvalid,
    CollateralNotFound,
    ConfcomError,
    FormatError,
    MismatchError,
    RevokedError,
    SignatureError,
    UntrustedRootError,
    VerificationError,
)
from confcom.pki.certificate import Crl
from confcom.pki.chain import INTEL_SGX_ROOT_CA, TrustRoot, TrustRoots

OWN = TrustRoots((TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE)),))
SECOND = timedelta(seconds=1)


def _verify(**changes: Any) -> VerifiedCollateral:
    return verify_collateral(intel.collateral(**changes), roots=OWN)


def test_sound_collateral_gives_its_content() -> None:
    verified = _verify()
    assert verified.tcb_info.fmspc == bytes.fromhex("00606A000000")
    assert verified.qe_identity.isv_prod_id == 1
    assert verified.pck_crl.number == 7
    assert verified.pck_ca.serial_number == 2
    assert verified.root is OWN.roots[0]
    assert verified.simulated
    assert verified.source == "tests"


def test_every_step_that_passed_is_listed_in_order() -> None:
    checks = _verify().checks
    assert [check.id for check in checks] == [
        "collateral-issuer-chains",
        "collateral-root-ca-crl",
        "collateral-issuers-not-revoked",
        "collateral-pck-crl",
        "collateral-tcb-info-signature",
        "collateral-qe-identity-signature",
    ]
    assert all(check.ok and check.expected and check.found for check in checks)


def test_verified_collateral_cannot_be_made_by_hand() -> None:
    verified = _verify()
    with pytest.raises(TypeError):
        dataclasses.replace(verified, source="forged")


def test_each_item_counts_for_freshness_once() -> None:
    assert [window.what for window in _verify().windows] == [
        "TCB info",
        "QE identity",
        "PCK CRL",
        "root CA CRL",
        "certificate Intel SGX TCB Signing",
        "certificate Intel SGX Root CA",
        "certificate Intel SGX PCK Platform CA",
    ]


def test_at_its_ends_collateral_is_fresh_and_a_second_beyond_it_is_stale() -> None:
    verified = _verify()
    assert verified.stale(intel.ISSUE) == ()
    assert verified.stale(intel.NEXT) == ()
    items = ["TCB info", "QE identity", "PCK CRL", "root CA CRL"]
    assert [window.what for window in verified.stale(intel.NEXT + SECOND)] == items
    assert [window.what for window in verified.stale(intel.ISSUE - SECOND)] == items
    assert len(verified.stale(intel.END + SECOND)) == 7


def test_earliest_dates_are_over_all_items() -> None:
    early_end = intel.NEXT - timedelta(days=3)
    verified = _verify(pck_crl=intel.crl(intel.PLATFORM_NAME, intel.PLATFORM_CA, end=early_end))
    assert verified.earliest_expiration == early_end
    assert verified.earliest_issue == intel.START
    assert [window.what for window in verified.stale(intel.NEXT)] == ["PCK CRL"]


def test_expired_collateral_is_still_genuine() -> None:
    long_ago = intel.ISSUE - timedelta(days=20_000)
    verified = _verify(root_ca_crl=intel.crl(begin=long_ago, end=long_ago + SECOND))
    assert [window.what for window in verified.stale(intel.ISSUE)] == ["root CA CRL"]


PLACES = {part: intel.collateral().place(part) for part in ("tcb_info", "qe_identity", "root_ca_crl", "pck_crl")}
PLACES |= {part: intel.collateral().place(part) for part in (f"{name}_issuer_chain" for name in list(PLACES)[:2])}
PLACES |= {"pck_crl_issuer_chain": intel.collateral().place("pck_crl_issuer_chain")}
STRANGERS_SIGNING = replace(intel.SIGNING_CERTIFICATE, signer=intel.STRANGER)


@pytest.mark.parametrize(
    ("changes", "error", "step"),
    [
        ({"pck_crl_issuer_chain": intel.pem(intel.SIGNING_CERTIFICATE)}, CertificateError, 1),
        ({"tcb_info_issuer_chain": intel.pem(intel.PLATFORM_CERTIFICATE)}, CertificateError, 1),
        ({"qe_identity_issuer_chain": intel.pem(intel.PLATFORM_CERTIFICATE)}, CertificateError, 1),
        ({"tcb_info_issuer_chain": intel.pem(STRANGERS_SIGNING, intel.STRANGER_ROOT)}, UntrustedRootError, 1),
        ({"qe_identity_issuer_chain": intel.pem(STRANGERS_SIGNING, intel.STRANGER_ROOT)}, UntrustedRootError, 1),
        ({"root_ca_crl": intel.crl(signer=intel.STRANGER)}, SignatureError, 2),
        ({"root_ca_crl": intel.crl(intel.PLATFORM_NAME, intel.PLATFORM_CA)}, MismatchError, 2),
        ({"root_ca_crl": intel.crl(revoked=(2,))}, RevokedError, 3),
        ({"root_ca_crl": intel.crl(revoked=(3,))}, RevokedError, 3),
        ({"pck_crl": intel.crl()}, MismatchError, 4),
        ({"pck_crl": intel.crl(intel.PROCESSOR_NAME, intel.PLATFORM_CA)}, MismatchError, 4),
        ({"pck_crl": intel.crl(intel.PLATFORM_NAME, intel.STRANGER)}, SignatureError, 4),
        ({"tcb_info": intel.signed("tcbInfo", intel.tcb_info(), intel.STRANGER)}, SignatureError, 5),
        ({"tcb_info": intel.signed("tcbInfo", intel.tcb_info()).replace(b":13", b":12", 1)}, SignatureError, 5),
        ({"tcb_info": intel.signed("tcbInfo", intel.tcb_info()).replace(b",", b", ", 1)}, SignatureError, 5),
        ({"qe_identity": intel.signed("enclaveIdentity", intel.enclave_identity(), intel.PCK)}, SignatureError, 6),
    ],
)
def test_a_part_that_is_not_genuine_is_refused_at_its_step(
    changes: dict[str, bytes], error: type[VerificationError], step: int
) -> None:
    with pytest.raises((CollateralInvalid, RevokedError)) as caught:
        _verify(**changes)
    # A revoked PCK CA speaks against platforms; everything else is the fault of a document.
    assert isinstance(caught.value.__cause__ or caught.value, error)
    if isinstance(caught.value, CollateralInvalid):
        assert caught.value.document in {PLACES[part] for part in (*changes, "tcb_info_issuer_chain")}
    assert caught.value.step == [check.id for check in _verify().checks][step - 1]


@pytest.mark.parametrize("part", [item.name for item in dataclasses.fields(Collateral) if item.name != "source"][:7])
def test_a_part_that_is_garbage_is_malformed(part: str) -> None:
    for garbage in (b"", b"garbage", b"\xff" * 100, b"{}", b"-----BEGIN"):
        with pytest.raises(CollateralInvalid) as caught:
            _verify(**{part: garbage})
        assert caught.value.document == PLACES[part]


def test_signed_content_that_makes_no_sense_is_malformed() -> None:
    with pytest.raises(CollateralInvalid, match=r"TCB info.*twice"):
        _verify(tcb_info=intel.signed("tcbInfo", intel.tcb_info(tcbLevels=[intel.level(), intel.level()])))


def test_signed_white_space_is_kept_for_the_signature() -> None:
    body = intel.compact(intel.tcb_info()).replace(b",", b" ,\n ")
    assert _verify(tcb_info=intel.signed("tcbInfo", body)).tcb_info == _verify().tcb_info


def test_a_signer_that_the_root_revoked_is_told_from_a_revoked_platform() -> None:
    with pytest.raises(CollateralInvalid) as signer:
        _verify(root_ca_crl=intel.crl(revoked=(3,)))
    with pytest.raises(RevokedError) as platform:
        _verify(root_ca_crl=intel.crl(revoked=(2,)))
    assert "fresh collateral" in signer.value.advice()
    assert "platform" in platform.value.advice()


def test_a_root_on_its_own_list_stays_a_root() -> None:
    assert _verify(root_ca_crl=intel.crl(revoked=(1,))).root is OWN.roots[0]


def test_parts_of_two_trusted_roots_do_not_mix() -> None:
    both = TrustRoots((*OWN.roots, TrustRoot.from_pem(intel.pem(intel.STRANGER_ROOT))))
    mixed = intel.collateral(qe_identity_issuer_chain=intel.pem(STRANGERS_SIGNING, intel.STRANGER_ROOT))
    with pytest.raises(CollateralInvalid, match="leads to another root"):
        verify_collateral(mixed, roots=both)
    assert verify_collateral(intel.collateral(), roots=both).root is both.roots[0]


def test_simulated_collateral_is_refused_by_who_trusts_intel_alone() -> None:
    with pytest.raises(CollateralInvalid) as caught:
        verify_collateral(intel.collateral(), roots=TrustRoots.intel())
    assert "--trust-root" in caught.value.advice()


def test_the_digest_is_of_what_is_signed_and_not_of_how_it_is_wrapped() -> None:
    collateral = intel.collateral()
    assert len(collateral.digest()) == 32
    same = [replace(collateral, source="elsewhere"), replace(collateral, pck_certificate_chain=b"x")]
    for item in dataclasses.fields(Collateral):
        part = getattr(collateral, item.name)
        if item.name.endswith("chain") and part:
            same.append(replace(collateral, **{item.name: b"Bag Attributes\n" + part.replace(b"\n", b"\r\n") + b"\0"}))
        elif item.name.endswith("crl"):
            der = Crl.parse(part).der
            same += [replace(collateral, **{item.name: other}) for other in (der + b"\0", der.hex().encode())]
        elif item.name in ("tcb_info", "qe_identity"):
            same.append(replace(collateral, **{item.name: b"\n" + part + b" \n\0"}))
    assert len(same) > 8
    assert {other.digest() for other in same} == {collateral.digest()}
    others = [
        replace(collateral, tcb_info=collateral.tcb_info.replace(b'"issueDate"', b' "issueDate"')),
        replace(collateral, root_ca_crl=intel.crl(number=8)),
        replace(collateral, tcb_info_issuer_chain=collateral.pck_crl_issuer_chain),
    ]
    assert collateral.digest() not in {other.digest() for other in others}


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}


def _outcome(folder: Path, roots: TrustRoots) -> VerifiedCollateral | type[ConfcomError]:
    try:
        return verify_collateral(load_bundle(folder), roots=roots)
    except ConfcomError as error:
        return type(error.__cause__ or error)  # type: ignore[return-value]


def _stale_at(verified: VerifiedCollateral, row: dict[str, str]) -> bool:
    return bool(verified.stale(datetime.fromtimestamp(int(row["verify_time"]), UTC)))


@pytest.mark.vectors
def test_all_real_collateral_is_intels_and_as_fresh_as_intels_library_says(vectors: Path) -> None:
    rows = {name: row for name, row in _rows(vectors / "index.tsv").items() if row["has_collateral"] == "yes"}
    assert len(rows) > 100
    for name, row in rows.items():
        verified = verify_collateral(load_bundle(vectors / "real" / name), roots=TrustRoots.intel())
        assert verified.root == INTEL_SGX_ROOT_CA, name
        assert not verified.simulated, name
        assert verified.tcb_info.fmspc.hex() == row["fmspc"].lower(), name
        assert verified.tcb_info.version == int(row["tcbinfo_ver"]), name
        assert _stale_at(verified, row) == (row["qvl_expired"] == "1"), name


# The mutations that are about collateral; all others leave it sound.
MUTATED = {
    "pckcrl-is-rootcrl": MismatchError,
    "pckcrl-other-ca": MismatchError,
    "pckcrl-sig-flip": SignatureError,
    "rootcrl-garbage": FormatError,
    "rootcrl-sig-flip": SignatureError,
    "tcb-chain-attacker": UntrustedRootError,
    "tcb-empty": SignatureError,
    "tcb-nextupdate-extended": SignatureError,
    "tcb-sig-of-qe": SignatureError,
    "tcb-sig-short": FormatError,
    "tcb-whitespace": SignatureError,
}


@pytest.mark.vectors
def test_every_mutation_of_collateral_is_refused_and_no_other(vectors: Path) -> None:
    refused = set()
    for name, row in _rows(vectors / "negative" / "index.tsv").items():
        outcome = _outcome(vectors / "negative" / name, TrustRoots.intel())
        if isinstance(outcome, VerifiedCollateral):
            assert row["mutation"] not in MUTATED, name
            assert _stale_at(outcome, row) == (row["qvl_expired"] == "1"), name
        else:
            assert outcome is MUTATED.get(row["mutation"]), name
            refused.add(row["mutation"])
    assert refused == set(MUTATED)


SIMULATED = {
    "sgx3-dup-levels": FormatError,
    "sgx3-pckcrl-foreign-key": SignatureError,
    "sgx3-tcbinfo-foreign-sig": SignatureError,
    "sgx3-tcbsign-revoked": RevokedError,
    "sgx3-unknown-status": FormatError,
}


@pytest.mark.vectors
def test_simulated_collateral_is_judged_under_its_own_root_alone(vectors: Path) -> None:
    for name, row in _rows(vectors / "sim" / "index.tsv").items():
        folder = vectors / "sim" / name
        own = TrustRoots((TrustRoot.from_pem((folder / "root_ca.pem").read_bytes()),))
        outcome = _outcome(folder, own)
        assert not isinstance(_outcome(folder, TrustRoots.intel()), VerifiedCollateral), name
        if isinstance(outcome, VerifiedCollateral):
            assert name not in SIMULATED, name
            assert outcome.simulated, name
            # Intel's library does not look at a future issueDate; ours does.
            expected = row["qvl_expired"] == "1" or name == "sgx3-tcbinfo-future"
            assert _stale_at(outcome, row) == expected, name
        else:
            assert outcome is SIMULATED.get(name), name


@pytest.mark.vectors
def test_intels_samples_of_another_root_are_not_intels(vectors: Path) -> None:
    folder = vectors / "real" / "odd-sgx3-qvl-sample-certtype1"
    assert _outcome(folder, TrustRoots.intel()) is CollateralNotFound
