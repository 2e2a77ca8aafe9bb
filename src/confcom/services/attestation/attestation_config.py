"""Settings of the attestation service, and what they mean."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from confcom.services.attestation.administrators import TokenHash
from confcom.services.runtime.certificates import TlsSettings

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=36_525 * 86_400)]


class AttestationServiceConfig(TlsSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the attestation service; the defaults are those for production."""

    listen: str = "127.0.0.1:8443"
    """HOST:PORT; port 0 takes a free one."""
    tls_config_map: str = "confcom-attestation-ca"
    """ConfigMap that publishes the authorities of the certificate, under ca-certificates.crt."""
    tls_service: str = "confcom-attestation"
    """The Service by which clients find us; the certificate is for its name."""
    url: str | None = None
    """The URL by which clients reach the service: issuer and key address of its tokens. Default: where it listens."""
    store: str = "/var/lib/confcom/attestation.sqlite"
    """Policies, signers and the audit record: an SQLite file, made if it is not there and migrated if an older release
    made it; or postgresql://USER[:PASSWORD]@HOST/DATABASE, which replicas share and `attestation migrate` prepares."""
    audit_days: Annotated[int, msgspec.Meta(ge=1, le=36_525)] = 90
    """Days that records of appraisals are kept. They hold addresses, and measurements that identify machines."""
    audit_records: Annotated[int, msgspec.Meta(ge=1000)] = 500_000
    """Records of appraisals that are kept, the newest; 500,000 take about 600 MB. Looked at once a minute."""
    keys: str = "/var/lib/confcom/attestation-keys"
    """Folder of signing keys, one PEM file with key and certificate each; an empty one gets a first pair. Or a PKCS#11
    URI (RFC 7512)."""
    attest_keys: bool = False
    """Have the enclave in which the service runs vouch for the keys: a quote over each is in its certificate."""
    simulated_machine: str | None = None
    """Machine file of the simulated enclave that vouches for the keys."""
    key_overlap: _Seconds = 3600.0
    """Seconds that a new key is published before it signs."""
    collateral: str = "intel"
    """intel, pccs, thim, the URL of a collateral service, a folder, a collateral.json, or a store."""
    collateral_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of the collateral service may be of."""
    update: str = "standard"
    """Sets of collateral: standard, early, numbers. The first decides; tokens have the verdicts under all of them."""
    trust_roots: tuple[str, ...] = ()
    """PEM files of the roots to trust instead of Intel's: all of them simulated, or none."""
    policy: str | None = None
    """Policy file of `confcom verify`, applied before the policy of the attestation type."""
    trust_model: Literal["open", "isolated", "shared"] = "open"
    """open: administrators set policies, signed or not. isolated: signed ones only. shared: none is set."""
    policy_signers: tuple[str, ...] = ()
    """PEM files of the first signers of policies, for isolated."""
    administrators: str | None = None
    """TOML file of administrators: by bearer tokens, OIDC tokens or client certificates. Read again when it changes."""
    administrators_optional: bool = False
    """Whether that file may be missing: until it appears, it names none."""
    admin_token_hash: TokenHash | None = None
    """SHA-512 of the bearer token of one more administrator, 128 hexadecimal digits."""
    max_body: Annotated[int, msgspec.Meta(ge=4096)] = 1 << 20
    """Bytes of a request's body."""
    attest_per_minute: Annotated[int, msgspec.Meta(ge=1)] = 1200
    """Attest calls that one address may make in a minute; beyond it the answer is 429."""
    proxies: tuple[str, ...] = ()
    """Networks of proxies (10.0.0.0/8) that are trusted to name callers in X-Forwarded-For, for limits and records."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Appraisals at a time."""
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Appraisals that may wait; beyond it the answer is 503."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time."""
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds for which a replica still answers after SIGTERM, so that callers find another one first."""
