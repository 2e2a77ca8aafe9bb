"""Limits of the collateral service on callers: tokens, with a limit on wrong ones, and sizes of bodies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from starlette.requests import ClientDisconnect, Request

from confcom.services.collateral.answers import Refused
from confcom.services.collateral.service_config import CollateralServiceConfig
from confcom.services.runtime.allowances import Allowance, address_of
from confcom.services.runtime.http_server import BODY_RATE

WRONG_TOKENS = 5
"""Of one address in a minute; after these no token of it is looked at until the minute ends."""


WRITTEN_AT_A_TIME = 1 << 20
"""Bytes of a body that are gathered before they are written to its file."""


class Tokens:
    """SHA-512 of the tokens in hexadecimal digits; a path whose token is not set is closed."""

    def __init__(self, config: CollateralServiceConfig, *, clock: Callable[[], float]) -> None:
        self._hashes = {"user": config.user_token_hash, "admin": config.admin_token_hash}
        self._wrong = Allowance(WRONG_TOKENS, clock)

    def require(self, request: Request, kind: Literal["user", "admin"]) -> None:
        """Refuse a request that does not bring the token.

        After too many wrong ones the right one is refused too: otherwise a guess could be recognised as right.
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


class Bodies:
    """Reads request bodies; counts the bytes of all that are read or worked on."""

    def __init__(self, config: CollateralServiceConfig, *, folder: Path | None) -> None:
        """Large bodies are kept in files of the folder; None: the one for temporary files."""
        self._size, self._seconds = config.max_body, config.body_timeout
        self._total = max(config.max_body, config.max_bodies)
        self._folder = folder
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request, *, limit: int) -> AsyncIterator[bytes]:
        """A body of at most `limit` bytes, while the block works on it.

        Memory is taken as bytes come, not by the length announced.
        """
        body = bytearray()
        async with self._received(request, min(limit, self._size)) as chunks:
            async for chunk in chunks:
                body += chunk
            yield bytes(body)

    @asynccontextmanager
    async def keep(self, request: Request) -> AsyncIterator[BinaryIO]:
        """A large body in a file without a name, which ends with the process, while the block works on it."""
        with self._file() as file:
            async with self._received(request, self._size) as chunks:
                piece = bytearray()
                async for chunk in chunks:
                    piece += chunk
                    if len(piece) >= WRITTEN_AT_A_TIME:
                        await self._write(file, bytes(piece))
                        piece.clear()
                await self._write(file, bytes(piece))
                yield file

    @asynccontextmanager
    async def _received(self, request: Request, limit: int) -> AsyncIterator[AsyncIterator[bytes]]:
        held = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal held
            announced = request.headers.get("content-length", "0")
            if announced.isdigit() and int(announced[:18]) > limit:
                raise _too_large(limit)
            stream, deadline = request.stream(), asyncio.get_running_loop().time() + self._seconds
            while True:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return
                if held + len(chunk) > limit:
                    raise _too_large(limit)
                if self._held + len(chunk) > self._total:
                    raise Refused(
                        503,
                        f"the bodies of other requests fill the {self._total} bytes that there are for all",
                        advice="Send it again in a moment.",
                    )
                held += len(chunk)
                self._held += len(chunk)
                deadline += len(chunk) / BODY_RATE
                yield chunk

        try:
            yield chunks()
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self._seconds:g} s and at {BODY_RATE} bytes/s") from None
        except ClientDisconnect:
            raise Refused(400, "the body did not come whole") from None
        finally:
            self._held -= held

    def _file(self) -> BinaryIO:
        try:
            return cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder))
        except OSError as error:
            raise _no_room(error) from error

    async def _write(self, file: BinaryIO, data: bytes) -> None:
        try:
            await asyncio.to_thread(file.write, data)
            await asyncio.to_thread(file.flush)
        except OSError as error:
            raise _no_room(error) from error


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body is larger than {limit} bytes")


def _no_room(error: OSError) -> Refused:
    return Refused(503, f"the body cannot be kept in a file: {error.strerror}", advice="Make room on its disk.")
