"""What the collateral service lets callers do: tokens, with a limit on wrong ones, and bodies within limits."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from starlette.requests import ClientDisconnect, Request

from confcom.services.allowances import Allowance, address_of
from confcom.services.collateral_answers import Refused

WRONG_TOKENS = 5
"""Of one address in a minute; after these no token of it is looked at until the minute ends."""


class Tokens:
    """SHA-512 of the tokens in hexadecimal digits; a path whose token is not set is closed."""

    def __init__(self, user: str | None, admin: str | None, *, clock: Callable[[], float]) -> None:
        self._hashes = {"user": user, "admin": admin}
        self._wrong = Allowance(WRONG_TOKENS, clock)

    def require(self, request: Request, kind: Literal["user", "admin"]) -> None:
        """Refuse a request that does not bring the token.

        After too many wrong ones the right one is refused too: otherwise its answer would tell it from the guesses.
        """
        expected = self._hashes[kind]
        if expected is None:
            raise Refused(
                401,
                f"no {kind} token is set, so this path is closed",
                advice=f"Set {kind}_token_hash to the SHA-512 of a token of your choice.",
            )
        address = address_of(request.scope)
        if wait := self._wrong.wait(address):
            raise Refused(
                429,
                f"{WRONG_TOKENS} wrong tokens came from this address within a minute",
                advice="Wait for as long as Retry-After says, then send the right token.",
                headers=(("Retry-After", str(wait)),),
            )
        given = request.headers.get(f"{kind}-token", "")
        found = hashlib.sha512(given.encode("latin-1")).hexdigest()
        if hmac.compare_digest(found, expected.lower()):
            return
        if given:
            self._wrong.spend(address)
        raise Refused(401, f"the header {kind}-token is missing or wrong", advice=f"Send the {kind} token in it.")


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bytes of one request's body and of all bodies at a time, and seconds that one may take."""

    size: int
    seconds: float
    total: int


class Bodies:
    """Reads request bodies; counts the bytes of all that are read or worked on."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, while the block works on it. Memory is taken as bytes come, not by the length announced."""
        body = bytearray()
        try:
            await self._fill(body, request)
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced[:18]) > self._limits.size:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > self._limits.size:
                        raise self._too_large()
                    if self._held + len(chunk) > self._limits.total:
                        raise Refused(
                            503,
                            f"the bodies of other requests fill the {self._limits.total} bytes that there are for all",
                            advice="Send it again in a moment.",
                        )
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self._limits.seconds:g} s") from None
        except ClientDisconnect:
            raise Refused(400, "the body did not come whole") from None

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self._limits.size} bytes")
