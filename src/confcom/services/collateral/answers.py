"""Answers of the collateral service as bytes on the wire, the bounded memory of them, and errors with their status."""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from prometheus_client import Counter

from confcom.collateral.documents import DocumentKey
from confcom.collateral.pck_rules import CertificatesUnavailable
from confcom.collateral.store.database import StoreUnavailable
from confcom.errors import (
    CollateralError,
    CollateralNotFound,
    CollateralUnavailable,
    ConfcomError,
    FormatError,
    VerificationError,
)
from confcom.protocols.pcs import HttpResponse
from confcom.services.collateral.cache import AskedTooOften
from confcom.services.collateral.pck_certificates import OtherProcessor, PlatformUnknown
from confcom.services.runtime.http_server import Send

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
NO_STORE = ("Cache-Control", "no-store")
REQUEST_ID = b"Request-ID"
SUCCESS = "Operation successful."
"""The answer of Intel's caching service without other content; its tools show it."""

_REQUEST_ID_FORM = re.compile(rb"[A-Za-z0-9._-]{1,64}")

# The words of Intel's caching service for each status: its clients read the number, its tools show the words.
PCCS_WORDS = {
    400: "Invalid request parameters.",
    401: "Authentication failed.",
    404: "No cache data for this platform.",
    429: "Too many requests.",
    460: "The integrity of the data can't be verified.",
    461: "The platform was not found in the cache.",
    462: "Certificates are not available for certain TCBs.",
    500: "Internal server error occurred.",
    502: "Unable to retrieve the collateral from the Intel SGX PCS.",
    503: "Server is currently unable to process the request.",
}

# The first class that fits decides, so subclasses stand before what they derive from.
STATUSES: tuple[tuple[type[ConfcomError], int], ...] = (
    (AskedTooOften, 429),
    (PlatformUnknown, 461),
    (CertificatesUnavailable, 462),
    (OtherProcessor, 460),
    (CollateralNotFound, 404),
    (StoreUnavailable, 503),
    (CollateralUnavailable, 502),
    (VerificationError, 460),
    (FormatError, 400),
    (CollateralError, 503),
    (ConfcomError, 500),
)


RETRY_AFTER = {429: "60", 503: "2"}
"""Seconds after which a client may ask again."""

# Advice for clients, where the error's default is for the command line.
_ADVICE: dict[type[ConfcomError], str] = {
    FormatError: "Correct this parameter; docs/reference/collateral-service.md lists what each path takes.",
    CollateralNotFound: "Check what is asked for (`confcom inspect QUOTE` shows FMSPC and CA).",
    CollateralUnavailable: "Ask again later; the service's log has the failure of upstream.",
}


class Refused(ConfcomError):
    """A request that is refused before anything is looked for: its status, and headers that go with it."""

    code = "request-refused"
    default_advice = "See docs/reference/collateral-service.md for what each path takes."

    def __init__(
        self, status: int, message: str, *, advice: str | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message, advice=advice)
        self.status = status
        self.headers = headers


def status_of(error: ConfcomError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Refused):
        return error.status
    return next(status for kind, status in STATUSES if isinstance(error, kind))


# An absolute path of two names or more; not the path of a URL. The credentials of a URL.
_PATH = rb"""(?<![\w:/.\\-])(?:/[^\s"'/:,;()\\]+){2,}/?"""
_CREDENTIALS = rb"""(?<=://)[^\s"'/@]+@"""
HIDDEN = b"[...]"


def server_secrets(names: Iterable[str]) -> re.Pattern[bytes]:
    """What no answer may show of the server: these names of files, every other absolute path, credentials of a URL."""
    known = sorted((name.encode() for name in names if name), key=len, reverse=True)
    return re.compile(b"|".join([*map(re.escape, known), _PATH, _CREDENTIALS]))


@dataclass(slots=True)
class Answer:
    """A response, ready to be sent any number of times. Header names keep their case: some clients compare it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    counter: Counter | None = None
    """Counts the requests for it that are answered from memory."""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.headers = [*self.headers, (b"Content-Length", b"%d" % len(self.body))]
        self.size = len(self.body) + sum(len(name) + len(value) for name, value in self.headers)

    async def send(self, id_: bytes, send: Send) -> None:
        headers = [*self.headers, (REQUEST_ID, id_)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def closing(self) -> Answer:
        """The same, after which the connection ends."""
        return Answer(self.status, [*self._own_headers, (b"Connection", b"close")], self.body)

    def without(self, secrets: re.Pattern[bytes]) -> Answer:
        """The same with what matches replaced."""
        headers = [(name, secrets.sub(HIDDEN, value)) for name, value in self._own_headers]
        return Answer(self.status, headers, secrets.sub(HIDDEN, self.body))

    @property
    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        return [item for item in self.headers if item[0] != b"Content-Length"]


def request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The id that the client gave, if it is one that can be repeated to it, else a new one."""
    for name, value in headers:
        if name == b"request-id" and _REQUEST_ID_FORM.fullmatch(value):
            return value
    return uuid.uuid4().hex.encode()


def answer_of(response: HttpResponse, *more: tuple[str, str]) -> Answer:
    """The answer of a protocol's response; `Request-ID` is each request's own."""
    headers = [(name, value) for name, value in (*response.headers, *more) if name != "Request-ID"]
    return Answer(response.status, [(name.encode(), value.encode("latin-1")) for name, value in headers], response.body)


def json_answer(value: object, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """A JSON answer, of this moment: no cache keeps it."""
    return answer_of(HttpResponse(status, (("Content-Type", JSON), NO_STORE, *headers), msgspec.json.encode(value)))


def text_answer(text: str, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """A plain answer, of this moment: no cache keeps it."""
    return answer_of(HttpResponse(status, (("Content-Type", TEXT), NO_STORE, *headers), text.encode()))


def error_answer(
    error: ConfcomError,
    *,
    missing: DocumentKey | None = None,
    plain: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Answer:
    """An error: status and words of Intel's caching service, and in JSON what is missing and what to do.

    `plain` gives the words alone, for a client that asked for text. `more` are further members of the JSON.
    """
    status = status_of(error)
    own = isinstance(error, Refused) and status in (404, 405)  # about the path, not about a platform
    words = error.message if own else PCCS_WORDS.get(status, error.message)
    headers = [("Error-Code", error.code), ("Error-Message", _header_text(error.message))]
    headers += error.headers if isinstance(error, Refused) else ()
    if "Retry-After" not in dict(headers) and status in RETRY_AFTER:
        headers.append(("Retry-After", RETRY_AFTER[status]))
    if plain:
        return text_answer(words, status=status, headers=tuple(headers))
    body: dict[str, Any] = {"error": words, **error.as_dict()}
    if error.advice() == error.default_advice and type(error) in _ADVICE:
        body["advice"] = _ADVICE[type(error)]
    if missing is not None:
        fields = {name: str(value) for name, value in missing.as_dict().items() if value is not None}
        body["missing"] = {"document": fields.pop("kind")} | fields
    body |= more or {}
    return json_answer(body, status=status, headers=tuple(headers))


def _header_text(text: str) -> str:
    """Text that fits a header: printable ASCII, bounded, without blanks at its ends."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:300].strip()


class HotAnswers:
    """Answers by what was asked for, the least used ones dropped. What expired, or the store changed under, is gone."""

    def __init__(self, *, entries: int, size: int) -> None:
        self._entries = entries
        self._room = size
        self._answers: OrderedDict[Hashable, tuple[Answer, float, float]] = OrderedDict()
        self._generation = 0
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of the answers held."""
        return self._size

    def get(self, key: Hashable, now: float, generation: int) -> Answer | None:
        """The answer of a request at `now` (seconds of the caller's clock), if it still holds."""
        if generation != self._generation:
            self._answers.clear()
            self._size, self._generation = 0, generation
        if key not in self._answers:
            return None
        answer, made, until = self._answers[key]
        if not made <= now < until:  # a time before it was made: the clock was set back
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: Hashable, answer: Answer, *, now: float, until: float, generation: int) -> None:
        """Keep an answer that was made now, from the store as it was at that generation."""
        if generation != self._generation or answer.size > self._room:
            return
        if key in self._answers:
            self._drop(key)
        self._answers[key] = (answer, now, until)
        self._size += answer.size
        while len(self._answers) > self._entries or self._size > self._room:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: Hashable) -> None:
        self._size -= self._answers.pop(key)[0].size
