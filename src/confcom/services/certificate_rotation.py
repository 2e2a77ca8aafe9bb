"""The certificates that a server's replicas share, and what becomes of them next; pure but for the keys' randomness.

A successor is first made and trusted, then used, and its predecessor is trusted for a while longer: at no moment does
a client meet a certificate that it was not told of. The keys of the authorities are never kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from confcom.pki.serving_pair import ServingPair, make_serving_pair

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
