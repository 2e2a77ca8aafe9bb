"""Explains what Intel signs: certificates, revocation lists and JSON documents; and attestation tokens (JWT)."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from confcom.appraisal.collateral import CollateralJson
from confcom.appraisal.inspection.items import Item, attempt, bytes_item, group, listing, time_item, words
from confcom.errors import FormatError
from confcom.formats.arguments import decode_base64, members_once
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckExtension, SgxType
from confcom.formats.sgx import Attributes
from confcom.formats.tcb_info import (
    EnclaveIdentity,
    EnclaveIdentityId,
    IsvSvnLevel,
    SignedEnclaveIdentity,
    SignedTcbInfo,
    TcbInfo,
    TcbLevel,
    TcbStatus,
)
from confcom.pki.certificate import MAX_CERTIFICATE, Crl
from confcom.pki.chain import INTEL_ROOT_PUBLIC_KEY
from confcom.pki.der import UNREADABLE, der_reason

# Certificates of Intel's PKI with their SGX extension, chains of them, and revocation lists.

MAX_SHOWN_CERTIFICATES = 16
MAX_SHOWN_REVOCATIONS = 200

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_ROLES = (
    ("SGX PCK Certificate", "certifies the key (PCK) of one platform at one TCB"),
    ("SGX PCK Processor CA", "issues PCK certificates of single-package machines"),
    ("SGX PCK Platform CA", "issues PCK certificates of registered machines"),
    ("SGX TCB Signing", "signs TCB infos and enclave identities"),
    ("SGX Root CA", "the root: everything stands on its key"),
)
_SGX_TYPES = {
    SgxType.STANDARD: "standard",
    SgxType.SCALABLE: "scalable (memory encrypted, no integrity tree)",
    SgxType.SCALABLE_WITH_INTEGRITY: "scalable with integrity",
}

_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
           "key_cert_sign", "crl_sign")  # fmt: skip


def certificates_of_pem(data: bytes) -> list[bytes]:
    """The DER of each CERTIFICATE block, whatever stands around the blocks; verification is stricter."""
    found: list[bytes] = []
    for match in islice(_BLOCK.finditer(data), MAX_SHOWN_CERTIFICATES + 1):
        try:
            found.append(base64.b64decode(b"".join(match[1].split()), validate=True))
        except binascii.Error as error:
            raise FormatError(f"not base64: {error}", structure="PEM", field="", offset=match.start()) from error
    if not found:
        raise FormatError("no whole CERTIFICATE block", structure="PEM", field="")
    if len(found) > MAX_SHOWN_CERTIFICATES:
        raise FormatError(f"more than {MAX_SHOWN_CERTIFICATES} certificates", structure="PEM", field="")
    return found


def certificate_items(der: bytes, field: str = "") -> tuple[Item, ...]:
    """A certificate of any PKI: subject, issuer, validity, key, and what Intel's extension says."""
    if len(der) > MAX_CERTIFICATE:
        message = f"{len(der)} bytes are over the limit {MAX_CERTIFICATE}"
        raise FormatError(message, structure="certificate", field=field)
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The library reads these when they are asked for.
        subject, _ = certificate.subject.rfc4514_string(), (certificate.issuer, certificate.public_key())
        _ = certificate.extensions
    except UNREADABLE as error:
        message = f"not an X.509 certificate: {der_reason(error)}"
        raise FormatError(message, structure="certificate", field=field) from error
    role = next((text for name, text in _ROLES if name in subject), "")
    issued = "itself: a root" if certificate.issuer == certificate.subject else ""
    return (
        Item("subject", subject, role),
        Item("issuer", certificate.issuer.rfc4514_string(), issued),
        Item("serial", f"{certificate.serial_number:x}"),
        time_item("not_before", certificate.not_valid_before_utc),
        time_item("not_after", certificate.not_valid_after_utc),
        _public_key(certificate),
        Item("signature_algorithm", certificate.signature_algorithm_oid.dotted_string, _algorithm(certificate)),
        Item("sha256", sha256(der).hexdigest(), f"of the certificate, {len(der)} bytes"),
        *_extensions(certificate),
    )


def chain_item(name: str, ders: Iterable[bytes]) -> Item:
    """Certificates one after the other; one that cannot be read does not hide the others."""
    members = (
        attempt(f"{number}", lambda der=der, number=number: _member(der, number))  # type: ignore[misc]
        for number, der in enumerate(ders, start=1)
    )
    return listing(name, members)


def _member(der: bytes, number: int) -> Item:
    items = certificate_items(der, f"certificate {number}")
    return group(f"{number}", items, str(items[0].value))


def _algorithm(certificate: x509.Certificate) -> str:
    known = certificate.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256
    return "ecdsa-with-SHA256" if known else "not ecdsa-with-SHA256: not of Intel's PKI"


def _public_key(certificate: x509.Certificate) -> Item:
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        intel = "; the key of Intel's SGX root" if point == INTEL_ROOT_PUBLIC_KEY else ""
        return bytes_item("public_key", point, f"{key.curve.name}, uncompressed point{intel}")
    return Item("public_key", type(key).__name__.removeprefix("_"), "not an elliptic curve: not of Intel's PKI")


def _extensions(certificate: x509.Certificate) -> Iterable[Item]:
    for extension in certificate.extensions:
        match extension.value:
            case x509.BasicConstraints(ca=ca, path_length=length):
                yield Item("is_ca", ca, "" if length is None else f"with at most {length} further CAs below it")
            case x509.KeyUsage() as usage:
                yield words("key_usage", [name for name in _USAGES if getattr(usage, name)])
            case x509.SubjectKeyIdentifier(digest=digest):
                yield bytes_item("subject_key_id", digest)
            case x509.AuthorityKeyIdentifier(key_identifier=identifier) if identifier:
                yield bytes_item("authority_key_id", identifier)
            case x509.CRLDistributionPoints() as points:
                uris = [str(name.value) for point in points for name in point.full_name or ()]
                yield words("crl_distribution_points", uris, "where its revocation list is")
            case x509.UnrecognizedExtension(oid=oid, value=value) if oid.dotted_string == PCK_EXTENSION_OID:
                yield attempt("sgx_extension", lambda value=value: _sgx_extension(value))  # type: ignore[misc]
            case _:
                yield Item(extension.oid.dotted_string, "present", "an extension that Intel's PKI does not use")


def _sgx_extension(der: bytes) -> Item:
    found = PckExtension.parse(der)
    items = [
        bytes_item("fmspc", found.fmspc, "family, model, stepping, platform, custom SKU: which TCB info applies"),
        bytes_item("pce_id", found.pce_id, "PCE-ID"),
        bytes_item("ppid", found.ppid, "PPID, names the processor package"),
        Item("pce_svn", found.tcb.pce_svn, "PCESVN"),
        words("sgx_components", found.tcb.sgx_components, "SVNs that TCB levels are matched with"),
        bytes_item("cpu_svn", found.tcb.cpu_svn, "CPUSVN"),
        Item("sgx_type", int(found.sgx_type), _SGX_TYPES[found.sgx_type]),
    ]
    if found.platform_instance_id is not None:
        items.append(bytes_item("platform_instance_id", found.platform_instance_id, "names the registered platform"))
    if found.configuration is not None:
        configuration = found.configuration
        items += [
            Item("dynamic_platform", configuration.dynamic_platform, "whether packages can be added"),
            Item("cached_keys", configuration.cached_keys, "whether Intel keeps the platform's root keys"),
            Item("smt_enabled", configuration.smt_enabled, "whether hyper-threading is on"),
        ]
    return group("sgx_extension", items, "Intel's SGX extension: which platform, at which TCB")


def crl_items(data: bytes) -> tuple[Item, ...]:
    """A revocation list: issuer, dates and entries."""
    crl = Crl.parse(data)
    found = x509.load_der_x509_crl(bytes(crl))
    shown = [
        group("", [Item("serial", f"{entry.serial_number:x}"), time_item("date", entry.revocation_date_utc)])
        for entry in islice(found, MAX_SHOWN_REVOCATIONS)
    ]
    rest = f", the first {MAX_SHOWN_REVOCATIONS} of them here" if len(found) > MAX_SHOWN_REVOCATIONS else ""
    return (
        Item("issuer", crl.issuer_text),
        Item("number", str(crl.number), "counts up with every issue"),
        time_item("this_update", crl.this_update),
        time_item("next_update", crl.next_update, "to be replaced by then"),
        *(bytes_item("authority_key_id", identifier) for identifier in _authority_key_id(found)),
        listing("revoked", shown, f"{len(found)} certificates{rest}"),
    )


def _authority_key_id(found: x509.CertificateRevocationList) -> Iterable[bytes]:
    for extension in found.extensions:
        if extension.oid == ExtensionOID.AUTHORITY_KEY_IDENTIFIER:
            identifier = extension.value.key_identifier
            if identifier:
                yield identifier


# JSON: Intel's signed documents, sets of collateral (dcap.md §3.2 to §3.4), and tokens, whose header and claims are
# decoded by hand, because nothing here believes them.

_STATUSES = {
    TcbStatus.UP_TO_DATE: "nothing is left to do",
    TcbStatus.SW_HARDENING_NEEDED: "the enclave's own code must mitigate what is open",
    TcbStatus.CONFIGURATION_NEEDED: "the machine's configuration leaves something open",
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: "configuration and the enclave's own code leave something open",
    TcbStatus.OUT_OF_DATE: "updates are missing",
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: "updates are missing, and the configuration leaves something open",
    TcbStatus.REVOKED: "must not be trusted",
}
_ENCLAVES = {
    EnclaveIdentityId.QE: "quoting enclave for SGX",
    EnclaveIdentityId.TD_QE: "quoting enclave for TDX",
    EnclaveIdentityId.QVE: "quote verification enclave",
    EnclaveIdentityId.QAE: "quote appraisal enclave",
}
_SIGNED = "r‖s by Intel's TCB signing key, over the exact bytes of the inner object"


def signed_tcb_info_items(signed: SignedTcbInfo) -> tuple[Item, ...]:
    """A TCB info with its signature."""
    return (*tcb_info_items(signed.tcb_info()), bytes_item("signature", signed.signature, _SIGNED))


def tcb_info_items(info: TcbInfo) -> tuple[Item, ...]:
    """A TCB info: for which platforms, of when, and its levels from the highest down."""
    return (
        Item("id", info.id),
        Item("version", info.version),
        time_item("issue_date", info.issue_date),
        time_item("next_update", info.next_update, "to be replaced by then"),
        bytes_item("fmspc", info.fmspc, "for PCK certificates with this FMSPC"),
        bytes_item("pce_id", info.pce_id, "and this PCE-ID"),
        Item("tcb_type", info.tcb_type),
        Item("tcb_evaluation_data_number", info.tcb_evaluation_data_number, "counts up with every TCB recovery"),
        *_tdx_modules(info),
        listing("tcb_levels", map(_level, info.tcb_levels), "highest first; the first that is low enough applies"),
    )


def _tdx_modules(info: TcbInfo) -> Iterable[Item]:
    if info.tdx_module is not None:
        module = info.tdx_module
        yield group(
            "tdx_module",
            [
                bytes_item("mr_signer", module.mr_signer, "zero means Intel"),
                bytes_item("attributes", module.attributes),
                bytes_item("attributes_mask", module.attributes_mask),
            ],
            "TDX module of major version 0",
        )
    if info.tdx_module_identities:
        members = (
            group(
                "",
                [
                    Item("id", identity.id),
                    bytes_item("mr_signer", identity.mr_signer, "zero means Intel"),
                    bytes_item("attributes", identity.attributes),
                    bytes_item("attributes_mask", identity.attributes_mask),
                    listing("tcb_levels", map(_isv_svn_level, identity.tcb_levels)),
                ],
                identity.id,
            )
            for identity in info.tdx_module_identities
        )
        yield listing("tdx_module_identities", members, "TDX modules of later major versions")


def _level(level: TcbLevel) -> Item:
    items = [*_judgement(level), words("sgx_components", level.sgx_components), Item("pce_svn", level.pce_svn)]
    if level.tdx_components is not None:
        items.append(words("tdx_components", level.tdx_components))
    return group("", items, f"{level.tcb_status} of {level.tcb_date:%Y-%m-%d}")


def _isv_svn_level(level: IsvSvnLevel) -> Item:
    items = [Item("isv_svn", level.isv_svn), *_judgement(level)]
    return group("", items, f"ISVSVN {level.isv_svn} and higher: {level.tcb_status} of {level.tcb_date:%Y-%m-%d}")


def _judgement(level: TcbLevel | IsvSvnLevel) -> Iterable[Item]:
    yield Item("tcb_status", level.tcb_status.value, _STATUSES[level.tcb_status])
    yield time_item("tcb_date", level.tcb_date, "what was known then is fixed in it")
    yield words("advisory_ids", level.advisory_ids, "what is open")


def signed_identity_items(signed: SignedEnclaveIdentity) -> tuple[Item, ...]:
    """An enclave identity with its signature."""
    return (*identity_items(signed.enclave_identity()), bytes_item("signature", signed.signature, _SIGNED))


def identity_items(identity: EnclaveIdentity) -> tuple[Item, ...]:
    """An enclave identity: what a legitimate one looks like, and its levels from the highest down."""
    flags = ", ".join(Attributes.parse(identity.attributes).flag_names)
    return (
        Item("id", identity.id.value, _ENCLAVES[identity.id]),
        Item("version", identity.version),
        time_item("issue_date", identity.issue_date),
        time_item("next_update", identity.next_update, "to be replaced by then"),
        Item("tcb_evaluation_data_number", identity.tcb_evaluation_data_number, "counts up with every TCB recovery"),
        bytes_item("mr_signer", identity.mr_signer, "MRSIGNER that it must have"),
        Item("isv_prod_id", identity.isv_prod_id, "ISVPRODID that it must have"),
        bytes_item("misc_select", identity.misc_select),
        bytes_item("misc_select_mask", identity.misc_select_mask, "bits that must agree"),
        bytes_item("attributes", identity.attributes, f"flags: {flags}"),
        bytes_item("attributes_mask", identity.attributes_mask, "bits that must agree"),
        listing("tcb_levels", map(_isv_svn_level, identity.tcb_levels), "highest first"),
    )


_COLLATERAL_JSON = msgspec.json.Decoder(CollateralJson)


def collateral_items(data: bytes) -> tuple[Item, ...]:
    """A set of collateral; a part that cannot be read does not hide the others."""
    try:
        found = _COLLATERAL_JSON.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a set of collateral: {error}", structure="collateral", field="") from error
    return (
        _chain("pck_crl_issuer_chain", found.pck_crl_issuer_chain),
        _crl("root_ca_crl", found.root_ca_crl),
        _crl("pck_crl", found.pck_crl),
        _chain("tcb_info_issuer_chain", found.tcb_info_issuer_chain),
        attempt("tcb_info", lambda: _tcb_info(found)),
        _chain("qe_identity_issuer_chain", found.qe_identity_issuer_chain),
        attempt("qe_identity", lambda: _qe_identity(found)),
        *([_chain("pck_certificate_chain", found.pck_certificate_chain)] if found.pck_certificate_chain else []),
    )


def _chain(name: str, text: str) -> Item:
    return attempt(name, lambda: chain_item(name, certificates_of_pem(text.encode())))


def _crl(name: str, text: str) -> Item:
    return attempt(name, lambda: group(name, crl_items(text.encode())))


def _tcb_info(found: CollateralJson) -> Item:
    signed = SignedTcbInfo(found.tcb_info.encode(), _signature(found.tcb_info_signature, "tcb_info_signature"))
    return group("tcb_info", signed_tcb_info_items(signed))


def _qe_identity(found: CollateralJson) -> Item:
    signature = _signature(found.qe_identity_signature, "qe_identity_signature")
    return group("qe_identity", signed_identity_items(SignedEnclaveIdentity(found.qe_identity.encode(), signature)))


def _signature(text: str, field: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise FormatError("is not hexadecimal", structure="collateral", field=field) from error


# Attestation tokens.

MAX_TOKEN = 256 * 1024
"""Bytes. Azure's take 4 to 12 kB."""
MAX_DEPTH = 24
"""Levels of nested claims that are shown."""

# A header is a JSON object, and base64url of an opening brace begins like this.
TOKEN = re.compile(rb"e[w-z0-9_-][A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

_TIMES = {"iat": "issued", "nbf": "not valid before", "exp": "not valid after"}
_MEANINGS = {
    "alg": "how it is said to be signed",
    "jku": "where the keys are said to be; a verifier must know the issuer by itself",
    "kid": "which key",
    "iss": "who is said to have issued it",
    "sub": "subject: what the token is about",
    "aud": "audience: the relying parties that may accept it",
    "jti": "number of the token",
    "nonce": "chosen by the relying party",
    "x-ms-ver": "version of the claims",
    "x-ms-attestation-type": "kind of evidence",
    "x-ms-policy-hash": "hash of the policy that judged the evidence",
    "x-ms-sgx-is-debuggable": "whether the enclave's memory is open to the host",
    "x-ms-sgx-mrenclave": "MRENCLAVE: which build",
    "x-ms-sgx-mrsigner": "MRSIGNER: who signed the enclave",
    "x-ms-sgx-product-id": "ISVPRODID",
    "x-ms-sgx-svn": "ISVSVN",
    "x-ms-sgx-report-data": "what the enclave itself says: 64 free bytes",
    "x-ms-sgx-ehd": "held data: what hashes into the report data",
    "x-ms-runtime": "held data, read as JSON: what hashes into the report data",
    "x-ms-sgx-collateral": "hashes of the quote and the collateral that were judged",
    "x-ms-compliance-status": "what the service thinks of the platform",
}


def token_items(data: bytes) -> tuple[Item, ...]:
    """Header, claims and signature of a token in JWS compact form."""
    if len(data) > MAX_TOKEN:
        raise FormatError(f"{len(data)} bytes are over the limit {MAX_TOKEN}", structure="token", field="")
    parts = data.strip().split(b".")
    if len(parts) != 3:
        raise FormatError(f"has {len(parts)} parts, expected 3", structure="token", field="")
    header, claims = _object(parts[0], "header"), _object(parts[1], "claims")
    signature = _base64url(parts[2], "signature")
    return (
        group("header", _members(header, MAX_DEPTH), "what the issuer says about the token"),
        group("claims", _members(claims, MAX_DEPTH), "NOT verified: anyone can write these"),
        Item("signature", signature.hex(), "not checked" if signature else "none: this token is not signed at all"),
    )


def _base64url(text: bytes, field: str) -> bytes:
    try:
        return decode_base64(text.decode("latin-1"))
    except ValueError as error:
        raise FormatError(str(error), structure="token", field=field) from error


def _object(text: bytes, field: str) -> dict[str, Any]:
    try:
        found = json.loads(
            _base64url(text, field), parse_constant=_no_number, parse_float=_finite, object_pairs_hook=members_once
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"not JSON: {error}", structure="token", field=field) from error
    if not isinstance(found, dict):
        raise FormatError("is not a JSON object", structure="token", field=field)
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _members(found: dict[str, Any], depth: int) -> Iterable[Item]:
    return (_item(name, value, depth) for name, value in found.items())


def _item(name: str, value: Any, depth: int) -> Item:  # noqa: ANN401 - claims are whatever the issuer wrote
    meaning = _MEANINGS.get(name, "")
    if isinstance(value, (dict, list)) and depth == 0:
        return Item(name, "…", "nested too deeply to show")
    if isinstance(value, dict):
        return group(name, _members(value, depth - 1), meaning)
    if isinstance(value, list):
        return listing(name, (_item("", member, depth - 1) for member in value), meaning)
    return Item(name, value, _time(name, value) or meaning)


def _time(name: str, value: object) -> str:
    if name not in _TIMES or isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    try:
        return f"{_TIMES[name]} {datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"{_TIMES[name]}: no such time"
