"""The targets of the fuzzer: one per parser, and verification as a whole.

A call may raise nothing but the error family. What it asserts are promises that must hold for every input that is
accepted: written back it is the same, and nothing that is accepted says more than what was signed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Literal

from cryptography import x509
from rich.console import Console

from confcom.appraisal.findings import Verdict
from confcom.appraisal.inspection.explain import inspect
from confcom.appraisal.peer import check_binding, check_certificate
from confcom.appraisal.policy import safe_defaults
from confcom.appraisal.policy_file import parse_policy
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import judge
from confcom.cli.inspect import show
from confcom.collateral.bundle import from_json, to_json
from confcom.errors import ConfcomError, FormatError
from confcom.formats.attestation_key_id import AttestationKeyIdList
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.codec import Record
from confcom.formats.evidence import EvidenceFile, OeCustomClaims, OeEvidence, OeReport
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import CertificationData, QeReportCertification, Quote
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.formats.tcb_info import SignedEnclaveIdentity, SignedTcbInfo
from confcom.pki.certificate import Crl, check_p256, load_certificate, load_chain, parse_certificates
from confcom.pki.chain import INTEL_SGX_ROOT_CA, ChainKind, TrustRoot, TrustRoots, VerifiedChain, verify_chain
from confcom.pki.proof import Known, Memory
from confcom.simulator.machine import MachineFile
from fuzzing import admission, certificate_requests, conversations, epc_use, seeds, sources

Nature = Literal["binary", "json", "pem"]


@dataclass(frozen=True, slots=True)
class Target:
    """`call` is given valid inputs first, then mutated ones."""

    name: str
    nature: Nature
    seeds: Callable[[], list[bytes]]
    call: Callable[[bytes], object]


def record(kind: type[Record]) -> Callable[[bytes], None]:
    def call(data: bytes) -> None:
        assert bytes(kind.parse(data)) == data

    return call


def quote(data: bytes) -> None:
    found = Quote.parse(data)
    assert bytes(found) == data
    assert data.startswith(found.signed_bytes)


def evidence(data: bytes) -> None:
    OeCustomClaims.parse(EvidenceFile.parse(data).custom_claims or b"")


def open_enclave(data: bytes) -> None:
    if data[:1] == b"\x01":
        assert bytes(OeReport.parse(data)) == data
    else:
        found = OeEvidence.parse(data)
        assert bytes(found) == data
        _, claims = found.split()
        OeCustomClaims.parse(claims or b"")


def certification_data(data: bytes) -> None:
    if data[1:2] == b"\0":
        entry = CertificationData.parse(data)
        assert bytes(entry) == data
        entry.ppid()
    else:
        assert bytes(QeReportCertification.parse(data)) == data


def key_id_list(data: bytes) -> None:
    assert bytes(AttestationKeyIdList.parse(data)) == data


def pck_extension(data: bytes) -> None:
    found = PckExtension.parse(data)
    assert PckExtension.parse(bytes(found)) == found


def tcb_info(data: bytes) -> None:
    signed = SignedTcbInfo.parse(data)
    # Signed bytes are a piece of the document, never encoded again.
    assert signed.body in data
    signed.tcb_info()


def qe_identity(data: bytes) -> None:
    signed = SignedEnclaveIdentity.parse(data)
    assert signed.body in data
    signed.enclave_identity()


def certificate(data: bytes) -> None:
    found = load_certificate(data, structure="certificate", field="")
    # What it reads, the library reads too, to the same value.
    full = found.in_full()
    assert full.serial_number == found.serial_number
    assert sha256(full.tbs_certificate_bytes).digest() == found.signed_digest
    assert (full.not_valid_before_utc, full.not_valid_after_utc) == (found.not_before, found.not_after)
    _ = full.extensions, found.subject_text, found.issuer_text
    check_p256(found)


def attested_certificate(data: bytes) -> None:
    found = AttestedCertificate.parse(data)
    check_certificate(found, seeds.NOW)
    check_binding(found)
    # Its own signature covers everything else, so no other content is accepted.
    assert found.parts.signed in {AttestedCertificate.parse(seed).parts.signed for seed in _made()}


@cache
def _made() -> list[bytes]:
    return seeds.attested_certificates()


def crl(data: bytes) -> None:
    found = Crl.parse(data)
    found.revoked(1)
    assert Crl.parse(bytes(found)) == found
    found.verify_signature(roots().roots[0].certificate, step="fuzz", what="the list")


@cache
def roots() -> TrustRoots:
    """The simulated root and Intel's."""
    return TrustRoots((*seeds.world().trust_roots.roots, INTEL_SGX_ROOT_CA))


_CHAIN_KINDS: tuple[ChainKind, ...] = ("pck", "tcb-signing", "ca")


def chain(data: bytes) -> None:
    ders = parse_certificates(data, structure="chain")
    with suppress(FormatError):
        assert tuple(one.der for one in load_chain(data, structure="chain").certificates) == ders
    outcomes = [_outcome(ders, kind) for kind in _CHAIN_KINDS]
    # What is known of genuine chains changes no verdict.
    assert [*map(repr, outcomes)] == [repr(_outcome(ders, kind, known())) for kind in _CHAIN_KINDS]
    for one in outcomes:
        assert isinstance(one, ConfcomError) or one.leaf.der in known_certificates()
    errors = [one for one in outcomes if isinstance(one, ConfcomError)]
    if len(errors) == len(outcomes):
        raise errors[0]


def _outcome(ders: Sequence[bytes], kind: ChainKind, known: Known | None = None) -> VerifiedChain | ConfcomError:
    try:
        return verify_chain(ders, roots=roots(), kind=kind, step="fuzz", known=known)
    except ConfcomError as error:
        return error


@cache
def known() -> Known:
    """What a verifier knows after the genuine chains."""
    memory: Known = Memory(64)
    for pem in seeds.chains():
        for kind in _CHAIN_KINDS:
            with suppress(ConfcomError):
                verify_chain(pem, roots=roots(), kind=kind, step="fuzz", known=memory)
    assert len(memory)
    return memory


@cache
def known_certificates() -> frozenset[bytes]:
    return frozenset(seeds.certificates())


def trust_root(data: bytes) -> None:
    found = TrustRoot.from_pem(data)
    assert found.simulated or found.public_key == INTEL_SGX_ROOT_CA.public_key


def bundle(data: bytes) -> None:
    found = from_json(data, source="fuzz")
    again = from_json(to_json(found), source="fuzz")
    assert SignedTcbInfo.parse(again.tcb_info) == SignedTcbInfo.parse(found.tcb_info)
    assert SignedEnclaveIdentity.parse(again.qe_identity) == SignedEnclaveIdentity.parse(found.qe_identity)


def machine_file(data: bytes) -> None:
    found = MachineFile.parse(data)
    assert MachineFile.parse(bytes(found)) == found


@cache
def verifier() -> QuoteVerifier:
    """One for all calls, so that what it remembers is put to the test too."""
    return QuoteVerifier(roots())


POLICY = safe_defaults(accept_simulated=True)


def verify(data: bytes) -> None:
    """Evidence against genuine collateral: whatever is accepted says what was signed, byte for byte."""
    result = judge(data, seeds.collateral(), verifier=verifier(), policy=POLICY, now=seeds.NOW)
    result.as_dict()
    if result.error:
        raise result.error
    assert result.verdict is Verdict.ACCEPTED
    assert result.evidence
    assert result.evidence.quote.signed_bytes == seeds.simulated_quote()[:432]


def verify_collateral(data: bytes) -> None:
    """Genuine evidence against collateral: whatever is accepted has the signed parts untouched."""
    found, genuine = from_json(data, source="fuzz"), seeds.collateral()
    result = judge(seeds.simulated_quote(), found, verifier=QuoteVerifier(roots()), policy=POLICY, now=seeds.NOW)
    result.as_dict()
    if result.error:
        raise result.error
    assert SignedTcbInfo.parse(found.tcb_info).body == SignedTcbInfo.parse(genuine.tcb_info).body
    assert SignedEnclaveIdentity.parse(found.qe_identity).body == SignedEnclaveIdentity.parse(genuine.qe_identity).body
    assert _signed_list(found.root_ca_crl) == _signed_list(genuine.root_ca_crl)
    assert _signed_list(found.pck_crl) == _signed_list(genuine.pck_crl)


def _signed_list(data: bytes) -> bytes:
    return x509.load_der_x509_crl(bytes(Crl.parse(data))).tbs_certlist_bytes


def inspect_anything(data: bytes) -> None:
    document = inspect(data).as_dict()
    assert document["verified"] is False
    json.dumps(document, allow_nan=False)


def inspect_claims(data: bytes) -> None:
    """A token with these claims."""
    claims = base64.urlsafe_b64encode(data).rstrip(b"=") or b"e30"
    inspect_anything(b"eyJhbGciOiJub25lIn0." + claims + b".")


def inspect_for_people(data: bytes) -> None:
    """What is printed holds nothing that could steer a terminal."""
    output = io.StringIO()
    show(inspect(data), Console(file=output, highlight=False, width=200))
    assert all(char == "\n" or char.isprintable() for char in output.getvalue())


_ALL: tuple[Target, ...] = (
    Target("quote", "binary", seeds.quotes, quote),
    Target("evidence", "binary", seeds.evidence, evidence),
    Target("open-enclave", "binary", seeds.wrapped_quotes, open_enclave),
    Target("report", "binary", lambda: [seeds.report()], record(Report)),
    Target("target-info", "binary", lambda: [seeds.qe_report_info()[16:528]], record(TargetInfo)),
    Target("qe-report-info", "binary", lambda: [seeds.qe_report_info()], record(QeReportInfo)),
    Target("certification-data", "binary", seeds.certification_data, certification_data),
    Target("key-id-list", "binary", seeds.key_id_lists, key_id_list),
    Target("pck-extension", "binary", seeds.pck_extensions, pck_extension),
    Target("certificate", "binary", seeds.certificates, certificate),
    Target("attested-certificate", "binary", seeds.attested_certificates, attested_certificate),
    Target("certificate-request", "binary", certificate_requests.requests, certificate_requests.request),
    Target("request-evidence", "binary", certificate_requests.evidence, certificate_requests.signed_evidence),
    Target("request-claims", "binary", certificate_requests.claims, certificate_requests.quoted_claims),
    Target("request-object", "json", certificate_requests.objects, certificate_requests.api_object),
    Target("chain", "pem", seeds.chains, chain),
    Target("trust-root", "pem", lambda: [seeds.world().root_pem(), *seeds.chains()], trust_root),
    Target("crl", "binary", seeds.crls, crl),
    Target("tcb-info", "json", seeds.tcb_infos, tcb_info),
    Target("qe-identity", "json", seeds.qe_identities, qe_identity),
    Target("collateral-bundle", "json", seeds.bundles, bundle),
    Target("collateral-archive", "json", sources.archives, sources.archive),
    Target("pcs-answer", "json", sources.pcs_answers, sources.pcs_answer),
    Target("pcs-request", "pem", sources.pcs_requests, sources.pcs_request),
    Target("aesm-server", "binary", conversations.server_frames, conversations.aesm_server),
    Target("aesm-client", "binary", conversations.client_frames, conversations.aesm_client),
    Target("machine-file", "json", seeds.machine_files, machine_file),
    Target("policy-file", "json", seeds.policy_files, parse_policy),
    Target("process-maps", "binary", epc_use.map_files, epc_use.maps),
    Target("process-files", "binary", epc_use.process_file_seeds, epc_use.process_files),
    Target("epc-objects", "json", epc_use.api_object_seeds, epc_use.api_objects),
    Target("metrics-page", "binary", epc_use.metrics_pages, epc_use.metrics_page),
    Target("pod-review", "json", admission.pod_reviews, admission.pod_review),
    Target("inspect", "binary", seeds.everything, inspect_anything),
    Target("inspect-token", "json", lambda: [b"{}", b'{"exp": 1, "iss": "x", "n": [{"a": null}]}'], inspect_claims),
    Target("inspect-view", "binary", seeds.everything, inspect_for_people),
    Target("verify", "binary", seeds.evidence, verify),
    Target("verify-collateral", "json", seeds.bundles, verify_collateral),
)
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
