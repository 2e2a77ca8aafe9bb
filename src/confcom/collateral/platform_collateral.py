"""The JSON that Intel's client tool fetches for a caching service without a network (PUT platformcollateral).

The tool keeps signed documents as JSON objects, so white space may have come between; Intel signs compact JSON, and
written compactly again in the same order the bytes are the signed ones. Whether they are, the signature says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import msgspec

from confcom.collateral.documents import Document, DocumentKey, DocumentKind
from confcom.errors import ConfcomError, FormatError
from confcom.formats.signed_json import check_json
from confcom.pki.certificate import load_certificate
from confcom.pki.crl import Crl
from confcom.pki.pem import parse_certificates
from confcom.protocols.pcs import PckCertificateAnswer, PckCertRequest, Tee, Update

STRUCTURE = "platform collateral"
NOT_AVAILABLE = "Not available"

_TCB_INFOS: dict[str, tuple[Tee, Update]] = {
    "tcbinfo": ("sgx", "standard"),
    "tcbinfo_early": ("sgx", "early"),
    "sgx_tcbinfo": ("sgx", "standard"),
    "sgx_tcbinfo_early": ("sgx", "early"),
    "tdx_tcbinfo": ("tdx", "standard"),
    "tdx_tcbinfo_early": ("tdx", "early"),
}
_IDENTITIES: dict[str, DocumentKey] = {
    f"{name}{suffix}": key
    for suffix, update in (("", "standard"), ("_early", "early"))
    for name, key in (
        ("qeidentity", DocumentKey.qe_identity("sgx", "early" if update == "early" else "standard")),
        ("tdqeidentity", DocumentKey.qe_identity("tdx", "early" if update == "early" else "standard")),
        ("qveidentity", DocumentKey(DocumentKind.QVE_IDENTITY, update="early" if update == "early" else "standard")),
    )
}


@dataclass(frozen=True, slots=True)
class PlatformCertificates:
    """A platform's PCK certificates, and the raw TCBs at which it asked for them. Nothing is verified yet."""

    qe_id: bytes
    pce_id: bytes
    requests: tuple[PckCertRequest, ...]
    certificates: tuple[PckCertificateAnswer, ...]


@dataclass(frozen=True, slots=True)
class PlatformCollateral:
    """What the JSON holds. Nothing is verified yet."""

    documents: tuple[Document, ...]
    platforms: tuple[PlatformCertificates, ...]

    @classmethod
    def parse(cls, data: bytes) -> PlatformCollateral:
        """Read the JSON of version 3 or 4; what is malformed is a `FormatError` that names the field."""
        try:
            found = msgspec.json.decode(data, type=_Form)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"not the documented JSON: {error}", structure=STRUCTURE, field="") from error
        try:
            return cls(tuple(_documents(found.collaterals)), tuple(_platforms(found)))
        except ConfcomError as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(error.message, structure=STRUCTURE, field="") from error


class _Platform(msgspec.Struct):
    qe_id: str
    pce_id: str
    cpu_svn: str | None = None
    pce_svn: str | None = None
    enc_ppid: str | None = None
    platform_manifest: str | None = None


class _Cert(msgspec.Struct):
    tcbm: str
    cert: str


class _PckCerts(msgspec.Struct):
    qe_id: str
    pce_id: str
    certs: list[_Cert]


class _Certificates(msgspec.Struct):
    pck: dict[str, str] = msgspec.field(name="SGX-PCK-Certificate-Issuer-Chain", default_factory=dict)
    tcb_v4: str = msgspec.field(name="TCB-Info-Issuer-Chain", default="")
    tcb_v3: str = msgspec.field(name="SGX-TCB-Info-Issuer-Chain", default="")
    identity: str = msgspec.field(name="SGX-Enclave-Identity-Issuer-Chain", default="")


class _Crls(msgspec.Struct):
    processor: str = msgspec.field(name="processorCrl", default="")
    platform: str = msgspec.field(name="platformCrl", default="")


class _Collaterals(msgspec.Struct):
    certificates: _Certificates
    pck_certs: list[_PckCerts] = []
    tcbinfos: list[dict[str, msgspec.Raw]] = []
    pckcacrl: _Crls = msgspec.field(default_factory=_Crls)
    rootcacrl: str = ""
    qeidentity: msgspec.Raw = msgspec.Raw(b'""')
    qeidentity_early: msgspec.Raw = msgspec.Raw(b'""')
    tdqeidentity: msgspec.Raw = msgspec.Raw(b'""')
    tdqeidentity_early: msgspec.Raw = msgspec.Raw(b'""')
    qveidentity: msgspec.Raw = msgspec.Raw(b'""')
    qveidentity_early: msgspec.Raw = msgspec.Raw(b'""')


class _Form(msgspec.Struct):
    collaterals: _Collaterals
    platforms: list[_Platform] = []


def _documents(found: _Collaterals) -> Iterator[Document]:
    chains = found.certificates
    tcb_chain, identity_chain = _chain(chains.tcb_v4 or chains.tcb_v3), _chain(chains.identity)
    for entry in found.tcbinfos:
        fmspc = _hex(_text(entry.get("fmspc"), "fmspc"), "fmspc")
        for name, (tee, update) in _TCB_INFOS.items():
            body = _signed(entry.get(name), name)
            if body:
                yield Document(DocumentKey.tcb_info(tee, fmspc, update), body, tcb_chain)
    for name, key in _IDENTITIES.items():
        body = _signed(getattr(found, name), name)
        if body:
            yield Document(key, body, identity_chain)
    if found.pckcacrl.processor:
        yield _crl(DocumentKey.pck_crl("processor"), found.pckcacrl.processor, _pck_chain(chains, "PROCESSOR"))
    if found.pckcacrl.platform:
        yield _crl(DocumentKey.pck_crl("platform"), found.pckcacrl.platform, _pck_chain(chains, "PLATFORM"))
    if found.rootcacrl:
        yield _crl(DocumentKey.root_ca_crl(), found.rootcacrl, b"")


def _platforms(found: _Form) -> Iterator[PlatformCertificates]:
    chains = found.collaterals.certificates
    for entry in found.collaterals.pck_certs:
        identity = (entry.qe_id.lower(), entry.pce_id.lower())
        own = [one for one in found.platforms if (one.qe_id.lower(), one.pce_id.lower()) == identity]
        answers = [_certificate(chains, cert) for cert in entry.certs if cert.cert != NOT_AVAILABLE]
        qe_id, pce_id = _hex(entry.qe_id, "qe_id"), _hex(entry.pce_id, "pce_id")
        yield PlatformCertificates(qe_id, pce_id, tuple(_requests(own)), tuple(answers))


def _requests(platforms: Sequence[_Platform]) -> Iterator[PckCertRequest]:
    for platform in platforms:
        if platform.cpu_svn and platform.pce_svn:
            yield PckCertRequest(
                cpu_svn=_hex(platform.cpu_svn, "cpu_svn"),
                pce_svn=int.from_bytes(_hex(platform.pce_svn, "pce_svn"), "little"),
                pce_id=_hex(platform.pce_id, "pce_id"),
                qe_id=_hex(platform.qe_id, "qe_id"),
                encrypted_ppid=_hex(platform.enc_ppid, "enc_ppid") if platform.enc_ppid else None,
                platform_manifest=_hex(platform.platform_manifest, "manifest") if platform.platform_manifest else None,
            )


def _signed(raw: msgspec.Raw | None, name: str) -> bytes:
    """The document's bytes, empty if there is none: a string is taken as it is, an object is written compactly."""
    if raw is None:
        return b""
    found = check_json(bytes(raw), f"{STRUCTURE} {name}")
    if isinstance(found, str):
        return found.encode()
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode() if found else b""


def _crl(key: DocumentKey, text: str, chain: bytes) -> Document:
    return Document(key, bytes(Crl.parse(text.encode(), structure=str(key))), chain)


def _chain(text: str) -> bytes:
    return unquote_to_bytes(text)


def _pck_chain(chains: _Certificates, ca: str) -> bytes:
    return _chain(chains.pck.get(ca, ""))


def _certificate(chains: _Certificates, cert: _Cert) -> PckCertificateAnswer:
    pem = unquote_to_bytes(cert.cert)
    (der,) = parse_certificates(pem, structure="PCK certificate", limit=1)
    issuer = load_certificate(der, structure="PCK certificate", field="").issuer.rfc4514_string()
    chain = _pck_chain(chains, "PROCESSOR" if "PCK Processor CA" in issuer else "PLATFORM")
    return PckCertificateAnswer(pem, chain, _hex(cert.tcbm, "tcbm"))


def _text(raw: msgspec.Raw | None, name: str) -> str:
    found = check_json(bytes(raw), f"{STRUCTURE} {name}") if raw is not None else None
    if not isinstance(found, str):
        raise FormatError("is not text", structure=STRUCTURE, field=name)
    return found


def _hex(text: str, name: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise FormatError("is not hexadecimal digits", structure=STRUCTURE, field=name) from error
