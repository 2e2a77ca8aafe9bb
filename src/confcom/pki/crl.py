"""Certificate revocation lists, in the three encodings that Intel's services use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from cryptography import x509


@dataclass(frozen=True, slots=True)
class Crl:
    """A revocation list as received; `verify_signature` says whether its issuer made it."""

    der: bytes

    @classmethod
    def parse(cls, data: bytes, *, structure: str = "CRL") -> Self:
        """Read a CRL in PEM, hexadecimal of DER, or DER."""
        raise NotImplementedError

    def __bytes__(self) -> bytes:
        return self.der

    @property
    def issuer(self) -> x509.Name:
        """Name of the CA that issued the list."""
        raise NotImplementedError

    @property
    def number(self) -> int:
        """The CRL number extension."""
        raise NotImplementedError

    @property
    def this_update(self) -> datetime:
        """When the list was issued, UTC."""
        raise NotImplementedError

    @property
    def next_update(self) -> datetime:
        """When the next list is due, UTC."""
        raise NotImplementedError

    def revoked(self, serial: int) -> bool:
        """Whether the certificate of that serial number is on the list."""
        raise NotImplementedError

    def verify_signature(self, issuer_certificate: x509.Certificate, *, step: str, what: str) -> None:
        """Check that the certificate's subject issued this list and its key signed it."""
        raise NotImplementedError
