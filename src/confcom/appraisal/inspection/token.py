"""Explains attestation tokens (JWT): header and claims, decoded by hand because nothing here believes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from confcom.appraisal.inspection.items import Item, group, listing
from confcom.errors import FormatError
from confcom.formats.text import decode_base64, members_once

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
    "sub": "about whom",
    "aud": "for whom",
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
