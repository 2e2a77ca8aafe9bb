"""Reads requests that arrive in one piece, as nearly all do, and those for quotes without looking at each of them anew.

What a client library writes for one quote and for the next differs in the report alone. A request is remembered by
what stands around its report, if it is exactly what `request_bytes` would write: then the same bytes around another
report are what it would write for that one, and reading is the inverse of writing.
"""

from __future__ import annotations

from confcom.protocols.aesm import LENGTH_SIZE, MAX_REQUEST
from confcom.protocols.aesm_exchanges import IncompleteRequest, parse_request, request_bytes
from confcom.protocols.aesm_messages import GetQuoteExRequest, Request

MAX_FORMS = 64
"""Forms that are remembered: of each client library one, or one per size of its buffer."""
MAX_FORM = 1024
"""Bytes of a request that is worth remembering; Intel's has 706."""

# Tag and length of the message, tag and length of the report, the report.
_REPORT_AT = 7
_REPORT_END = _REPORT_AT + 432


class RequestReader:
    """Reads the requests of a whole service; `max_request` is the limit of a message in bytes."""

    def __init__(self, max_request: int = MAX_REQUEST) -> None:
        self.max_request = max_request
        self._forms: dict[bytes, GetQuoteExRequest] = {}

    def whole(self, data: bytes) -> Request | IncompleteRequest | None:
        """The request of one frame; None when it is less or more than one, and a `ServerConnection` has to see to it.

        Raises as `ServerConnection.next_event`.
        """
        length = int.from_bytes(data[:LENGTH_SIZE], "little")
        if len(data) != LENGTH_SIZE + length or length > self.max_request:
            return None
        message = data[LENGTH_SIZE:]
        known = self._forms.get(message[:_REPORT_AT] + message[_REPORT_END:])
        if known is None:
            return self._read(message)
        report = message[_REPORT_AT:_REPORT_END]
        return GetQuoteExRequest(report, known.buf_size, known.att_key_id, timeout=known.timeout)

    def _read(self, message: bytes) -> Request | IncompleteRequest:
        request = parse_request(message)
        if (
            isinstance(request, GetQuoteExRequest)
            and request.qe_report_info is None  # its nonce would be another one each time
            and len(message) <= MAX_FORM
            and request.report == message[_REPORT_AT:_REPORT_END]
            and request_bytes(request) == message
        ):
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            self._forms[message[:_REPORT_AT] + message[_REPORT_END:]] = request
        return request
