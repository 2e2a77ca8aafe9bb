"""Verifications per second of one core: cold (everything anew) and warm (platform and collateral known by content).

Beside dcap-qvl on the same input, and beside the limit: the ECDSA P-256 verifications that each needs, at the speed of
the OpenSSL inside `cryptography`. A real quote is used where the folder of vectors is there, a simulated one elsewhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dcap_qvl  # type: ignore[import-untyped]  # the package carries no types
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from benchmarks.measure import rate, row
from benchmarks.simulated import simulated_input
from confcom.appraisal.collateral import Collateral
from confcom.appraisal.quote import QuoteVerifier
from confcom.collateral.bundle import load_bundle
from confcom.pki.roots import TrustRoots

COLD_VERIFICATIONS = 9
"""Intermediate, PCK, root CRL, PCK CRL, TCB signing, TCB info, QE identity, QE report, quote."""
WARM_VERIFICATIONS = 2
"""QE report and quote."""

REAL = "real/sgx3-00A067110000-dcap_qvl-f8b81014-20250621"
REAL_TIME = 1750503371


@dataclass(frozen=True, slots=True)
class Input:
    """One quote with what it is judged by."""

    name: str
    quote: bytes
    collateral: Collateral
    collateral_json: str
    roots: TrustRoots
    now: datetime


def main() -> None:
    data = _input()
    print(f"  input: {data.name}, {len(data.quote)} bytes, one thread")
    limit = _limit()
    warm_verifier = QuoteVerifier(data.roots)
    cold = rate(lambda: QuoteVerifier(data.roots).verify(data.quote, _fresh(data.collateral), now=data.now))
    warm = rate(lambda: warm_verifier.verify(data.quote, data.collateral, now=data.now))
    peer_collateral = dcap_qvl.QuoteCollateralV3.from_json(data.collateral_json)
    root, now = data.roots.roots[0].certificate_der, int(data.now.timestamp())
    peer = rate(lambda: dcap_qvl.verify_with_root_ca(data.quote, peer_collateral, root, now))
    print(row("one ECDSA P-256 verification (OpenSSL)", limit))
    print(row("dcap-qvl, collateral object reused", peer))
    cold_limit, warm_limit = limit / COLD_VERIFICATIONS, limit / WARM_VERIFICATIONS
    print(row("confcom cold", cold, beside=f"{cold / peer:.2f} x dcap-qvl, {cold / cold_limit:.0%} of the limit"))
    print(row("confcom warm", warm, beside=f"{warm / peer:.2f} x dcap-qvl, {warm / warm_limit:.0%} of the limit"))
    print(row(f"limit cold ({COLD_VERIFICATIONS} verifications)", cold_limit))
    print(row(f"limit warm ({WARM_VERIFICATIONS} verifications)", warm_limit))


def _input() -> Input:
    named = os.environ.get("CONFCOM_VECTORS")
    vectors = Path(named) if named else Path(__file__).resolve().parent.parent.parent / "shared" / "vectors"
    folder = vectors / REAL
    if not folder.is_dir():
        return Input("a simulated quote v3", *simulated_input())
    return Input(
        "a real quote v3",
        (folder / "quote.bin").read_bytes(),
        load_bundle(folder),
        (folder / "collateral.json").read_text(),
        TrustRoots.intel(),
        datetime.fromtimestamp(REAL_TIME, UTC),
    )


def _fresh(collateral: Collateral) -> Collateral:
    # A new object each time, so that nothing computed on an earlier one helps.
    return Collateral(
        tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
        tcb_info=collateral.tcb_info,
        qe_identity_issuer_chain=collateral.qe_identity_issuer_chain,
        qe_identity=collateral.qe_identity,
        root_ca_crl=collateral.root_ca_crl,
        pck_crl=collateral.pck_crl,
        pck_crl_issuer_chain=collateral.pck_crl_issuer_chain,
        source=collateral.source,
    )


def _limit() -> float:
    key = ec.generate_private_key(ec.SECP256R1())
    algorithm = ec.ECDSA(SHA256())
    message = bytes(432)
    signature, public = key.sign(message, algorithm), key.public_key()
    return rate(lambda: public.verify(signature, message, algorithm))
