"""The JSON that Intel's client tool fetches for a caching service without a network (PUT platformcollateral).

The tool keeps signed documents as JSON objects, so white space may have come between; Intel signs compact JSON, and
written compactly again in the same order the bytes are the signed ones; their signature is verified.

A large site's file has 200 MB. It is read piece by piece, so that no more than one platform of it is in memory, and an
error in one document or platform does not affect the others. Everything is verified before it is kept; what is refused
is reported, and a platform is kept whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from mmap import mmap
from typing import Annotated, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from confcom.collateral.documents import Document, DocumentKey, DocumentKind, missing_document, verify_document
from confcom.collateral.pck_rules import CertificatesUnavailable, select_pck_certificate
from confcom.collateral.store.platforms import (
    PlatformTcb,
    PlatformUpdate,
    VerifiedPck,
    highest,
    own_tcb,
    require_one_processor,
)
from confcom.collateral.store.registrations import Registration
from confcom.collateral.store.store import CollateralStore
from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import decode_json
from confcom.formats.signed_json import MAX_SIGNED_JSON, check_json
from confcom.formats.tcb_info import SignedTcbInfo, TcbInfo
from confcom.pki.certificate import MAX_CRL, Crl, load_certificate, parse_certificates
from confcom.protocols.pcs import (
    ENCRYPTED_PPID_SIZE,
    MAX_PLATFORM_MANIFEST,
    MAX_QE_ID,
    PckCaName,
    PckCertificateAnswer,
    PckCertRequest,
    PckCertsRequest,
    Tee,
    Update,
)

MAX_NAME = 256
"""Bytes of a member's name, with its quotes."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")
# A string, a bracket, or the quote of a string that does not end.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)

Span = tuple[int, int]
"""Where a piece begins, and where it ends."""


class JsonWalk:
    """Goes through the text of one JSON value, forwards; linear in its size.

    `structure` names the text in errors. No piece that is taken whole may have more than `limit` bytes.
    """

    def __init__(self, data: bytes | mmap, *, structure: str, limit: int) -> None:
        self._data = data
        self._structure = structure
        self._limit = limit
        self._at = 0

    def members(self, field: str = "") -> Iterator[str]:
        """The names in the object that begins here; a name that comes twice is refused.

        At each name the walk is at its value, for the caller to go through; else the value is passed over.
        """
        names: set[str] = set()
        self._take(b"{", field)
        if self._peek() == b"}":
            self._at += 1
            return
        while True:
            name = self._name(field)
            if name in names:
                raise self._error("is given twice", name)
            names.add(name)
            self._take(b":", name)
            begin = self._skip_space()
            yield name
            if self._at == begin:
                self.value(name)
            if not self._more(b"}", field):
                return

    def items(self, field: str) -> Iterator[Span]:
        """The items of the array that begins here, each taken whole."""
        self._take(b"[", field)
        if self._peek() == b"]":
            self._at += 1
            return
        while True:
            yield self.value(field)
            if not self._more(b"]", field):
                return

    def value(self, field: str) -> Span:
        """The value that begins here, whole."""
        begin = self._skip_space()
        data, stop = self._data, begin + self._limit
        first = self._peek()
        if first not in (b"{", b"["):
            found = (_STRING if first == b'"' else _SCALAR).match(data, begin, stop)
            if found is None or (found.end() == stop and first != b'"'):
                raise self._unended(begin, field)
            self._at = found.end()
            return begin, self._at
        depth = 0
        for token in _STRUCTURE.finditer(data, begin, stop):
            mark = token.group() if token.end() - token.start() == 1 else b""
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(mark, 0)
            if depth == 0:
                self._at = token.end()
                return begin, self._at
            if mark == b'"':
                break
        raise self._unended(begin, field)

    def end(self) -> None:
        """Refuse text after the value."""
        if self._skip_space() != len(self._data):
            raise self._error("there is more after the end", "")

    def piece(self, span: Span) -> bytes:
        """The text of a piece."""
        return self._data[span[0] : span[1]]

    def _name(self, field: str) -> str:
        begin = self._skip_space()
        found = _STRING.match(self._data, begin, begin + MAX_NAME)
        if found is None:
            raise self._error("has something else than a member", field)
        self._at = found.end()
        try:
            return msgspec.json.decode(found.group(), type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._error(f"has a name that is not JSON: {error}", field) from error

    def _more(self, closing: bytes, field: str) -> bool:
        if self._peek() == closing:
            self._at += 1
            return False
        self._take(b",", field)
        return True

    def _peek(self) -> bytes:
        begin = self._skip_space()
        return self._data[begin : begin + 1]

    def _take(self, mark: bytes, field: str) -> None:
        found = self._peek()
        if found != mark:
            raise self._error(f"expected {mark.decode()}, found {found.decode('latin-1') or 'the end'}", field)
        self._at += 1

    def _skip_space(self) -> int:
        begin = self._at
        # The pattern matches everywhere, if only nothing.
        self._at = _SPACE.match(self._data, begin, begin + self._limit).end()  # type: ignore[union-attr]
        if self._at == begin + self._limit:
            raise self._error(f"has white space of more than {self._limit} bytes", "", begin)
        return self._at

    def _unended(self, begin: int, field: str) -> FormatError:
        if begin + self._limit < len(self._data):
            return self._error(f"has a piece of more than {self._limit} bytes", field, begin)
        return self._error("does not end", field, begin)

    def _error(self, message: str, field: str, at: int | None = None) -> FormatError:
        return FormatError(message, structure=self._structure, field=field, offset=self._at if at is None else at)


STRUCTURE = "platform collateral"
NOT_AVAILABLE = "Not available"
_NOTHING = (b'""', b"null", b"{}")

MAX_PIECE = 2 * MAX_CRL + 4096
"""Bytes of one member: a CRL in hexadecimal digits is the largest."""

MAX_SIGNED = 2 * MAX_SIGNED_JSON
"""Bytes of one signed document; white space and escapes take room."""

MAX_PLATFORM = 1 << 20
"""Bytes of one platform with its certificates: Intel's have some 21 of 2.5 kB, a manifest of 34 kB."""

MAX_PLATFORMS = 200_000
MAX_TCB_INFOS = 5_000
MAX_RAW_TCBS = 100
"""Raw TCBs of one platform."""

T = TypeVar("T")

_TCB_INFOS: dict[str, tuple[Tee, Update]] = {
    "tcbinfo": ("sgx", "standard"),
    "tcbinfo_early": ("sgx", "early"),
    "sgx_tcbinfo": ("sgx", "standard"),
    "sgx_tcbinfo_early": ("sgx", "early"),
    "tdx_tcbinfo": ("tdx", "standard"),
    "tdx_tcbinfo_early": ("tdx", "early"),
}
_IDENTITIES: dict[str, DocumentKey] = {
    "qeidentity": DocumentKey.qe_identity("sgx"),
    "tdqeidentity": DocumentKey.qe_identity("tdx"),
    "qveidentity": DocumentKey(DocumentKind.QVE_IDENTITY, update="standard"),
    "qeidentity_early": DocumentKey.qe_identity("sgx", "early"),
    "tdqeidentity_early": DocumentKey.qe_identity("tdx", "early"),
    "qveidentity_early": DocumentKey(DocumentKind.QVE_IDENTITY, update="early"),
}


@dataclass(frozen=True, slots=True)
class PlatformCertificates:
    """A platform's PCK certificates, and what it asked for: certificates of raw TCBs, or all. Nothing is verified."""

    qe_id: bytes
    pce_id: bytes
    requests: tuple[PckCertRequest | PckCertsRequest, ...]
    certificates: tuple[PckCertificateAnswer, ...]


class PlatformCollateral:
    """The JSON of version 3 or 4, in memory or in a mapped file. Nothing is verified yet.

    JSON that is not of this structure is a `FormatError` at once. What is wrong with a single document or platform is
    one when it is read.
    """

    def __init__(self, data: bytes | mmap) -> None:
        self._walk = JsonWalk(data, structure=STRUCTURE, limit=MAX_PIECE)
        self._members: dict[str, Span] = {}
        self._tcb_infos: list[Span] = []
        self._pck_certs: list[Span] = []
        self._platforms: dict[tuple[str, str], list[Span]] = {}
        for name in self._walk.members():
            if name == "platforms":
                for span in self._walk.items(name):
                    self._index(span)
            elif name == "collaterals":
                self._go_through_collaterals()
        self._walk.end()
        found = self._member("certificates")
        if found is None:
            raise FormatError("is missing", structure=STRUCTURE, field="certificates")
        self._chains = _decode(found, _CERTIFICATES, "certificates")

    def documents(self) -> Iterator[tuple[str, Callable[[], Document | None]]]:
        """What each document is, and the call that reads it; None where Intel's tool got none."""
        for number, span in enumerate(self._tcb_infos):
            try:
                entry = _decode(self._walk.piece(span), _MEMBERS, f"tcbinfos[{number}]")
            except FormatError as error:
                yield f"tcbinfos[{number}]", partial(_raise, error)
                continue
            for name, (tee, update) in _TCB_INFOS.items():
                if name in entry and bytes(entry[name]) not in _NOTHING:
                    yield name, partial(self._tcb_info, entry, name, tee, update)
        for name, key in _IDENTITIES.items():
            text = self._member(name)
            if text is not None and text not in _NOTHING:
                yield name, partial(_identity, key, text, name, unquote_to_bytes(self._chains.identity))
        yield "processorCrl", partial(self._pck_crl, "processor")
        yield "platformCrl", partial(self._pck_crl, "platform")
        yield "rootcacrl", self._root_ca_crl

    def platforms(self) -> Iterator[tuple[str, Callable[[], PlatformCertificates]]]:
        """Which platform each is (its QE_ID as it is written), and the call that reads it."""
        for number, span in enumerate(self._pck_certs):
            try:
                name = _decode(self._platform_piece(span), _IDENTITY, f"pck_certs[{number}]").qe_id
            except FormatError as error:
                yield f"pck_certs[{number}]", partial(_raise, error)
            else:
                yield name, partial(self._platform, span)

    def _go_through_collaterals(self) -> None:
        for name in self._walk.members("collaterals"):
            if name == "pck_certs":
                self._pck_certs = _bounded(self._walk.items(name), MAX_PLATFORMS, name)
            elif name == "tcbinfos":
                self._tcb_infos = _bounded(self._walk.items(name), MAX_TCB_INFOS, name)
            else:
                self._members[name] = self._walk.value(name)

    def _index(self, span: Span) -> None:
        identity = _decode(self._platform_piece(span), _IDENTITY, "platforms")
        spans = self._platforms.setdefault((identity.qe_id.lower(), identity.pce_id.lower()), [])
        if len(spans) <= MAX_RAW_TCBS:  # one more is there to be refused with its platform
            spans.append(span)
        if len(self._platforms) > MAX_PLATFORMS:
            raise FormatError(f"more than {MAX_PLATFORMS} platforms", structure=STRUCTURE, field="platforms")

    def _member(self, name: str) -> bytes | None:
        span = self._members.get(name)
        return None if span is None else self._walk.piece(span)

    def _platform_piece(self, span: Span) -> bytes:
        if span[1] - span[0] > MAX_PLATFORM:
            raise FormatError(f"has more than {MAX_PLATFORM} bytes", structure=STRUCTURE, field="platform")
        return self._walk.piece(span)

    def _tcb_info(self, entry: dict[str, msgspec.Raw], name: str, tee: Tee, update: Update) -> Document:
        fmspc = unhex(_text(entry.get("fmspc"), "fmspc"), STRUCTURE, "fmspc")
        chain = unquote_to_bytes(self._chains.tcb_v4 or self._chains.tcb_v3)
        try:
            key = DocumentKey.tcb_info(tee, fmspc, update)
        except ConfigError as error:
            raise FormatError(error.message, structure=STRUCTURE, field="fmspc") from error
        return Document(key, _signed(bytes(entry[name]), name), chain)

    def _pck_crl(self, ca: PckCaName) -> Document | None:
        found, name = _decode(self._member("pckcacrl") or b"{}", _MEMBERS, "pckcacrl"), f"{ca}Crl"
        text = _decode(bytes(found.get(name, b'""')), _TEXT, f"pckcacrl.{name}")
        return _crl(DocumentKey.pck_crl(ca), text, self._pck_chain(ca))

    def _root_ca_crl(self) -> Document | None:
        return _crl(DocumentKey.root_ca_crl(), _decode(self._member("rootcacrl") or b'""', _TEXT, "rootcacrl"), b"")

    def _platform(self, span: Span) -> PlatformCertificates:
        entry = _decode(self._platform_piece(span), _PCK_CERTS, "pck_certs")
        qe_id, pce_id = unhex(entry.qe_id, STRUCTURE, "qe_id"), unhex(entry.pce_id, STRUCTURE, "pce_id")
        asked = self._platforms.get((entry.qe_id.lower(), entry.pce_id.lower()), ())
        if len(asked) > MAX_RAW_TCBS:
            raise FormatError(
                f"has more than {MAX_RAW_TCBS} raw TCBs: leave the old ones out", structure=STRUCTURE, field="platforms"
            )
        requests = (_decode(self._platform_piece(one), _PLATFORM, "platforms").request(STRUCTURE) for one in asked)
        answers = (self._certificate(cert) for cert in entry.certs if cert.cert != NOT_AVAILABLE)
        return PlatformCertificates(qe_id, pce_id, tuple(filter(None, requests)), tuple(answers))

    def _certificate(self, cert: _Cert) -> PckCertificateAnswer:
        pem = unquote_to_bytes(cert.cert)
        (der,) = parse_certificates(pem, structure="PCK certificate", limit=1)
        issuer = load_certificate(der, structure="PCK certificate", field="").issuer_text
        chain = self._pck_chain("processor" if "PCK Processor CA" in issuer else "platform")
        return PckCertificateAnswer(pem, chain, unhex(cert.tcbm, STRUCTURE, "tcbm"))

    def _pck_chain(self, ca: str) -> bytes:
        return unquote_to_bytes(self._chains.pck.get(ca.upper(), ""))


class _Identity(msgspec.Struct):
    qe_id: str
    pce_id: str


_QeId = Annotated[str, msgspec.Meta(min_length=2, max_length=2 * MAX_QE_ID)]
_PceId = Annotated[str, msgspec.Meta(min_length=4, max_length=4)]


class PlatformForm(msgspec.Struct):
    """A platform as Intel's retrieval tool writes it; numbers are little-endian hexadecimal digits."""

    qe_id: _QeId
    pce_id: _PceId
    cpu_svn: Annotated[str, msgspec.Meta(pattern="^(?:.{32})?$")] | None = None
    pce_svn: Annotated[str, msgspec.Meta(pattern="^(?:.{4})?$")] | None = None
    enc_ppid: Annotated[str, msgspec.Meta(pattern=f"^(?:.{{{2 * ENCRYPTED_PPID_SIZE}}})?$")] | None = None
    platform_manifest: Annotated[str, msgspec.Meta(max_length=2 * MAX_PLATFORM_MANIFEST)] | None = None

    def request(self, structure: str) -> PckCertRequest | PckCertsRequest | None:
        """What its certificates are asked for with; None with neither a raw TCB nor a manifest."""

        def given(field: str) -> bytes | None:
            text: str | None = getattr(self, field)
            return unhex(text, structure, field) if text else None

        qe_id, pce_id = unhex(self.qe_id, structure, "qe_id"), unhex(self.pce_id, structure, "pce_id")
        ppid, manifest = given("enc_ppid"), given("platform_manifest")
        cpu_svn, pce_svn = given("cpu_svn"), given("pce_svn")
        if cpu_svn and pce_svn:
            return PckCertRequest(cpu_svn, int.from_bytes(pce_svn, "little"), pce_id, qe_id, ppid, manifest)
        return None if manifest is None else PckCertsRequest(pce_id, ppid, manifest, qe_id=qe_id)


class _Cert(msgspec.Struct):
    tcbm: str
    cert: str


class _PckCerts(msgspec.Struct):
    qe_id: _QeId
    pce_id: _PceId
    certs: list[_Cert]


class _Certificates(msgspec.Struct):
    pck: dict[str, str] = msgspec.field(name="SGX-PCK-Certificate-Issuer-Chain", default_factory=dict)
    tcb_v4: str = msgspec.field(name="TCB-Info-Issuer-Chain", default="")
    tcb_v3: str = msgspec.field(name="SGX-TCB-Info-Issuer-Chain", default="")
    identity: str = msgspec.field(name="SGX-Enclave-Identity-Issuer-Chain", default="")


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_IDENTITY = msgspec.json.Decoder(_Identity)
_PLATFORM = msgspec.json.Decoder(PlatformForm)
_PCK_CERTS = msgspec.json.Decoder(_PckCerts)
_CERTIFICATES = msgspec.json.Decoder(_Certificates)


def _decode(data: bytes, decoder: msgspec.json.Decoder[T], field: str) -> T:
    return decode_json(data, decoder, STRUCTURE, field)


def _bounded(spans: Iterator[Span], most: int, field: str) -> list[Span]:
    found: list[Span] = []
    for span in spans:
        found.append(span)
        if len(found) > most:
            raise FormatError(f"has more than {most} entries", structure=STRUCTURE, field=field)
    return found


def _raise(error: FormatError) -> NoReturn:
    raise error


def _identity(key: DocumentKey, text: bytes, name: str, chain: bytes) -> Document:
    return Document(key, _signed(text, name), chain)


def _signed(text: bytes, name: str) -> bytes:
    """The document's bytes: a string is taken as it is, an object is written compactly."""
    if len(text) > MAX_SIGNED:
        raise FormatError(f"has more than {MAX_SIGNED} bytes", structure=STRUCTURE, field=name)
    found = check_json(text, f"{STRUCTURE} {name}")
    if isinstance(found, str):
        return found.encode()
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()


def _crl(key: DocumentKey, text: str, chain: bytes) -> Document | None:
    return Document(key, bytes(Crl.parse(text.encode(), structure=str(key))), chain) if text else None


def _text(raw: msgspec.Raw | None, name: str) -> str:
    found = check_json(bytes(raw), f"{STRUCTURE} {name}") if raw is not None else None
    if not isinstance(found, str):
        raise FormatError("is not text", structure=STRUCTURE, field=name)
    return found


def unhex(text: str, structure: str, field: str) -> bytes:
    """Bytes from hexadecimal digits of any number, without blanks between; else a `FormatError`."""
    with suppress(ValueError):
        found = bytes.fromhex(text)
        if 2 * len(found) == len(text):
            return found
    raise FormatError("is not hexadecimal digits", structure=structure, field=field)


SOURCE = "platformcollateral"

BATCH = 20
"""Platforms that are kept in one transaction; other writers wait for so many."""

MAX_FAILURES = 1_000
"""Failures that are kept; more are counted."""


@dataclass(slots=True)
class Taken:
    """What was kept, and what was refused: the name of the document, or the QE_ID of the platform, with the reason."""

    documents: int = 0
    platforms: int = 0
    certificates: int = 0
    refused_documents: list[tuple[str, ConfcomError]] = field(default_factory=list)
    refused_platforms: list[tuple[str, ConfcomError]] = field(default_factory=list)
    refused: int = 0

    def refuse(self, refused: list[tuple[str, ConfcomError]], what: str, error: ConfcomError) -> None:
        self.refused += 1
        if len(refused) < MAX_FAILURES:
            # Without the stack, which would keep the whole piece in memory.
            refused.append((what[:260], error.with_traceback(None)))


def take_platform_collateral(
    store: CollateralStore,
    collateral: PlatformCollateral,
    *,
    now: datetime,
    proceed: Callable[[], None] = lambda: None,
) -> Taken:
    """Verify and keep what is in the JSON. `proceed` is called before each platform, and may end it by an exception.

    Each raw TCB gets the best of the platform's certificates by Intel's rule, and needs the TCB info for it.
    """
    taken = Taken()
    documents = []
    for name, read_document in collateral.documents():
        proceed()
        try:
            if (document := read_document()) is not None:
                documents.append(verify_document(document, roots=store.roots))
        except ConfcomError as error:
            taken.refuse(taken.refused_documents, name, error)
    store.add_verified(documents, seen=now, source=SOURCE)
    taken.documents = len(documents)
    selection = _Selection(store, now)
    batch: list[PlatformUpdate] = []
    for qe_id, read_platform in collateral.platforms():
        proceed()
        try:
            batch.append(selection.update(read_platform()))
        except ConfcomError as error:
            taken.refuse(taken.refused_platforms, qe_id, error)
            continue
        if len(batch) == BATCH:
            _keep(store, batch, taken, now)
            batch = []
    _keep(store, batch, taken, now)
    return taken


def tcb_info_to_select_by(store: CollateralStore, fmspc: bytes, now: datetime) -> TcbInfo:
    """The TCB info in force, which Intel's rule for PCK certificates needs; `CollateralNotFound` if there is none."""
    key = DocumentKey.tcb_info("sgx", fmspc)
    version = store.in_force(key, at=now)
    if version is None:
        raise missing_document(key, "the store, which chooses a PCK certificate for a raw TCB by it,")
    return SignedTcbInfo.parse(store.load(version).body).tcb_info()


class _Selection:
    """Verifies platforms, and selects the certificates for their raw TCBs. Reads each TCB info once."""

    def __init__(self, store: CollateralStore, now: datetime) -> None:
        self._store = store
        self._now = now
        self._tcb_infos: dict[bytes, TcbInfo] = {}

    def update(self, platform: PlatformCertificates) -> PlatformUpdate:
        """What there is to keep of a platform; whatever is wrong with it is raised."""
        verify = self._store.platforms.verify
        new = {answer.certificate: verify(answer, platform.pce_id) for answer in platform.certificates}
        if not new:
            raise CertificatesUnavailable("no PCK certificate is available for this platform")
        require_one_processor(new.values())
        # At its own TCB too, so that it can be selected for any that is as high.
        kept = [(own_tcb(platform.qe_id, platform.pce_id, one.answer), one) for one in new.values()]
        fmspc, chosen = next(iter(new.values())).extension.fmspc, []
        for request in platform.requests:
            if isinstance(request, PckCertRequest):
                raw = PlatformTcb(platform.qe_id, platform.pce_id, request.cpu_svn, request.pce_svn)
                chosen.append((raw, self._best(raw, fmspc, new)))
        registrations = (Registration(request, "cached", self._now, fmspc) for request in platform.requests)
        met = highest(one for _, one in chosen or kept)
        return PlatformUpdate((*kept, *chosen), tuple(registrations), met)

    def _best(self, raw: PlatformTcb, fmspc: bytes, new: dict[bytes, VerifiedPck]) -> VerifiedPck:
        if fmspc not in self._tcb_infos:
            self._tcb_infos[fmspc] = tcb_info_to_select_by(self._store, fmspc, self._now)
        ppid = next(iter(new.values())).extension.ppid
        found = dict(new)
        for answer in self._store.platforms.pck_certificates(raw.qe_id, raw.pce_id):
            if answer.certificate not in new:
                known = self._store.platforms.verify(answer, raw.pce_id)
                # What the machine had before its keys were made again is not for its present key.
                if known.extension.ppid == ppid:
                    found[answer.certificate] = known
        answers = [verified.answer for verified in found.values()]
        tcb_info = self._tcb_infos[fmspc]
        best = select_pck_certificate(answers, cpu_svn=raw.cpu_svn, pce_svn=raw.pce_svn, tcb_info=tcb_info)
        return found[best.certificate]


def _keep(store: CollateralStore, batch: list[PlatformUpdate], taken: Taken, now: datetime) -> None:
    store.platforms.keep(batch, seen=now, source=SOURCE)
    taken.platforms += len(batch)
    taken.certificates += sum(len({id(one) for _, one in update.certificates}) for update in batch)
