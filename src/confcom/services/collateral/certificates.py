"""Keeps a server trusted: one certificate for all replicas, known to its clients before it is served.

The replicas agree through a Secret: each write is conditional on what was read, and whoever comes too late reads
again. Nothing here is needed to answer a request, so a Kubernetes API that is away stops nothing but the next rotation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

import structlog

from confcom.cluster.served import SecretState
from confcom.errors import ClusterError, ClusterRefused, ConfigError
from confcom.pki.serving_pair import ServingPair, make_serving_pair
from confcom.services.runtime.tls import HeldTls

# --- The certificates that a server's replicas share, and what becomes of them next; pure but for the key ---
#
# A successor is first made and trusted, then used, and its predecessor is trusted for a while longer: at no moment
# does a client meet a certificate that it was not told of. The keys of the authorities are never kept.


MAX_TRUSTED = 8
"""Authorities that are trusted at a time; two, in the usual course of things."""
EVER = datetime.min.replace(tzinfo=UTC)
_END = b"-----END CERTIFICATE-----"


class Holding(NamedTuple):
    """What the Secret holds: authorities (PEM each, latest first), the pair in use, and the one that comes next."""

    trusted: tuple[bytes, ...] = ()
    current: ServingPair | None = None
    prepared: ServingPair | None = None
    since: datetime = EVER
    """When the pair was taken into use."""

    @classmethod
    def parse(cls, data: Mapping[str, bytes]) -> Holding:
        """Read the Secret's data; what is broken counts as missing."""
        authorities = data.get("ca.crt", b"").split(_END)[:MAX_TRUSTED]
        trusted = tuple(text.strip() + b"\n" + _END + b"\n" for text in authorities if text.strip())
        current = ServingPair.parse(data.get("tls.crt", b""), data.get("tls.key", b""))
        prepared = ServingPair.parse(data.get("next.crt", b""), data.get("next.key", b""))
        return cls(_normal(trusted), current, prepared, _time(data.get("tls.since", b"")))

    def data(self) -> dict[str, bytes]:
        """The Secret's data."""
        found = {"ca.crt": self.bundle}
        if self.current is not None:
            found |= {"tls.crt": self.current.certificate, "tls.key": self.current.key}
            found |= {"tls.since": self.since.isoformat().encode()}
        if self.prepared is not None:
            found |= {"next.crt": self.prepared.certificate, "next.key": self.prepared.key}
        return found

    @property
    def bundle(self) -> bytes:
        """All trusted authorities, as clients are told of them."""
        return b"".join(self.trusted)

    def trusts(self, pair: ServingPair) -> bool:
        """Whether one of the authorities signed the pair."""
        return any(pair.is_issued_by(authority) for authority in self.trusted)


class RotationPolicy(NamedTuple):
    """When certificates are replaced; the reasons are with the settings of each service."""

    names: Sequence[str]
    lifetime: timedelta
    renew_before: timedelta
    overlap: timedelta
    common_name: str


def next_holding(held: Holding, policy: RotationPolicy, *, now: datetime, bundle_in_force: bool) -> Holding:
    """What the Secret should hold now; the same object if that is what it holds.

    `bundle_in_force` says whether clients have been told of all the authorities that are held.
    """
    current, prepared = held.current, held.prepared
    if current is None or current.expires <= now or not held.trusts(current):
        authority, pair = _make(policy, now)
        return Holding((authority,), pair, since=now)
    if prepared is not None and not (held.trusts(prepared) and now < prepared.expires):
        return held._replace(prepared=None)
    if prepared is not None:
        waited = now - prepared.made >= policy.overlap
        return held._replace(current=prepared, prepared=None, since=now) if waited and bundle_in_force else held
    if current.expires - now <= policy.renew_before or not current.names.issuperset(policy.names):
        authority, pair = _make(policy, now)
        return held._replace(trusted=(authority, *held.trusted)[:MAX_TRUSTED], prepared=pair)
    if len(held.trusted) > 1 and now - held.since >= policy.overlap:
        kept = tuple(authority for authority in held.trusted if current.is_issued_by(authority))
        return held._replace(trusted=kept) if len(kept) < len(held.trusted) else held
    return held


def _make(policy: RotationPolicy, now: datetime) -> tuple[bytes, ServingPair]:
    return make_serving_pair(policy.names, now=now, lifetime=policy.lifetime, common_name=policy.common_name)


def _time(text: bytes) -> datetime:
    try:
        found = datetime.fromisoformat(text.decode("ascii"))
    except ValueError:
        return EVER
    return found if found.tzinfo is not None else EVER


def _normal(authorities: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(text[text.find(b"-----BEGIN") :] for text in authorities if b"-----BEGIN" in text)


CONFLICT = 409
ATTEMPTS = 5
"""Writes of the Secret at one look, of which all but the last came too late."""


class KeptObjects(Protocol):
    """The Secret, and the places where clients read whom to trust."""

    @property
    def places(self) -> Sequence[str]:
        """Their kinds."""

    async def secret(self) -> SecretState:
        """The Secret as it is now."""

    async def write_secret(self, data: Mapping[str, bytes], *, version: str | None) -> None:
        """Make this the Secret's data, unless somebody has written since `version` was read."""

    async def trusted(self, place: str) -> Mapping[str, bytes] | None:
        """The CA bundles at a place, by the entry's name; None where there is no such place."""

    async def trust(self, place: str, names: list[str], bundle: bytes) -> None:
        """Put the CA bundle into entries of a place."""


class CertificateObserver(Protocol):
    """What is told of a certificate's life, to be counted."""

    def certificate_served(self, expires: datetime) -> None:
        """Another one is in use."""

    def certificate_told(self, place: str) -> None:
        """The CA was published at this place."""

    def certificate_failed(self) -> None:
        """The Kubernetes API did not do as asked."""

    def certificate_trusted(self, trusted: bool) -> None:
        """Whether clients trust what is served."""


class CertificateKeeper:
    """What is served, and whether clients trust it.

    Without a policy the Secret is somebody else's: what it holds is served and published, and never changed.
    """

    def __init__(
        self,
        objects: KeptObjects,
        policy: RotationPolicy | None,
        observer: CertificateObserver,
        *,
        clock: Callable[[], datetime],
        name: str,
    ) -> None:
        """`name` begins the names of events in the log."""
        self.not_ready = "no certificate yet"
        """Why clients would not trust us; empty if they do."""
        self.served: ServingPair | None = None
        """What new connections are met with."""
        self._objects = objects
        self._policy = policy
        self._observer = observer
        self._clock = clock
        self._name = name
        self._held = Holding()
        self._tls: HeldTls | None = None
        self._first: asyncio.Future[HeldTls] = asyncio.get_running_loop().create_future()
        self._log = structlog.get_logger()

    async def run(self, every: float) -> None:
        """Look for ever. Credentials that cannot be used end it, but only before there is something to serve."""
        said = ""
        while True:
            try:
                await self.look()
                said = ""
            except (ClusterError, ConfigError) as error:
                if isinstance(error, ConfigError) and self.served is None:
                    raise
                self._observer.certificate_failed()
                if self.served is None or self.served.expires <= self._clock():
                    self._not_ready(error.message)
                if str(error) != said:
                    self._log.warning(
                        f"{self._name}.certificate", outcome="waits", reason=str(error), advice=error.advice()
                    )
                    said = str(error)
            await asyncio.sleep(every)

    async def first(self) -> HeldTls:
        """Wait for the first certificate."""
        return await asyncio.shield(self._first)

    async def look(self) -> None:
        """Bring Secret, places and what is served in step, once."""
        in_force = await self._bundle_in_force(self._held)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._held = await self._agree(bundle_in_force=in_force)
                break
            except ClusterRefused as error:
                if error.status != CONFLICT or attempt == ATTEMPTS:
                    raise
        self._serve()
        await self._tell()

    async def _agree(self, *, bundle_in_force: bool) -> Holding:
        """What the Secret holds, after what was due has been written to it."""
        found = await self._objects.secret()
        held = Holding.parse(found.data)
        if self._policy is None:
            return _as_given(held)
        if held.current is None and self._held.current is not None:
            held = self._held  # somebody emptied it: what is served already is the best that can be put back
        # What we saw in force was our former bundle; a newer one of another replica has to be seen first.
        known = bundle_in_force and held.trusted == self._held.trusted
        wanted = next_holding(held, self._policy, now=self._clock(), bundle_in_force=known)
        if wanted.data() != dict(found.data):
            await self._objects.write_secret(wanted.data(), version=found.version)
            self._log.info(f"{self._name}.secret", outcome="written", trusted=len(wanted.trusted),
                           prepared=wanted.prepared is not None)  # fmt: skip
        return wanted

    def _serve(self) -> None:
        pair = self._held.current
        if pair is None or pair == self.served:
            return
        if self._tls is None:
            self._tls = HeldTls(pair.certificate, pair.key)
            self._first.set_result(self._tls)
        else:
            self._tls.use(pair.certificate, pair.key)
        self.served = pair
        self._observer.certificate_served(pair.expires)
        self._log.info(f"{self._name}.certificate", outcome="served", expires=pair.expires.isoformat())

    async def _tell(self) -> None:
        """Have every place trust what is held; ready is who is trusted by all."""
        for place in self._objects.places:
            found = await self._objects.trusted(place)
            if found is None:
                self._not_ready(f"there is no {place}: `confcom addon update` makes it")
                return
            wrong = sorted(name for name, bundle in found.items() if bundle != self._held.bundle)
            if wrong:
                await self._objects.trust(place, wrong, self._held.bundle)
                self._observer.certificate_told(place)
                self._log.info(f"{self._name}.configuration", outcome="told", kind=place, entries=wrong)
        self._not_ready("")

    async def _bundle_in_force(self, held: Holding) -> bool:
        if held.prepared is None:
            return False
        found = [await self._objects.trusted(place) for place in self._objects.places]
        return all(bundles is not None and set(bundles.values()) == {held.bundle} for bundles in found)

    def _not_ready(self, reason: str) -> None:
        if reason != self.not_ready:
            self._log.info(f"{self._name}.ready", ready=not reason, reason=reason)
        self.not_ready = reason
        self._observer.certificate_trusted(not reason)


def _as_given(held: Holding) -> Holding:
    if held.current is None or not held.trusted:
        raise ClusterError(
            "the Secret with the TLS certificate lacks a usable tls.crt, tls.key or ca.crt",
            advice="Put a PEM chain, leaf first, its key, and the CA's certificate there; cert-manager does just that.",
        )
    return held
