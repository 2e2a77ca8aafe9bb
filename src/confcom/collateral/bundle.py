"""What a relying party has in files: collateral, the roots that it trusts, and its policy.

Collateral is a folder with one file per part, or one `collateral.json` in dcap-qvl's form (dcap.md §3.4). A folder
never adds trust: a root certificate in it is ignored. What is read here is checked for its form, so that an error can
name the file; whether it is genuine is for `verify_collateral` to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from confcom.appraisal.collateral import Collateral, CollateralJson
from confcom.errors import CollateralInvalid, CollateralNotFound, ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import without_bom
from confcom.formats.signed_json import MAX_SIGNED_JSON, check_json
from confcom.formats.tcb_info import SignedEnclaveIdentity, SignedTcbInfo
from confcom.input_file import read_bounded
from confcom.pki.certificate import MAX_CRL, MAX_PEM, Crl, parse_certificates
from confcom.pki.chain import TrustRoot, TrustRoots

if TYPE_CHECKING:
    from confcom.appraisal.policy_file import PolicyFile

BUNDLE_JSON = "collateral.json"

MAX_BUNDLE_JSON = 40 << 20
"""Bytes. Both CRLs at their limit in hexadecimal, and room for the rest."""


class _Part(NamedTuple):
    names: tuple[str, ...]
    limit: int
    parse: Callable[[bytes], object]


def _chain(name: str) -> _Part:
    return _Part((f"{name}.pem",), MAX_PEM, partial(parse_certificates, structure="chain"))


def _crl(name: str) -> _Part:
    # The content, not the name, says how it is encoded.
    return _Part(tuple(f"{name}.{ending}" for ending in ("der", "pem", "hex", "crl")), MAX_CRL, Crl.parse)


_FILES: dict[str, _Part] = {
    "tcb_info_issuer_chain": _chain("tcb_info_issuer_chain"),
    "tcb_info": _Part(("tcb_info.json",), MAX_SIGNED_JSON, SignedTcbInfo.parse),
    "qe_identity_issuer_chain": _chain("qe_identity_issuer_chain"),
    "qe_identity": _Part(("qe_identity.json",), MAX_SIGNED_JSON, SignedEnclaveIdentity.parse),
    "root_ca_crl": _crl("root_ca_crl"),
    "pck_crl": _crl("pck_crl"),
    "pck_crl_issuer_chain": _chain("pck_crl_issuer_chain"),
    "pck_certificate_chain": _chain("pck_chain"),
}
"""Of each part the names that its file may have, its largest size in bytes, and what checks its form."""

_FETCH_ADVICE = "Export the collateral again (`confcom collateral export`), or fetch it (`confcom collateral fetch`)."


_EXPECTED = (
    f"Name a folder of collateral files or a {BUNDLE_JSON} (`confcom collateral import` also takes the archive of an "
    f"export). {_FETCH_ADVICE}"
)


def load_bundle(path: Path | str) -> Collateral:
    """Read a folder with one file per part, a folder with a `collateral.json`, or such a file.

    What is not there is `CollateralNotFound`; what is too large or not of its form is `CollateralInvalid`, which names
    the file. A chain may be percent-encoded, as services send it in a header.
    """
    path = Path(path)
    # os.path: what may not be looked at is reported when it is read.
    if not os.path.isdir(path):  # noqa: PTH112
        return _load_json(path)
    in_parts = any(os.path.isfile(path / name) for name in _FILES["tcb_info"].names)  # noqa: PTH113
    if not in_parts and os.path.isfile(path / BUNDLE_JSON):  # noqa: PTH113
        return _load_json(path / BUNDLE_JSON)
    files = {part: _read_part(path, part) for part in _FILES}
    parts = {part: found[1] if found else None for part, found in files.items()}
    places = {part: found[0] for part, found in files.items() if found}
    return Collateral(**parts, source=str(path), places=places)  # type: ignore[arg-type]


def load_trust_roots(*paths: Path | str) -> TrustRoots:
    """Trust the roots in these files, each of one certificate in PEM, and no other; a `ConfigError` names the file."""
    roots = []
    for path in paths:
        data = _read_settings(path, MAX_PEM)
        try:
            roots.append(TrustRoot.from_pem(data))
        except (FormatError, ConfigError) as error:
            advice = "Name a file with one root certificate in PEM."
            raise ConfigError(f"the trust root {path}: {error.message}", advice=advice) from error
    return TrustRoots(tuple(roots))


def load_policy(path: Path | str) -> PolicyFile:
    """Read a policy file (docs/reference/policy-file.md); a `ConfigError` names what is wrong.

    Of the result, `policy()` is what `accept_quote` and `judge` take, and `grace` their argument of that name.
    """
    # Here, because most who read collateral have no policy.
    from confcom.appraisal.policy_file import MAX_POLICY, parse_policy

    return parse_policy(_read_settings(path, MAX_POLICY), name=str(path))


def _read_settings(path: Path | str, limit: int) -> bytes:
    """The content of a file, at most one byte more than `limit`, which the parsers then refuse."""
    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def save_bundle(collateral: Collateral, folder: Path, *, beside: Mapping[str, bytes] | None = None) -> None:
    """Write one file per part into the folder, which is made if need be; parts of an earlier bundle are replaced.

    `beside` are further files by name. Nothing is replaced before everything is written.
    """
    import tempfile  # here: reading a bundle does without

    files = dict(beside or {})
    for part, (names, _, _) in _FILES.items():
        if (data := getattr(collateral, part)) is not None:
            files[_name_for(data, names)] = data
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as drafts:
            for name, data in files.items():
                (Path(drafts) / name).write_bytes(data)
            for name in {name for names, _, _ in _FILES.values() for name in names} - files.keys():
                (folder / name).unlink(missing_ok=True)
            for name in files:
                (Path(drafts) / name).replace(folder / name)
    except OSError as error:
        raise ConfigError(
            f"the collateral cannot be written to {folder}: {error.strerror}",
            advice="Name a folder that can be written.",
        ) from error


def to_json(collateral: Collateral) -> bytes:
    """The collateral in dcap-qvl's form: CRLs as hexadecimal DER, signed JSON as text with its signature beside it."""
    tcb_info = SignedTcbInfo.parse(collateral.tcb_info)
    qe_identity = SignedEnclaveIdentity.parse(collateral.qe_identity)
    chain = collateral.pck_certificate_chain
    return msgspec.json.encode(
        CollateralJson(
            pck_crl_issuer_chain=_text(collateral.pck_crl_issuer_chain, "pck_crl_issuer_chain"),
            root_ca_crl=bytes(Crl.parse(collateral.root_ca_crl, structure="root CA CRL")).hex(),
            pck_crl=bytes(Crl.parse(collateral.pck_crl, structure="PCK CRL")).hex(),
            tcb_info_issuer_chain=_text(collateral.tcb_info_issuer_chain, "tcb_info_issuer_chain"),
            tcb_info=_text(tcb_info.body, "tcb_info"),
            tcb_info_signature=tcb_info.signature.hex(),
            qe_identity_issuer_chain=_text(collateral.qe_identity_issuer_chain, "qe_identity_issuer_chain"),
            qe_identity=_text(qe_identity.body, "qe_identity"),
            qe_identity_signature=qe_identity.signature.hex(),
            pck_certificate_chain=None if chain is None else _text(chain, "pck_certificate_chain"),
        )
    )


def from_json(data: bytes, *, source: str) -> Collateral:
    """Collateral from dcap-qvl's form; anything else is `CollateralInvalid`, which names the field."""
    found = _decode(data, source)
    tcb_info = SignedTcbInfo(_body(found.tcb_info), _signature(found.tcb_info_signature, "tcb_info", source))
    qe_identity = SignedEnclaveIdentity(
        _body(found.qe_identity), _signature(found.qe_identity_signature, "qe_identity", source)
    )
    chain = found.pck_certificate_chain
    collateral = Collateral(
        tcb_info_issuer_chain=_decoded_chain(found.tcb_info_issuer_chain.encode()),
        tcb_info=bytes(tcb_info),
        qe_identity_issuer_chain=_decoded_chain(found.qe_identity_issuer_chain.encode()),
        qe_identity=bytes(qe_identity),
        root_ca_crl=found.root_ca_crl.encode(),
        pck_crl=found.pck_crl.encode(),
        pck_crl_issuer_chain=_decoded_chain(found.pck_crl_issuer_chain.encode()),
        source=source,
        pck_certificate_chain=None if chain is None else _decoded_chain(chain.encode()),
        places={part: f"{part} in {source}" for part in _FILES},
    )
    for part in _FILES:
        _check_form(getattr(collateral, part), part, collateral.places[part])
    # The text must be the object and nothing around it, or the document made of it would say something else.
    for name, document in (("tcb_info", tcb_info), ("qe_identity", qe_identity)):
        if type(document).parse(bytes(document)) != document:
            raise CollateralInvalid("is not one JSON object", document=collateral.places[name])
    return collateral


_BUNDLE_JSON = msgspec.json.Decoder(CollateralJson)


def _decode(data: bytes, source: str) -> CollateralJson:
    if len(data) > MAX_BUNDLE_JSON:
        raise CollateralInvalid(f"{len(data)} bytes are over the limit {MAX_BUNDLE_JSON}", document=source)
    try:
        found = _BUNDLE_JSON.decode(data.removesuffix(b"\0"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"not a collateral bundle: {_other(data) or error}"
        raise CollateralInvalid(message, document=source, advice=_EXPECTED) from error
    try:
        check_json(data, "bundle")
    except FormatError as error:
        raise CollateralInvalid.of(error, source) from error
    return found


def _other(data: bytes) -> str:
    """What the file is instead of a bundle; empty for JSON objects that are nothing known, or damaged bundles."""
    # Here, because only a file that is no bundle needs it.
    from confcom.appraisal.inspection.explain import inspect

    try:
        found = inspect(data)
    except ConfcomError as error:
        return "" if data.lstrip().startswith(b"{") else error.message.removeprefix("input: ")
    return f"this is {found.title}"


def _body(text: str) -> bytes:
    # Buffers of Intel's libraries end with a NUL that is counted in their size.
    return text.removesuffix("\0").encode()


def _signature(text: str, document: str, source: str) -> bytes:
    try:
        signature = bytes.fromhex(text)
    except ValueError:
        signature = b""
    if len(signature) != 64 or len(text) != 128:
        raise CollateralInvalid("is not 128 hexadecimal digits", document=f"{document}_signature in {source}")
    return signature


def _text(data: bytes, field: str) -> str:
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"is not UTF-8 text: {error}", structure="Collateral", field=field) from error


def _load_json(path: Path) -> Collateral:
    data = _read(path, MAX_BUNDLE_JSON)
    if data is None:
        raise CollateralNotFound(f"there is no collateral at {path}", advice=_EXPECTED)
    return from_json(data, source=str(path))


def _read_part(folder: Path, part: str) -> tuple[str, bytes] | None:
    """The file that holds a part, and what it holds."""
    names, limit, _ = _FILES[part]
    for name in names:
        data = _read(folder / name, limit)
        if data is not None:
            data = _decoded_chain(data) if part.endswith("_chain") else data
            _check_form(data, part, str(folder / name))
            return str(folder / name), data
    if part == "pck_certificate_chain":
        return None
    raise CollateralNotFound(f"{folder / names[0]} is missing from the collateral bundle", advice=_FETCH_ADVICE)


def _read(path: Path, limit: int) -> bytes | None:
    """The file's content, None when there is no such file; never more than the limit is read."""
    try:
        data = read_bounded(path, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CollateralNotFound(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise CollateralInvalid(f"larger than {limit} bytes", document=str(path))
    return without_bom(data)


def _check_form(data: bytes | None, part: str, place: str) -> None:
    if data is None:
        return
    try:
        _FILES[part].parse(data)
    except FormatError as error:
        raise CollateralInvalid.of(error, place) from error


def _decoded_chain(data: bytes) -> bytes:
    """A chain as PEM: services send it percent-encoded in a header, and people keep it as it came."""
    return unquote_to_bytes(data) if b"-----BEGIN%20" in data else data


def _name_for(data: bytes, names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return names[0]
    if b"-----BEGIN X509 CRL-----" in data:
        return names[1]
    return names[0] if data.startswith(b"0") else names[2]
