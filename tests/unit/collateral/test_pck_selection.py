"""PCK certificate selection by Intel's rule (dcap.md §8)."""

from __future__ import annotations

import datetime as dt

import pytest

from confcom.collateral.pck_rules import CertificatesUnavailable, select_pck_certificate
from confcom.formats.tcb_info import SignedTcbInfo, TcbInfo
from confcom.protocols.pcs import PckCertificateAnswer
from confcom.simulator.documents import PlatformTcbLevel, SimulatedTcbInfo
from confcom.simulator.machine import MachineTcb, derive_p256_key

FMSPC = bytes.fromhex("00606a000000")
DAY = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def tcb(*components: int, pce_svn: int = 13) -> MachineTcb:
    return MachineTcb((*components, *[0] * (16 - len(components))), pce_svn)


def tcb_info(*levels: MachineTcb) -> TcbInfo:
    info = SimulatedTcbInfo(DAY, DAY, fmspc=FMSPC)
    info.levels = [PlatformTcbLevel(level, "UpToDate", DAY) for level in levels]
    return SignedTcbInfo.parse(info.signed(derive_p256_key(bytes(16), "test"))).tcb_info()


def certificate(of: MachineTcb, *, fmspc: bytes = FMSPC) -> PckCertificateAnswer:
    tcbm = bytes(of.sgx_components) + of.pce_svn.to_bytes(2, "little")
    return PckCertificateAnswer(f"certificate {of}".encode(), b"chain", tcbm, fmspc, "platform")


def select(raw: MachineTcb, certificates: list[PckCertificateAnswer], *levels: MachineTcb) -> MachineTcb | None:
    try:
        found = select_pck_certificate(
            certificates, cpu_svn=bytes(raw.sgx_components), pce_svn=raw.pce_svn, tcb_info=tcb_info(*levels)
        )
    except CertificatesUnavailable:
        return None
    return MachineTcb(tuple(found.tcbm[:16]), int.from_bytes(found.tcbm[16:], "little"))


LOW, MIDDLE, HIGH = tcb(1, 1), tcb(5, 5), tcb(9, 9)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (tcb(9, 9), HIGH),
        (tcb(200, 200), HIGH),
        (tcb(8, 9), MIDDLE),
        (tcb(5, 5), MIDDLE),
        (tcb(4, 255), LOW),
        (tcb(0, 255), None),
        (tcb(9, 9, pce_svn=12), None),
        (tcb(9, 9, pce_svn=400), HIGH),
    ],
)
def test_takes_the_certificate_of_the_highest_level_that_the_platform_reaches(raw, expected) -> None:
    certificates = [certificate(of) for of in (MIDDLE, LOW, HIGH)]

    assert select(raw, certificates, HIGH, MIDDLE, LOW) == expected


def test_a_higher_level_goes_before_a_higher_tcb() -> None:
    # The second has higher numbers, but falls short of the upper level in one component.
    of_upper_level, of_lower_level = tcb(9, 9), tcb(250, 8)

    assert (
        select(tcb(255, 255), [certificate(of_lower_level), certificate(of_upper_level)], HIGH, LOW) == of_upper_level
    )


def test_within_a_level_the_higher_tcb_is_taken() -> None:
    assert select(tcb(255, 255), [certificate(tcb(6, 5)), certificate(tcb(7, 5))], HIGH, MIDDLE) == tcb(7, 5)


def test_certificates_below_every_level_come_last_but_come() -> None:
    below = tcb(0, 0)
    assert select(tcb(255, 255), [certificate(below), certificate(LOW)], LOW) == LOW
    assert select(tcb(255, 255), [certificate(below)], LOW) == below


def test_certificates_of_another_fmspc_are_passed_over() -> None:
    assert select(tcb(255, 255), [certificate(HIGH, fmspc=bytes(6))], HIGH) is None


def test_nothing_to_choose_from_is_nothing() -> None:
    assert select(HIGH, [], HIGH) is None
