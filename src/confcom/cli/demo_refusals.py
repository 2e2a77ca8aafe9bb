"""The evidence that the demonstration shows to be refused: forged, of other enclaves, or for another challenge."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from msgspec import structs

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.findings import Verdict
from confcom.appraisal.policy import AllOf, IsvProdId, MinIsvSvn, MrSigner, Policy, ReportData, safe_defaults
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import AttestationResult, judge
from confcom.collateral.bundle import load_trust_roots
from confcom.errors import PlatformError
from confcom.formats.quote import Quote
from confcom.formats.sgx import ReportBody
from confcom.pki.chain import TrustRoots
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.wiring import declare_enclave, open_machine

PRODUCT, MIN_SVN = 1, 2
SIGNER = "Contoso"
"""Of the sample's declarations; the demonstration expects it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One piece of evidence and the verdict that it must get."""

    title: str
    story: str
    file: str
    evidence: bytes
    roots: TrustRoots
    policy: Policy
    verdict: Verdict
    code: str
    """Of the error; empty when it is to be accepted."""

    def hold(self, collateral: Collateral, now: datetime) -> AttestationResult:
        """Judge it."""
        return judge(self.evidence, collateral, verifier=QuoteVerifier(self.roots), policy=self.policy, now=now)

    def ended_as_expected(self, result: AttestationResult) -> bool:
        """Whether verdict and error are the expected ones."""
        return result.verdict is self.verdict and (result.error.code if result.error else "") == self.code


class Witness:
    """Makes the evidence: enclaves of the simulated machine, quoted by the running quote helper."""

    def __init__(self, machine: Path, socket: Path, root: Path) -> None:
        self._machine = open_machine(machine)
        self._platform = AesmPlatform(socket, simulated=True)
        self.roots = load_trust_roots(root)
        self.challenge = _report_data()

    @property
    def mr_signer(self) -> bytes:
        """MRSIGNER that the policies ask for."""
        return declare_enclave("", SIGNER).mr_signer

    def policy(self, report_data: bytes) -> Policy:
        """What the sample's peers ask of each other."""
        return AllOf(
            safe_defaults(accept_simulated=True),
            MrSigner((self.mr_signer,)),
            IsvProdId(PRODUCT),
            MinIsvSvn(MIN_SVN),
            ReportData(report_data),
        )

    def quote(self, report_data: bytes, *, signer: str = SIGNER, debug: bool = False) -> bytes:
        """A genuine quote of an enclave of that signer."""
        declaration = declare_enclave("a build of the sample", signer, isv_prod_id=PRODUCT, isv_svn=2, debug=debug)
        return EnclaveQuoteSource(self._platform, self._machine.launch(declaration)).quote(report_data).quote

    def trials(self) -> tuple[Trial, ...]:
        """All trials; the genuine quote first, so that the refusals are meaningful."""
        challenge, earlier = self.challenge, _report_data()
        genuine = self.quote(challenge)
        policy, roots = self.policy(challenge), self.roots

        def trial(title: str, story: str, file: str, evidence: bytes, verdict: Verdict, code: str) -> Trial:
            return Trial(title, story, file, evidence, roots, policy, verdict, code)

        return (
            trial("A genuine quote", "nothing was changed", "quote.bin", genuine, Verdict.ACCEPTED, ""),
            trial(
                "A forged quote", "its security version was raised from 2 to 9", "forged-version.bin",
                with_other_version(genuine), Verdict.INVALID, "signature-invalid",
            ),
            trial(
                "A quote signed by another key", "the forger replaced signature and key by his own",
                "forged-key.bin", signed_by_another_key(genuine), Verdict.INVALID, "binding-mismatch",
            ),
            trial(
                "A debug enclave", "genuine, but the host can read its memory", "debug.bin",
                self.quote(challenge, debug=True), Verdict.REFUSED, "policy-refused",
            ),
            trial(
                "A wrong signer", "genuine, but Mallory built this enclave", "other-signer.bin",
                self.quote(challenge, signer="Mallory"), Verdict.REFUSED, "policy-refused",
            ),
            trial(
                "A recorded quote", "genuine, but it answers an earlier challenge", "recorded.bin",
                self.quote(earlier), Verdict.REFUSED, "policy-refused",
            ),
            replace(
                trial(
                    "The genuine quote, trusting Intel alone", "the default of every verifier",
                    "quote.bin", genuine, Verdict.INVALID, "root-untrusted",
                ),
                roots=TrustRoots.intel(),
            ),
        )  # fmt: skip


def _report_data() -> bytes:
    return sha256(secrets.token_bytes(32)).digest() + bytes(32)


def with_other_version(evidence: bytes) -> bytes:
    """The quote with another ISVSVN in its signed part."""
    quote = Quote.parse(evidence)
    return bytes(structs.replace(quote, body=replace(_enclave(quote), isv_svn=9)))


def signed_by_another_key(evidence: bytes) -> bytes:
    """The quote with a forger's key in place of the attestation key, and a signature that matches it."""
    quote = Quote.parse(evidence)
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    r, s = utils.decode_dss_signature(key.sign(quote.signed_bytes, ec.ECDSA(SHA256())))
    forged = structs.replace(
        quote.signature,
        signature=r.to_bytes(32, "big") + s.to_bytes(32, "big"),
        attestation_key=numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"),
    )
    return bytes(structs.replace(quote, signature=forged))


def _enclave(quote: Quote) -> ReportBody:
    if not isinstance(quote.body, ReportBody):  # pragma: no cover - the simulated machine has no TDs
        raise PlatformError("the simulated machine made a quote of a TD")
    return quote.body
