"""What operators and provisioning tools send to the collateral service: platforms to register, refreshes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from confcom.collateral.platform_collateral import PlatformCollateral
from confcom.collateral.registrations import Registration, Registrations
from confcom.errors import FormatError
from confcom.protocols.pcs import PckCertRequest
from confcom.services.collateral_answers import SUCCESS, Answer, Refused, json_answer, text_answer
from confcom.services.collateral_cache import CollateralCache
from confcom.services.collateral_http import Routes
from confcom.services.collateral_pck import PckCertificates
from confcom.services.collateral_refresh import Refresher, RefreshReport

STRUCTURE = "platform registration"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tokens:
    """SHA-512 of the tokens in hexadecimal digits; a path whose token is not set is closed."""

    user: str | None = None
    admin: str | None = None

    def require(self, request: Request, kind: Literal["user", "admin"]) -> None:
        """Refuse a request that does not bring the token."""
        expected = self.user if kind == "user" else self.admin
        if expected is None:
            raise Refused(
                401,
                f"no {kind} token is set, so nobody may do this",
                advice=f"Set {kind}_token_hash to the SHA-512 of a token of your choice.",
            )
        given = request.headers.get(f"{kind}-token", "")
        found = hashlib.sha512(given.encode("latin-1")).hexdigest()
        if not hmac.compare_digest(found, expected.lower()):
            raise Refused(401, f"the header {kind}-token is missing or wrong", advice=f"Send the {kind} token in it.")


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bytes of a request's body, and seconds that it may take."""

    size: int
    seconds: float


class Administration:
    """The paths that change something; all want a token."""

    def __init__(
        self,
        cache: CollateralCache,
        certificates: PckCertificates,
        registrations: Registrations,
        refresher: Refresher,
        *,
        tokens: Tokens,
        limits: BodyLimits,
    ) -> None:
        self._cache = cache
        self._certificates = certificates
        self._registrations = registrations
        self._refresher = refresher
        self._tokens = tokens
        self._limits = limits

    def routes(self) -> Routes:
        """The paths, in both versions of the interface."""
        handlers: Routes = {
            "platforms": {"GET": self.list_platforms, "POST": self.register},
            "platformcollateral": {"PUT": self.take_collateral},
            "refresh": {"GET": self.refresh, "POST": self.refresh},
        }
        return {
            f"/sgx/certification/v{version}/{name}": methods for name, methods in handlers.items() for version in (3, 4)
        }

    async def register(self, request: Request) -> Answer:
        """Take a platform in: its certificate and collateral are fetched now, or it is queued (offline)."""
        self._tokens.require(request, "user")
        platform = _decode(await read_body(request, self._limits), _Platform)
        await self._certificates.register(_request(platform))
        return text_answer(SUCCESS)

    async def list_platforms(self, request: Request) -> Answer:
        """The queue (source=reg, reg_na), or the platforms in the store by FMSPC. Reading changes nothing."""
        self._tokens.require(request, "admin")
        source = request.query_params.get("source", "reg")
        if source.lower() in ("reg", "reg_na"):
            state: Literal["waiting", "unavailable"] = "waiting" if source.lower() == "reg" else "unavailable"
            found = await self._cache.read(lambda: self._registrations.in_state(state))
        else:
            fmspcs = _fmspcs(source)
            found = await self._cache.read(lambda: self._registrations.of_fmspcs(fmspcs))
        listed = [_listed(entry) for entry in found]
        return json_answer(listed, headers=(("platform-count", str(len(listed))),))

    async def take_collateral(self, request: Request) -> Answer:
        """Take in what Intel's client tool fetched where there is a network; all of it is verified."""
        self._tokens.require(request, "admin")
        body = await read_body(request, self._limits)
        await self._certificates.take(PlatformCollateral.parse(body))
        return text_answer(SUCCESS)

    async def refresh(self, request: Request) -> Answer:
        """Ask upstream again for every document, or (type=certs, fmspc=…) for the platforms' certificates."""
        self._tokens.require(request, "admin")
        if self._cache.upstream is None:
            raise Refused(
                503, "an offline service has nobody to ask", advice="Import collateral into the store instead."
            )
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


def _report(report: RefreshReport) -> Answer:
    if not report.failures:
        return json_answer({"message": SUCCESS, **report.as_dict()})
    return json_answer({"error": "Some could not be refreshed; the rest was.", **report.as_dict()}, status=502)


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The body, within the limits."""
    body = bytearray()
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:18]) > limits.size:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.size:
                    raise _too_large(limits)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {limits.seconds:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the body did not come whole") from None
    return bytes(body)


def _too_large(limits: BodyLimits) -> Refused:
    return Refused(413, f"the body is larger than {limits.size} bytes")


# --- JSON -----------------------------------------------------------------------------------------------------------


class _Platform(msgspec.Struct):
    """A platform as Intel's retrieval tool writes it; numbers are little-endian hexadecimal digits."""

    qe_id: Annotated[str, msgspec.Meta(min_length=2, max_length=260)]
    pce_id: Annotated[str, msgspec.Meta(min_length=4, max_length=4)]
    cpu_svn: Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
    pce_svn: Annotated[str, msgspec.Meta(min_length=4, max_length=4)]
    enc_ppid: str | None = None
    platform_manifest: str | None = None


def _request(platform: _Platform) -> PckCertRequest:
    return PckCertRequest(
        cpu_svn=_hex(platform.cpu_svn, "cpu_svn"),
        pce_svn=int.from_bytes(_hex(platform.pce_svn, "pce_svn"), "little"),
        pce_id=_hex(platform.pce_id, "pce_id"),
        qe_id=_hex(platform.qe_id, "qe_id"),
        encrypted_ppid=_hex(platform.enc_ppid, "enc_ppid") if platform.enc_ppid else None,
        platform_manifest=_hex(platform.platform_manifest, "platform_manifest") if platform.platform_manifest else None,
    )


def _listed(entry: Registration) -> dict[str, str]:
    request = entry.request
    values = {
        "qe_id": request.qe_id,
        "pce_id": request.pce_id,
        "cpu_svn": request.cpu_svn,
        "pce_svn": request.pce_svn.to_bytes(2, "little"),
        "enc_ppid": request.encrypted_ppid,
        "platform_manifest": request.platform_manifest,
    }
    return {name: (value or b"").hex().upper() for name, value in values.items()}


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not the documented JSON: {error}", structure=STRUCTURE, field="") from error


def _fmspcs(text: str) -> list[bytes]:
    if not (text.startswith("[") and text.endswith("]")):
        raise FormatError("is none of reg, reg_na, [FMSPC,…]", structure="PCS request", field="source")
    named = [part.strip().strip("\"'") for part in text[1:-1].split(",") if part.strip()]
    found = [_hex(part, "fmspc") for part in named]
    if len(found) > 1000 or any(len(fmspc) != 6 for fmspc in found):
        raise FormatError("names FMSPCs of 12 hexadecimal digits", structure="PCS request", field="fmspc")
    return found


def _hex(text: str, field: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise FormatError("is not hexadecimal digits", structure=STRUCTURE, field=field) from error
