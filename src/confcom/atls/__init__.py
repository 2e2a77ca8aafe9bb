"""Attested TLS: connections to servers that prove, inside the handshake, which enclave holds the key.

`ClientContext` goes wherever a library takes an `ssl.SSLContext`; `ServerContext` with an `Issuer` is the other end.
docs/howto/attested-tls.md shows them with each library, docs/explanation/attested-certificates.md what they prove.
"""

from __future__ import annotations

from confcom.atls.client import (
    ClientContext,
    NotAttested,
    PinnedPeer,
    attested_peer,
    fetch_and_pin,
    https_only,
    https_opener,
    https_session,
)
from confcom.atls.issuer import IssuedCertificate, Issuer, load_pair
from confcom.atls.secret_provisioning import serve_secret
from confcom.atls.server import ServerContext, serve_fresh

__all__ = [
    "ClientContext",
    "IssuedCertificate",
    "Issuer",
    "NotAttested",
    "PinnedPeer",
    "ServerContext",
    "attested_peer",
    "fetch_and_pin",
    "https_only",
    "https_opener",
    "https_session",
    "load_pair",
    "serve_fresh",
    "serve_secret",
]
