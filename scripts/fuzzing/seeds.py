"""Valid inputs to begin with: made by the simulator, and real ones where the folder of test vectors is at hand."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from confcom.appraisal.collateral import Collateral
from confcom.collateral.bundle import to_json
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, AttestationKeyIdList
from confcom.formats.evidence import (
    FORMAT_SGX_ECDSA,
    OeCustomClaims,
    OeEvidence,
    OeEvidenceHeader,
    OeReport,
    OeReportHeader,
)
from confcom.formats.quote import Quote
from confcom.formats.sgx import QeReportInfo, Report
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.protocols.aesm import ClientConnection, GetQuoteExRequest
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import MachineFile
from confcom.simulator.world import SimulatedWorld

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@cache
def world() -> SimulatedWorld:
    """The simulated world that all seeds come from."""
    return SimulatedWorld.from_seed(b"seed of the fuzzer", now=NOW)


@cache
def collateral() -> Collateral:
    return world().publish()


@cache
def report() -> bytes:
    enclave = world().machine.launch(EnclaveDeclaration.from_names("fuzzed", "vendor"))
    return bytes(enclave.create_report(world().platform.init_quote().target_info, claims_hash()))


def claims_hash() -> bytes:
    # SHA-256 of nothing, which is what Open Enclave signs when there are no custom claims.
    return bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") + bytes(32)


@cache
def simulated_quote() -> bytes:
    return world().platform.quote(Report.parse(report())).quote


@cache
def vectors() -> Path | None:
    """The folder of real quotes: named by CONFCOM_VECTORS, else beside the checkout."""
    named = os.environ.get("CONFCOM_VECTORS")
    candidate = Path(named) if named else ROOT.parent / "shared" / "vectors"
    return candidate if (candidate / "index.tsv").is_file() else None


@cache
def real_folders() -> tuple[Path, ...]:
    """One folder with collateral per version and TEE of real quotes."""
    folder = vectors()
    if folder is None:
        return ()
    chosen: dict[str, Path] = {}
    for path in sorted((folder / "real").iterdir()):
        if (path / "tcb_info.json").is_file():
            chosen.setdefault(path.name.split("-")[0], path)
    return tuple(chosen.values())


def real(*names: str) -> list[bytes]:
    """The files of these names in those folders."""
    return [(folder / name).read_bytes() for folder in real_folders() for name in names if (folder / name).is_file()]


def quotes() -> list[bytes]:
    return [simulated_quote(), simulated_quote() + bytes(64), *real("quote.bin")]


def wrapped_quotes() -> list[bytes]:
    """Open Enclave's wrappings of a quote."""
    quote, claims = simulated_quote(), bytes(OeCustomClaims((("Event", b"sample\0"), ("key hash", bytes(32)))))
    remote = bytes(OeReport(OeReportHeader(1, 2, len(quote)), quote))
    local = bytes(OeReport(OeReportHeader(1, 1, 432), report()))
    evidence = [
        bytes(OeEvidence(OeEvidenceHeader(3, FORMAT_SGX_ECDSA.bytes, bytes(4), len(quote + tail)), quote + tail))
        for tail in (b"", claims)
    ]
    return [remote, local, *evidence]


def evidence() -> list[bytes]:
    quote = simulated_quote()
    texts = [quote.hex().encode(), base64.b64encode(quote), base64.urlsafe_b64encode(quote).rstrip(b"=")]
    return [*quotes(), *wrapped_quotes(), *texts]


def certification_data() -> list[bytes]:
    """Entries of certification data, and the QE part of a quote, which ends with one."""
    found = []
    for data in quotes():
        certification = Quote.parse(data).signature.certification
        found += [bytes(certification.certification_data), bytes(certification)]
    ids = [number.to_bytes(2, "little") + size.to_bytes(4, "little") + bytes(size) for number, size in _PPID_SIZES]
    return [*found, *ids]


@cache
def attested_certificates() -> list[bytes]:
    """Certificates with evidence for their key: interoperable RA-TLS, Gramine's, Open Enclave's; and public samples."""
    key = ec.derive_private_key(7, ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) + b"\0"
    claims = b"\xa1\x6bpubkey-hash\x58\x24\x82\x01\x58\x20" + sha256(public).digest()
    quotes = [_quote_of(data) for data in (claims, public, pem)]
    dice = (
        b"\xd9\xea\x60\x82\x59"
        + len(quotes[0]).to_bytes(2, "big")
        + quotes[0]
        + b"\x58"
        + bytes((len(claims),))
        + claims
    )
    tail = quotes[2] + pem
    evidence = bytes(OeEvidence(OeEvidenceHeader(3, FORMAT_SGX_ECDSA.bytes, bytes(4), len(tail)), tail))
    contents = (
        ("2.23.133.5.4.9", dice),
        ("0.6.9.42.840.113741.1337.6", quotes[1]),
        ("1.3.6.1.4.1.311.105.2", evidence),
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fuzzed")])
    made = [
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - timedelta(days=1), NOW + timedelta(days=1))
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), content), critical=False)
        .sign(key, SHA256(), ecdsa_deterministic=True)
        .public_bytes(Encoding.DER)
        for oid, content in contents
    ]
    folder = vectors()
    samples = sorted((folder / "certificates").glob("*.pem")) if folder else []
    return made + [parse_certificates(path.read_bytes(), structure="sample")[0] for path in samples]


def _quote_of(data: bytes) -> bytes:
    """A quote with the SHA-256 of the data in its report data."""
    enclave = world().machine.launch(EnclaveDeclaration.from_names("fuzzed", "vendor"))
    target = world().platform.init_quote().target_info
    return world().platform.quote(enclave.create_report(target, sha256(data).digest() + bytes(32))).quote


_PPID_SIZES = ((1, 36), (2, 276), (3, 404))


def qe_report_info() -> bytes:
    enclave = world().machine.launch(EnclaveDeclaration.from_names("fuzzed", "vendor"))
    info = QeReportInfo(bytes(16), enclave.target_info, Report.parse(bytes(432)))
    return bytes(world().platform.quote(Report.parse(report()), None, info).qe_report_info or info)


def chains() -> list[bytes]:
    """PEM chains of every kind."""
    parts = [
        world().authority.pck_chain(world().machine),
        collateral().tcb_info_issuer_chain,
        collateral().pck_crl_issuer_chain,
        world().root_pem(),
    ]
    return [*parts, *real("pck_chain.pem", "tcb_info_issuer_chain.pem", "pck_crl_issuer_chain.pem")]


def certificates() -> list[bytes]:
    """Single certificates in DER."""
    return [der for chain in chains() for der in parse_certificates(chain, structure="seed")]


def pck_extensions() -> list[bytes]:
    """The DER of Intel's SGX extension, with and without what the Platform CA adds."""
    parsed = [load_certificate(der, structure="seed", field="") for der in certificates()]
    return [certificate.extensions.sgx for certificate in parsed if certificate.extensions.sgx is not None]


def crls() -> list[bytes]:
    """Revocation lists in DER and hexadecimal digits, one of them with an entry."""
    other = SimulatedWorld.from_seed(b"seed of the fuzzer, revoked", now=NOW)
    other.authority.revoke_pck(other.machine)
    found = [collateral().root_ca_crl, collateral().pck_crl, other.publish().pck_crl]
    return [*found, found[2].hex().encode(), *real("root_ca_crl.der", "pck_crl.der")]


def tcb_infos() -> list[bytes]:
    return [collateral().tcb_info, *real("tcb_info.json")]


def qe_identities() -> list[bytes]:
    return [collateral().qe_identity, *real("qe_identity.json")]


def bundles() -> list[bytes]:
    return [to_json(collateral()), *real("collateral.json")]


def key_id_lists() -> list[bytes]:
    return [bytes(AttestationKeyIdList((ECDSA_P256_KEY_ID,) * count)) for count in (1, 2, 10)]


def machine_files() -> list[bytes]:
    return [bytes(MachineFile(seed=bytes(32), created=NOW)), bytes(MachineFile(seed=bytes(16), created=NOW, index=7))]


def policy_files() -> list[bytes]:
    digits = b"ab" * 32
    text = b'mr_enclave = ["%s"]\nmr_signer = ["%s"]\nisv_prod_id = 1\nmin_isv_svn = 2\n' % (digits, digits)
    return [text, text + b'accept_tcb = ["UpToDate", "SWHardeningNeeded"]\nallow_debug = true\n']


def tokens() -> list[bytes]:
    """Attestation tokens: the recorded ones, and one of our own making without a signature worth the name."""
    parts = [{"alg": "RS256", "typ": "JWT"}, {"iss": "https://example.org", "exp": 1, "x-ms-sgx-is-debuggable": False}]
    made = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts) + b".AAAA"
    folder = vectors()
    return [made] if folder is None else [made, *(p.read_bytes() for p in sorted(folder.glob("maa/*/token.jwt"))[:3])]


def everything() -> list[bytes]:
    """One or more of each kind that `confcom inspect` knows."""
    structs = [report(), report()[:384], qe_report_info(), qe_report_info()[16:528], bytes(ECDSA_P256_KEY_ID)]
    frame = ClientConnection().send(GetQuoteExRequest(report(), 5000, bytes(ECDSA_P256_KEY_ID), qe_report_info()))
    found = [*structs, frame, *key_id_lists(), *evidence(), *certificates(), *chains(), *crls()]
    return [*found, *tcb_infos(), *qe_identities(), *bundles(), *tokens()]
