"""What operators and provisioning tools send to the collateral service: platforms to register, policies, refreshes.

All of it needs a token, and the bytes of bodies are limited, of each and of all together.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, cast

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request

from confcom.collateral.platform_collateral import (
    PlatformCollateral,
    PlatformForm,
    Taken,
    take_platform_collateral,
    unhex,
)
from confcom.collateral.store.registrations import PAGE, Place, Registration, State
from confcom.collateral.store.store import APPRAISAL_POLICY
from confcom.errors import CollateralNotFound, FormatError
from confcom.formats.arguments import decode_json
from confcom.protocols.pcs import MAX_QE_ID, HttpResponse, PckCertRequest, PckCertsRequest, Update
from confcom.protocols.pcs_service import hex_field
from confcom.services.collateral.answers import (
    JSON,
    REQUEST_ID,
    SUCCESS,
    TEXT,
    Answer,
    Refused,
    answer_of,
    error_answer,
    json_answer,
    text_answer,
)
from confcom.services.collateral.cache import CollateralCache
from confcom.services.collateral.pck_certificates import PckCertificates
from confcom.services.collateral.refresh import Refresher, RefreshReport
from confcom.services.collateral.service_http import SET, Routes
from confcom.services.runtime.allowances import Allowance, address_of
from confcom.services.runtime.http_server import BODY_RATE, Send

if TYPE_CHECKING:
    from confcom.services.collateral.collateral_service import CollateralServiceConfig

REGISTRATION = "platform registration"

MAX_REGISTRATION = 256 << 10
"""Bytes of one platform that registers: a manifest of 128 KiB at most, and little else."""

MAX_PAGE = 1000
"""Platforms that a client may ask for at a time."""

MAX_POLICY = 256 * 1024
"""Characters of a policy; Intel's have some thousand."""
MAX_AGE = 3600
"""Seconds that clients may keep a policy: only an administrator changes it."""

WRONG_TOKENS = 5
"""Of one address in a minute; after these no token of it is looked at until the minute ends."""
WRITTEN_AT_A_TIME = 1 << 20
"""Bytes of a body that are gathered before they are written to its file."""


class Tokens:
    """SHA-512 of the tokens in hexadecimal digits; without its token a path is closed."""

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


class Administration:
    """The paths that change something; all need a token, except to read a policy."""

    def __init__(
        self,
        cache: CollateralCache,
        certificates: PckCertificates,
        refresher: Refresher,
        *,
        tokens: Tokens,
        bodies: Bodies,
    ) -> None:
        self._cache = cache
        self._certificates = certificates
        self._registrations = cache.store.registrations
        self._refresher = refresher
        self._tokens = tokens
        self._bodies = bodies

    def routes(self) -> Routes:
        handlers: Routes = {
            "platforms": {"GET": self.list_platforms, "POST": self.register, "DELETE": self.remove_platforms},
            "platformcollateral": {"PUT": self.take_collateral},
            "refresh": {"GET": self.refresh, "POST": self.refresh},
            "appraisalpolicy": {"GET": self.read_policy, "PUT": self.put_policy},
        }
        return {
            f"/sgx/certification/v{version}/{name}": methods for name, methods in handlers.items() for version in (3, 4)
        }

    async def register(self, request: Request) -> Answer:
        """Take a platform in: its certificate and collateral are fetched now, or it is queued (offline)."""
        self._tokens.require(request, "user")
        named = _updates(request.query_params.get("update", "standard"))
        updates = [request.scope[SET] if update == "standard" else update for update in named]
        async with self._bodies.read(request, limit=MAX_REGISTRATION) as body:
            platform = decode_json(body, _PLATFORM, REGISTRATION, once=True)
        await self._certificates.register(_request(platform), updates)
        return text_answer(SUCCESS)

    async def list_platforms(self, request: Request) -> Answer:
        """The queue (source=reg, reg_na), or the platforms in the store by FMSPC. Reading changes nothing.

        All of them, sent as they are read; with `limit`, so many from the place `after` that the page before names.
        """
        self._tokens.require(request, "admin")
        source = request.query_params.get("source", "reg").lower()
        state: State = {"reg": "waiting", "reg_na": "unavailable"}.get(source, "cached")  # type: ignore[assignment]
        fmspcs = _fmspcs(source) if state == "cached" else []
        count = await self._cache.read(lambda: self._registrations.count(state, fmspcs=fmspcs))
        headers = [("platform-count", str(count))]
        limit = request.query_params.get("limit")
        after = _place(request.query_params.get("after", ""))
        if limit is None:
            return StreamedAnswer(headers, self._stream(state, fmspcs, after))
        page = await self._page(state, fmspcs, after, _limit(limit))
        if len(page) == _limit(limit):
            headers.append(("platform-next", ".".join(map(str, page[-1].place))))
        return json_answer([_listed(entry) for entry in page], headers=tuple(headers))

    async def _page(
        self, state: State, fmspcs: Sequence[bytes], after: Place | None, limit: int
    ) -> tuple[Registration, ...]:
        return await self._cache.read(lambda: self._registrations.page(state, fmspcs=fmspcs, after=after, limit=limit))

    async def _stream(self, state: State, fmspcs: Sequence[bytes], after: Place | None) -> AsyncIterator[bytes]:
        page = await self._page(state, fmspcs, after, PAGE)
        start = b"["
        while page:
            yield start + b",".join(msgspec.json.encode(_listed(entry)) for entry in page)
            start = b","
            page = await self._page(state, fmspcs, page[-1].place, PAGE)
        yield b"]" if start == b"," else b"[]"

    async def remove_platforms(self, request: Request) -> Answer:
        """Remove a platform (qeid), or all that have not been seen since a time (not_seen_since)."""
        self._tokens.require(request, "admin")
        qe_id, since = (request.query_params.get(name) for name in ("qeid", "not_seen_since"))
        platforms = self._cache.store.platforms
        if (qe_id is None) == (since is None):
            raise FormatError("is needed, or not_seen_since, and not both", structure="PCS request", field="qeid")
        if qe_id is not None:
            named = unhex(qe_id, REGISTRATION, "qeid")
            if not 1 <= len(named) <= MAX_QE_ID:
                raise FormatError(f"is 1 to {MAX_QE_ID} bytes", structure="PCS request", field="qeid")
            removed = await self._cache.read(lambda: platforms.remove(named))
            if not removed:
                raise CollateralNotFound(f"there is no platform with QE_ID {named.hex()}")
        else:
            time = _time(since or "")
            removed = await self._cache.read(lambda: platforms.remove_unseen(time))
        self._cache.store_changed()
        return json_answer({"message": SUCCESS, "removed": removed})

    async def take_collateral(self, request: Request) -> Answer:
        """Take in what Intel's client tool fetched where there is a network; all of it is verified."""
        self._tokens.require(request, "admin")
        now = self._cache.clock()

        def take(file: BinaryIO, proceed: Callable[[], None]) -> Taken:
            with map_file(file) as data:
                return take_platform_collateral(self._cache.store, PlatformCollateral(data), now=now, proceed=proceed)

        async with self._bodies.keep(request) as file:
            taken = await self._cache.upload(partial(take, file))
        return text_answer(SUCCESS) if not taken.refused else _refusal(taken)

    async def refresh(self, request: Request) -> Answer:
        """Ask upstream again for every document, or (type=certs, fmspc=…) for the platforms' certificates."""
        self._tokens.require(request, "admin")
        if self._cache.upstream is None:
            raise Refused(503, "an offline service has no upstream", advice="Import collateral into the store instead.")
        match request.query_params.get("type", "").lower():
            case "":
                report = await self._refresher.refresh_documents()
            case "certs":
                named = request.query_params.get("fmspc", "")
                fmspcs = (
                    [] if named.lower() in ("", "all") else _fmspcs(named if named.startswith("[") else f"[{named}]")
                )
                report = await self._refresher.refresh_certificates(fmspcs)
            case _:
                raise FormatError("is not certs", structure="PCS request", field="type")
        return _report(report)

    async def read_policy(self, request: Request) -> Answer:
        """The default policy of an FMSPC: the text that was put."""
        fmspc = hex_field(request.query_params.get("fmspc", ""), 6, "PCS request", "fmspc")
        policy = await self._cache.read(lambda: self._cache.store.policies.default(fmspc))
        if policy is None:
            raise CollateralNotFound(
                f"there is no default appraisal policy of FMSPC {fmspc.hex()}",
                advice="Put one: pccsadmin.py put -u https://HOST:8081/sgx/certification/v4/appraisalpolicy -d "
                "-f FMSPC -i policy.jwt",
            )
        headers = (("Content-Type", TEXT), ("Cache-Control", f"max-age={MAX_AGE}"))
        return answer_of(HttpResponse(200, headers, policy.encode()))

    async def put_policy(self, request: Request) -> Answer:
        """Keep a policy; answers with its id."""
        self._tokens.require(request, "admin")
        async with self._bodies.read(request, limit=2 * MAX_POLICY) as body:
            id_ = await self._cache.read(lambda: self._put(body))
        return text_answer(id_)

    def _put(self, body: bytes) -> str:
        found = decode_json(body, _POLICY, APPRAISAL_POLICY, once=True)
        fmspc = hex_field(found.fmspc, 6, APPRAISAL_POLICY, "fmspc")
        return self._cache.store.policies.put(found.policy, fmspc=fmspc, default=found.is_default)


def _report(report: RefreshReport) -> Answer:
    if not report.failures:
        return json_answer({"message": SUCCESS, **report.as_dict()})
    return json_answer({"error": "Some could not be refreshed; the rest was.", **report.as_dict()}, status=502)


def _refusal(taken: Taken) -> Answer:
    """What was refused of an upload, with the status of the first; the rest was kept."""
    (what, error), *_ = (*taken.refused_documents, *taken.refused_platforms)
    documents = [{"document": name} | failure.as_dict() for name, failure in taken.refused_documents]
    platforms = [{"qe_id": name} | failure.as_dict() for name, failure in taken.refused_platforms]
    structlog.get_logger().warning(
        "collateral.upload", kept=taken.platforms, refused=taken.refused, first=what, reason=error.message
    )
    kept = {"documents": taken.documents, "platforms": taken.platforms, "certificates": taken.certificates}
    message = f"{taken.refused} were refused, the rest was kept; the first is {what}: {error.message}"
    more = {"message": message, "kept": kept, "refused": taken.refused, "documents": documents, "platforms": platforms}
    return error_answer(error, more=more)


@contextmanager
def map_file(file: BinaryIO) -> Iterator[bytes | mmap]:
    """The content of a file, mapped into memory: pages come and go as they are looked at."""
    if not file.seek(0, os.SEEK_END):
        yield b""  # nothing cannot be mapped
        return
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        yield data


class StreamedAnswer(Answer):
    """A JSON answer of unknown length, sent in pieces while it is read."""

    def __init__(self, headers: Sequence[tuple[str, str]], pieces: AsyncIterator[bytes]) -> None:
        super().__init__(200, [(name.encode(), value.encode()) for name, value in headers], b"")
        self._pieces = pieces

    def __post_init__(self) -> None:
        """Leave the length open."""
        self.headers = [(b"Content-Type", JSON.encode()), (b"Cache-Control", b"no-store"), *self.headers]
        self.size = 0

    async def send(self, id_: bytes, send: Send) -> None:
        headers = [*self.headers, (REQUEST_ID, id_)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _PolicyForm(msgspec.Struct):
    is_default: bool
    fmspc: str
    policy: Annotated[str, msgspec.Meta(max_length=MAX_POLICY)]


_PLATFORM = msgspec.json.Decoder(PlatformForm)
_POLICY = msgspec.json.Decoder(_PolicyForm)


def _request(platform: PlatformForm) -> PckCertRequest | PckCertsRequest:
    """A manifest suffices; without one, CPUSVN, PCESVN and encrypted PPID are needed."""
    request = platform.request(REGISTRATION)
    if request is None:
        raise _needed("cpu_svn" if not platform.cpu_svn else "pce_svn")
    if request.platform_manifest is None and request.encrypted_ppid is None:
        raise _needed("enc_ppid")
    return request


def _needed(field: str) -> FormatError:
    return FormatError(
        "is missing or zero: without a platform_manifest, cpu_svn, pce_svn and enc_ppid are needed",
        structure=REGISTRATION,
        field=field,
    )


def _listed(entry: Registration) -> dict[str, str]:
    request = entry.request
    raw = (b"", b"")
    if isinstance(request, PckCertRequest):
        raw = (request.cpu_svn, request.pce_svn.to_bytes(2, "little"))
    values = {
        "qe_id": request.qe_id,
        "pce_id": request.pce_id,
        "cpu_svn": raw[0],
        "pce_svn": raw[1],
        "enc_ppid": request.encrypted_ppid,
        "platform_manifest": request.platform_manifest,
    }
    return {name: (value or b"").hex().upper() for name, value in values.items()}


def _updates(text: str) -> tuple[Update, ...]:
    sets: dict[str, tuple[Update, ...]] = {"standard": ("standard",), "early": ("early",), "all": ("standard", "early")}
    if text.lower() not in sets:
        raise FormatError("is none of standard, early, all", structure="PCS request", field="update")
    return sets[text.lower()]


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_PAGE):
        raise FormatError(f"is no number from 1 to {MAX_PAGE}", structure="PCS request", field="limit")
    return int(text)


def _place(text: str) -> Place | None:
    if not text:
        return None
    match = re.fullmatch(r"([0-9a-f]{0,12})\.([0-9a-f]{2,260})\.([0-9a-f]{4})\.([0-9a-f]{0,32})\.([0-9]{1,5})", text)
    if match is None:
        raise FormatError("is not what platform-next said", structure="PCS request", field="after")
    fmspc, qe_id, pce_id, cpu_svn, pce_svn = match.groups()
    return Place(fmspc, qe_id, pce_id, cpu_svn, int(pce_svn))


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise FormatError("is no time such as 2026-03-01T12:00:00Z", structure="PCS request", field="not_seen_since")
    return time


def _fmspcs(text: str) -> list[bytes]:
    if not (text.startswith("[") and text.endswith("]")):
        raise FormatError("is none of reg, reg_na, [FMSPC,…]", structure="PCS request", field="source")
    named = [part.strip().strip("\"'") for part in text[1:-1].split(",") if part.strip()]
    if len(named) > 1000:
        raise FormatError("names more than 1000 FMSPCs", structure="PCS request", field="fmspc")
    return [hex_field(part, 6, "PCS request", "fmspc") for part in named]
