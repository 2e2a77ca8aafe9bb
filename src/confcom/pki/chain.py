"""Certificate chains of Intel's PKI (dcap.md §2): signatures, constraints and names, apart from the present time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from confcom.formats.pck_extension import PckExtension
from confcom.pki.roots import TrustRoot, TrustRoots
from confcom.pki.validity import Window

ChainKind = Literal["pck", "tcb-signing", "ca"]


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """A chain that ends at a trusted root; only `verify_chain` makes one. Expiry is not judged here: see `windows`."""

    kind: ChainKind
    leaf: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    root: TrustRoot
    windows: tuple[Window, ...]
    public_key: ec.EllipticCurvePublicKey

    @property
    def extension(self) -> PckExtension:
        """Intel's SGX extension of the leaf, for chains of kind `pck`."""
        raise NotImplementedError

    @property
    def ca(self) -> Literal["processor", "platform"]:
        """Which PCK CA issued the leaf (kind `pck`), or which one the leaf is (kind `ca`)."""
        raise NotImplementedError


def verify_chain(
    certificates: bytes | Sequence[bytes], *, roots: TrustRoots, kind: ChainKind, step: str
) -> VerifiedChain:
    """Verify a chain, given as PEM or as the DER of each certificate, up to one of the roots."""
    raise NotImplementedError
