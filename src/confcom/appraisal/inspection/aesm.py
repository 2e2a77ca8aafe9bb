"""Explains AESM frames: the one request or response in them, with the SGX structs that they carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from confcom.appraisal.inspection.items import Inspection, Item, attempt, bytes_item, group, words
from confcom.appraisal.inspection.quotes import (
    key_id_items,
    key_id_list_items,
    qe_report_info_items,
    quote_group,
    report_items,
    target_info_items,
)
from confcom.errors import RemoteProtocolError
from confcom.formats.attestation_key_id import AttestationKeyId, AttestationKeyIdList
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.protocols.aesm import (
    EXCHANGES,
    Exchange,
    IncompleteRequest,
    Request,
    Response,
    Value,
    exchange_of,
    parse_request,
    parse_response,
    response_bytes,
    values_of,
)

LENGTH_SIZE = 4

_STRUCTS: Mapping[str, Callable[[bytes], tuple[Item, ...]]] = {
    "report": lambda data: report_items(Report.parse(data)),
    "target_info": lambda data: target_info_items(TargetInfo.parse(data)),
    "qe_report_info": lambda data: qe_report_info_items(QeReportInfo.parse(data)),
    "att_key_id": lambda data: key_id_items(AttestationKeyId.parse(data)),
    "selected_att_key_id": lambda data: key_id_items(AttestationKeyId.parse(data)),
    "att_key_id_list": lambda data: key_id_list_items(AttestationKeyIdList.parse(data)),
    "att_key_ids": lambda data: key_id_list_items(AttestationKeyIdList.parse(data)),
}
_NAMES = {"targetInfo": "target_info", "status": "update_status"}
"""Fields of EPID's responses as they are shown; `status` is the errorCode."""
_MEANINGS = {
    "timeout": "in a unit that differs from client to client; ignored",
    "buf_size": "bytes that the client has room for",
    "b_pub_key_id": "whether the id of the attestation key is wanted",
    "pub_key_id": "SHA-256 of attestation key and authentication data",
    "quote_size": "bytes of the next quote",
}


def inspect_frame(data: bytes, encoding: str) -> Inspection | None:
    """A frame explained; None when what is behind the length is no AESM message.

    Requests and responses share their numbers, so many a frame can be read as either. The one that, written again,
    gives the same bytes is the one that was meant; then a whole request, then a response, then a part of a request.
    """
    payload = data[LENGTH_SIZE:]
    request, answer = _request(payload), _response(payload)
    if answer and response_bytes(*answer) == payload:
        return _response_found(*answer, data, encoding)
    if isinstance(request, IncompleteRequest):
        return _response_found(*answer, data, encoding) if answer else _request_found(request, data, encoding)
    if request is not None:
        return _request_found(request, data, encoding)
    return _response_found(*answer, data, encoding) if answer else None


def _request(payload: bytes) -> Request | IncompleteRequest | None:
    try:
        return parse_request(payload)
    except RemoteProtocolError:
        return None


def _response(payload: bytes) -> tuple[Response, Exchange] | None:
    for exchange in EXCHANGES:
        try:
            return parse_response(payload, exchange), exchange
        except RemoteProtocolError:
            continue
    return None


def _request_found(request: Request | IncompleteRequest, data: bytes, encoding: str) -> Inspection:
    exchange = exchange_of(request)
    extra: tuple[Item, ...] = ()
    if isinstance(request, IncompleteRequest):
        extra = (words("missing", request.missing, "the service answers this with an error"),)
    items = (*_head(exchange, data, "request"), *extra, *_items(values_of(request)))
    return Inspection("aesm-request", f"AESM request {exchange.name}", encoding, len(data), items)


def _response_found(response: Response, exchange: Exchange, data: bytes, encoding: str) -> Inspection:
    status = Item("status", int(response.status), response.status.name)
    values = {_NAMES.get(name, name): value for name, value in values_of(response).items()}
    items = (*_head(exchange, data, "response"), status, *_items(values))
    return Inspection("aesm-response", f"AESM response to {exchange.name}", encoding, len(data), items)


def _head(exchange: Exchange, data: bytes, what: str) -> tuple[Item, ...]:
    return (
        Item("length", len(data) - LENGTH_SIZE, "bytes of protobuf behind it", 0, LENGTH_SIZE),
        Item("number", exchange.number, f"field of the {what}"),
        Item("name", exchange.name),
    )


def _items(values: Mapping[str, Value]) -> Iterable[Item]:
    for name, value in values.items():
        if isinstance(value, bytes):
            yield _bytes(name, value)
        elif value is not None:
            yield Item(name, value, _MEANINGS.get(name, ""))


def _bytes(name: str, value: bytes) -> Item:
    explain = _STRUCTS.get(name)
    if name == "quote" and any(value):
        return quote_group(name, value)
    if explain is None or not value:
        return bytes_item(name, value, _MEANINGS.get(name, ""))
    return attempt(name, lambda: group(name, explain(value), f"{len(value)} bytes"))
