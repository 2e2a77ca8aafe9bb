"""Settings of the collateral service, and what they mean."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from confcom.protocols.pcs import TcbSets
from confcom.services.runtime.certificates import TlsSettings
from confcom.services.runtime.process import Seconds

_TokenHash = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{128}$")]


class CollateralServiceConfig(TlsSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the collateral service; the defaults are those for production."""

    listen: str = "127.0.0.1:8081"
    """HOST:PORT; port 0 takes a free one. 8081 is where Intel's clients look."""
    unix_socket: str | None = None
    """Listen at this path instead; without TLS."""
    tls_config_map: str = "confcom-collateral-ca"
    """ConfigMap that publishes the authorities of the certificate, under ca-certificates.crt."""
    tls_service: str = "confcom-collateral"
    """The Service by which clients find us; the certificate is for its name."""
    insecure_http: bool = False
    """Serve without TLS. Everything that matters is signed by Intel, but tokens can then be read on the way."""
    store: str = "/var/lib/confcom/collateral.sqlite"
    """The collateral store: a file, made if it is not there, or the URL of a PostgreSQL database."""
    mode: Literal["lazy", "offline"] = "lazy"
    """lazy asks upstream for what is missing; offline serves the store alone."""
    upstream: str = "intel"
    """intel, pccs, thim, the URL of a PCS or PCCS, a folder, or simulated."""
    upstream_key_file: str | None = None
    """File with Intel's subscription key, or the token of the PCCS."""
    upstream_key_optional: bool = False
    """Whether that file may be missing: upstream is asked without a key then."""
    upstream_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of upstream may be of."""
    upstream_proxy: str | None = None
    """URL of the proxy to upstream."""
    azure_region: str | None = None
    """For thim: the region of the cache that is asked for TDX."""
    simulated_machine: str | None = None
    """For simulated: the machine file of the platform."""
    trust_roots: tuple[str, ...] = ()
    """PEM files of the roots to trust instead of Intel's; the word intel adds Intel's."""
    fmspcs: tuple[str, ...] = ()
    """Kinds of platforms to keep collateral for, as FMSPC or tdx:FMSPC; /readyz speaks of these."""
    tcb_sets: tuple[str, ...] = ()
    """What `standard` is to clients: standard (Intel's own), early, or a TCB evaluation data number; with GROUP= before
    it, to those that ask below /group/GROUP."""
    user_token_hash: _TokenHash | None = None
    """SHA-512 of the token for POST platforms, 128 hexadecimal digits."""
    admin_token_hash: _TokenHash | None = None
    """SHA-512 of the token for GET platforms, PUT platformcollateral and refresh, 128 hexadecimal digits."""
    refresh_every: Seconds = 24 * 3600.0
    """Seconds after which upstream is asked for a newer version of what is here."""
    refresh_before: Seconds = 7 * 24 * 3600.0
    """Seconds before its expiry from which a document is asked for at every retry."""
    refresh_retry: Seconds = 600.0
    """Seconds between two tries to refresh the same thing."""
    refresh_look: Seconds = 60.0
    """Seconds between two looks at what is due."""
    upstream_timeout: Seconds = 10.0
    """Seconds for one answer of upstream; it is asked twice."""
    upstream_threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """Questions to upstream at a time."""
    answer_timeout: Seconds = 20.0
    """Seconds that a client waits for upstream."""
    remember_missing: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    """Seconds during which upstream is not asked again for what it does not have."""
    memory: Annotated[int, msgspec.Meta(ge=0)] = 32 << 20
    """Bytes of answers kept in memory."""
    memory_entries: Annotated[int, msgspec.Meta(ge=0)] = 2048
    """Answers kept in memory."""
    max_body: Annotated[int, msgspec.Meta(ge=1024)] = 256 << 20
    """Bytes of a PUT's body, which is kept in a file beside the store; a POST's has 256 KiB at most."""
    max_bodies: Annotated[int, msgspec.Meta(ge=1024)] = 512 << 20
    """Bytes of all requests' bodies at a time; never less than one may have."""
    questions_per_address: Annotated[int, msgspec.Meta(ge=1)] = 120
    """Questions to upstream per minute that one address may cause without a token."""
    questions: Annotated[int, msgspec.Meta(ge=1)] = 1200
    """Questions to upstream per minute that all addresses may cause without a token."""
    max_head: Annotated[int, msgspec.Meta(ge=2048)] = 16 * 1024
    """Bytes of a request's line and headers."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time; beyond it, the address with most gives up the oldest one that waits for its client."""
    head_timeout: Seconds = 5.0
    """Seconds for the TLS handshake, and for a request's head."""
    body_timeout: Seconds = 15.0
    """Seconds for a request's body; a long one has a second more for each 256 KiB that came."""
    idle_timeout: Annotated[float, msgspec.Meta(ge=1)] = 30.0
    """Seconds that a connection may stay without a request."""
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds for which a replica still answers after SIGTERM, so that callers find another one first."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=1)] = 10.0
    """Seconds that requests under way get when the service stops."""

    def check(self) -> None:
        """Check fields against each other, and the sets: `ConfigError`."""
        super().check()
        TcbSets.parse(self.tcb_sets)

    @property
    def is_plain(self) -> bool:
        """Whether clients are to be served without TLS."""
        return self.insecure_http or self.unix_socket is not None

    def files(self) -> tuple[str, ...]:
        """Files that the settings name."""
        named = (self.store, self.unix_socket, self.tls_certificate, self.tls_key, self.kubeconfig)
        upstream = (self.upstream_key_file, self.upstream_ca, self.simulated_machine, *self.trust_roots)
        folder = () if "://" in self.upstream or "/" not in self.upstream else (self.upstream,)
        return tuple(name for name in (*named, *upstream, *folder) if name is not None)
