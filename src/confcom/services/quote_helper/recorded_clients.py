"""What the clients of the AESM protocol put on the wire, and what each of them needs in the answer.

Recorded from Intel's libraries (`libsgx_dcap_ql`, `libsgx_quote_ex`), Open Enclave 0.19, Gramine and Fortanix'
aesm-client 0.6. Key id and report are filled in; all else is as it was sent, down to Intel's uninitialised buffer size
and Fortanix' timeouts in microseconds. A new helper answers these before it takes over, so that no update can change
what an old client gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from confcom.errors import ProtocolError
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.protocols import aesm as m
from confcom.protocols.aesm import NEED_DATA, IncompleteRequest, Response, ServerConnection, exchange_of, parse_response
from confcom.protocols.aesm_status import AesmStatus

NONCE: Final = bytes(range(16))
LENGTH_AT: Final = 432
"""Where a quote says how long its signature data is."""

_KEY = bytes(ECDSA_P256_KEY_ID)


@dataclass(frozen=True, slots=True)
class Material:
    """What a replay is filled with: a report for the present QE or anything of its size, and the quote's size."""

    report: bytes
    target_info: bytes
    quote_size: int
    accepted: bool
    """Whether the platform is to accept the report."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One frame of one client. `complaint` says what of an answer the client could not use; empty: nothing."""

    client: str
    frame: Callable[[Material], bytes]
    complaint: Callable[[Response, Material], str]


def replay(recorded: RecordedRequest, material: Material, exchange: Callable[[bytes], bytes]) -> str:
    """Send the frame; says what is wrong with the answer, empty when the client can use it."""
    frame = recorded.frame(material)
    server = ServerConnection()
    server.receive_data(frame)
    request = server.next_event()
    if request is NEED_DATA or isinstance(request, IncompleteRequest):  # pragma: no cover - a mistake in this module
        return "the recorded frame is not a whole request"
    answer = exchange(frame)
    if len(answer) < 4 or int.from_bytes(answer[:4], "little") != len(answer) - 4:
        return f"the answer is not one frame ({len(answer)} bytes)"
    try:
        row = exchange_of(request)  # type: ignore[arg-type]
        response = parse_response(answer[4:], row)
    except ProtocolError as error:
        return error.message
    complaint = recorded.complaint(response, material)
    return f"{row.name}: {complaint}" if complaint else ""


# What clients need.


def _one_key(response: Response, _: Material) -> str:
    good = isinstance(response, m.GetSupportedAttKeyIdNumResponse) and response.att_key_id_num == 1
    return _status(response) or ("" if good else "one key id is expected")


def _key_list(response: Response, _: Material) -> str:
    # Open Enclave looks for algorithm 2 in it; Fortanix wants exactly 256 bytes per id.
    good = isinstance(response, m.GetSupportedAttKeyIdsResponse) and response.att_key_ids == _KEY
    return _status(response) or ("" if good else "the list is not the id of Intel's ECDSA QE, 256 bytes")


def _selected(response: Response, _: Material) -> str:
    good = isinstance(response, m.SelectAttKeyIdResponse) and response.selected_att_key_id == _KEY
    return _status(response) or ("" if good else "the selected id is not the caller's own")


def _step_1(response: Response, _: Material) -> str:
    good = (
        isinstance(response, m.InitQuoteExResponse)
        and response.target_info == bytes(512)
        and response.pub_key_id_size == 32
        and response.pub_key_id is None  # Intel's client would write it to a null pointer
    )
    return _status(response) or ("" if good else "step 1 needs 512 zeros, size 32 and no key")


def _step_2(response: Response, material: Material) -> str:
    good = (
        isinstance(response, m.InitQuoteExResponse)
        and response.target_info == material.target_info
        and len(response.pub_key_id or b"") == response.pub_key_id_size == 32
    )
    return _status(response) or ("" if good else "step 2 needs the QE's target info and a key of 32 bytes")


def _size(response: Response, material: Material) -> str:
    good = isinstance(response, m.GetQuoteSizeExResponse) and response.quote_size == material.quote_size
    return _status(response) or ("" if good else f"the size is not that of the quote, {material.quote_size}")


def _exact_quote(response: Response, material: Material) -> str:
    return _quote(response, material, material.quote_size)


def _padded_quote(response: Response, material: Material) -> str:
    return _quote(response, material, 8192)


def _quote_with_report(response: Response, material: Material) -> str:
    info = response.qe_report_info if isinstance(response, m.GetQuoteExResponse) else None
    # Fortanix cuts at 528 without looking, on errors too.
    if info is None or len(info) != 960 or info[:528] != NONCE + material.target_info:
        return "the QE report info did not come back"
    return _quote(response, material, material.quote_size)


def _quote(response: Response, material: Material, length: int) -> str:
    if not material.accepted:
        refused = response.status is AesmStatus.INVALID_REPORT
        return "" if refused else f"a report with a wrong MAC is answered with {response.status.name}"
    quote = (response.quote if isinstance(response, m.GetQuoteExResponse) else None) or b""
    whole = len(quote) == length and LENGTH_AT + 4 + int.from_bytes(quote[432:436], "little") == material.quote_size
    return _status(response) or ("" if whole else f"the quote has {len(quote)} bytes, expected {length}")


def _no_epid(response: Response, _: Material) -> str:
    return "" if response.status is AesmStatus.SERVICE_UNAVAILABLE else f"status {response.status.name}"


def _status(response: Response) -> str:
    return "" if response.status is AesmStatus.SUCCESS else f"status {response.status.name}"


# What clients send.


def _frame(number: int, *fields: bytes) -> Callable[[Material], bytes]:
    body = b"".join(fields)
    return lambda _: _framed(number, body)


def _framed(number: int, body: bytes) -> bytes:
    message = _varint(number << 3 | 2) + _varint(len(body)) + body
    return len(message).to_bytes(4, "little") + message


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _quote_frame(*tail: bytes, size: int | None = None, qe_report: bool = False) -> Callable[[Material], bytes]:
    def fill(material: Material) -> bytes:
        info = _bytes(3, NONCE + material.target_info + bytes(432)) if qe_report else b""
        length = _number(4, material.quote_size if size is None else size)
        return _framed(17, b"".join((_bytes(1, material.report), _bytes(2, _KEY), info, length, *tail)))

    return fill


_ID = _bytes(1, _KEY)
MILLISECONDS = _number(9, 15000)  # Intel's timeout
MICROSECONDS = _number(9, 30_000_000)  # Fortanix'
UNINITIALISED = _number(4, 140104990781472)  # what was in libsgx_dcap_ql's memory
_INTEL, _OE, _GRAMINE, _FORTANIX = "Intel libsgx_dcap_ql", "Open Enclave", "Gramine", "Fortanix aesm-client"

RECORDED: tuple[RecordedRequest, ...] = (
    RecordedRequest(_INTEL, _frame(15, _ID, _number(3, 0), UNINITIALISED, MILLISECONDS), _step_1),
    RecordedRequest(_INTEL, _frame(15, _ID, _number(3, 1), _number(4, 32), MILLISECONDS), _step_2),
    RecordedRequest(_INTEL, _frame(16, _ID, MILLISECONDS), _size),
    RecordedRequest(_INTEL, _quote_frame(MILLISECONDS), _exact_quote),
    RecordedRequest("Intel ukey_exchange", _quote_frame(MILLISECONDS, qe_report=True), _quote_with_report),
    RecordedRequest(
        "Intel libsgx_quote_ex", _frame(19, _bytes(1, bytes(4) + b"\1\0\0\0" + _KEY), _number(2, 15000)), _selected
    ),
    RecordedRequest("an EPID client", _frame(1, MILLISECONDS), _no_epid),
    RecordedRequest(_OE, _frame(21, MILLISECONDS), _one_key),
    RecordedRequest(_OE, _frame(22, _number(1, 256), MILLISECONDS), _key_list),
    RecordedRequest(_OE, _frame(15, _ID, _number(3, 0), MILLISECONDS), _step_1),
    RecordedRequest(_GRAMINE, _frame(15, _ID, _number(3, 1), _number(4, 32)), _step_2),
    RecordedRequest(_GRAMINE, _quote_frame(size=8192), _padded_quote),
    RecordedRequest(_FORTANIX, _frame(21, MICROSECONDS), _one_key),
    RecordedRequest(_FORTANIX, _frame(22, _number(1, 256), MICROSECONDS), _key_list),
    RecordedRequest(_FORTANIX, _frame(15, _ID, _number(3, 0), MICROSECONDS), _step_1),
    RecordedRequest(_FORTANIX, _frame(15, _ID, _number(3, 1), _number(4, 32)), _step_2),
    RecordedRequest(_FORTANIX, _frame(16, _ID, MICROSECONDS), _size),
    RecordedRequest(_FORTANIX, _quote_frame(MICROSECONDS, qe_report=True), _quote_with_report),
)
