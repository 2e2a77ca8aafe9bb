"""Whom verification trusts: root keys, given as values. Intel's is built in; every other root is a simulated one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """A root certificate whose key is trusted. `public_key` is the uncompressed point, 65 bytes."""

    name: str
    certificate_der: bytes
    simulated: bool

    @classmethod
    def from_pem(cls, data: bytes, *, name: str | None = None) -> TrustRoot:
        """A root from its PEM certificate; only Intel's key gives a root that is not simulated."""
        raise NotImplementedError

    @property
    def public_key(self) -> bytes:
        """The root's key, 65 bytes: 04 ‖ x ‖ y."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """The roots that one verification accepts; never empty."""

    roots: tuple[TrustRoot, ...]

    @classmethod
    def intel(cls) -> TrustRoots:
        """Intel's root alone: real hardware."""
        raise NotImplementedError

    def with_public_key(self, public_key: bytes) -> TrustRoot | None:
        """The root of that key (65 bytes), None when it is not trusted."""
        raise NotImplementedError
