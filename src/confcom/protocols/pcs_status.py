"""What a status other than 200 of PCS, PCCS or THIM means: which error, whether to ask again (dcap.md §7.1, §7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

from confcom.errors import CollateralError, CollateralNotFound, CollateralUnavailable
from confcom.protocols.pcs import HttpResponse, Request, describe

MAX_EXPLANATION = 300
"""Characters of what a service says about its failure that are passed on."""

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    error: type[CollateralError]
    words: str
    advice: str


_NOT_THERE = "Check the FMSPC, the CA and the kind of quote (`confcom inspect QUOTE` shows them)."
_LATER = "Ask again later, name another source, or use what the store holds."
_MEANINGS: dict[int, _Meaning] = {
    400: _Meaning(
        CollateralNotFound, "the service does not understand the request", f"{_NOT_THERE} It may not know this set."
    ),
    401: _Meaning(
        CollateralUnavailable,
        "the service wants a valid key",
        "Give the subscription key of Intel's service, or the token of the caching service.",
    ),
    403: _Meaning(CollateralUnavailable, "the service forbids it", "Check the key and who may use the service."),
    404: _Meaning(CollateralNotFound, "the service has none", f"{_NOT_THERE} A caching service may have to be filled."),
    410: _Meaning(
        CollateralNotFound,
        "the service has given it up",
        "This interface version or this TCB evaluation data number is no longer served: use version 4 and a newer "
        "set, or a store that kept the old one.",
    ),
    429: _Meaning(CollateralUnavailable, "the service asks for fewer requests", "Wait, then ask less often."),
    460: _Meaning(
        CollateralNotFound,
        "what is known of the platform failed the service's integrity check",
        "Register the platform again, with its manifest.",
    ),
    461: _Meaning(
        CollateralNotFound,
        "the service does not know the platform",
        "Register the platform with Intel, then ask again.",
    ),
    462: _Meaning(
        CollateralNotFound,
        "there are no certificates for the platform's present TCB",
        "Update BIOS and microcode, or ask again after Intel has issued certificates for it.",
    ),
}


def status_error(request: Request, response: HttpResponse, *, service: str) -> CollateralError:
    """The error of a response whose status is not 200: what was asked, what the service said, what to do."""
    meaning = _MEANINGS.get(response.status) or _other(response.status)
    said = explanation(response)
    message = f"{describe(request)}: {meaning.words} ({service} answered {response.status}{said})"
    return meaning.error(message, advice=meaning.advice)


def explanation(response: HttpResponse) -> str:
    """What the service says about a failure, made safe to print; empty or beginning with a comma."""
    parts = [response.header("Error-Code") or "", response.header("Error-Message") or ""]
    if not any(parts):
        parts = [response.body[:MAX_EXPLANATION].decode("utf-8", "replace")]
    text = " ".join(_printable(part) for part in parts if part).strip()
    request_id = _printable(response.header("Request-ID") or "")[:64]
    said = f", {text[:MAX_EXPLANATION]!r}" if text else ""
    return said + (f", Request-ID {request_id}" if request_id else "")


def retry_after(response: HttpResponse) -> float | None:
    """Seconds that the service asks to wait, None where it does not say.

    The header is a number of seconds or a date; a date is taken relative to the response's own `Date`, so that the
    clocks of the two sides do not matter.
    """
    text = (response.header("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    until, now = _http_date(text), _http_date(response.header("Date") or "")
    if until is None or now is None:
        return None
    return max(0.0, (until - now).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else None


def _other(status: int) -> _Meaning:
    if status in RETRYABLE or status >= 500:
        return _Meaning(CollateralUnavailable, "the service is not able to answer", _LATER)
    if 300 <= status < 400:
        return _Meaning(
            CollateralUnavailable, "the service points elsewhere, which is not followed", "Name the service's own URL."
        )
    return _Meaning(CollateralUnavailable, "the service refuses", "Check the URL and the dialect of the service.")


def _printable(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
