"""AdmissionReview v1 of Kubernetes: what the API server asks a webhook, and the answers to it; pure.

The object under review stays the JSON that it came as. Nothing of it is read into a type that might not know a field.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from confcom.errors import FormatError
from confcom.protocols.json_patch import Operation

API_VERSION = "admission.k8s.io/v1"
MAX_REVIEW = 8 << 20
"""Bytes. The API server takes objects up to 3 MiB, and sends the former one along with an update."""
MAX_UID = 64
"""Characters; Kubernetes makes UUIDs of 36. It is repeated in the answer."""
MAX_WARNING = 256
"""Characters of a warning that reach whoever asked."""
MAX_WARNINGS = 12
MAX_MESSAGE = 4096
"""Characters of a refusal."""

Json = dict[str, Any]


class AdmissionRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the API server is about to do. `object` is what shall be stored, `old_object` what an update replaces.

    Both are JSON that is not decoded yet: see `parse_object`.
    """

    uid: Annotated[str, msgspec.Meta(max_length=MAX_UID)]
    operation: str
    object: msgspec.Raw
    namespace: str = ""
    name: str = ""
    sub_resource: str = ""
    old_object: msgspec.Raw = msgspec.Raw(b"null")
    dry_run: bool | None = None


class _Review(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: str
    kind: str
    request: AdmissionRequest


_DECODER = msgspec.json.Decoder(_Review)
# A number with an exponent takes 20 µs to be read; the API server sends amounts as text.
_OBJECT_DECODER = msgspec.json.Decoder(Json | None, float_hook=str)


def parse_review(data: bytes) -> AdmissionRequest:
    """Read an AdmissionReview; `FormatError` for anything else."""
    if len(data) > MAX_REVIEW:
        raise _malformed(f"longer than {MAX_REVIEW} bytes")
    try:
        review = _DECODER.decode(data)
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise _malformed(str(error)) from error
    if review.api_version != API_VERSION or review.kind != "AdmissionReview":
        raise _malformed(f"not an AdmissionReview of {API_VERSION}")
    return review.request


def count_values(data: msgspec.Raw) -> int:
    """At most how many values an object has, by what separates them; such signs in its texts count as well.

    It takes a millisecond for a megabyte, where making the values takes up to a hundred.
    """
    text = bytes(data)
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def parse_object(data: msgspec.Raw) -> Json:
    """The object of a review, empty for null; `FormatError` for anything else."""
    try:
        return _OBJECT_DECODER.decode(data) or {}
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise _malformed(str(error)) from error


def allowance(uid: str, *, patch: Sequence[Operation] = (), warnings: Sequence[str] = ()) -> bytes:
    """The answer that lets an object through, changed by a patch if there is one."""
    answer: Json = {"uid": uid, "allowed": True}
    if patch:
        answer |= {"patchType": "JSONPatch", "patch": b64encode(msgspec.json.encode(patch)).decode()}
    return _answer(answer, warnings)


def refusal(
    uid: str, message: str, *, status: int = 422, reason: str = "Invalid", warnings: Sequence[str] = ()
) -> bytes:
    """The answer that turns an object away; `message` is what the person reads who wanted it."""
    about = {"code": status, "reason": reason, "message": message[:MAX_MESSAGE]}
    return _answer({"uid": uid, "allowed": False, "status": about}, warnings)


def _answer(answer: Json, warnings: Sequence[str]) -> bytes:
    if warnings:
        answer["warnings"] = [warning[:MAX_WARNING] for warning in warnings[:MAX_WARNINGS]]
    return msgspec.json.encode({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": answer})


def _malformed(message: str) -> FormatError:
    return FormatError(message, structure="AdmissionReview", field="", advice="Only the API server is expected here.")
