"""Settings of the admission webhook, and what they mean."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

import msgspec

from confcom.admission.aesm_wiring import Wiring
from confcom.admission.pod_json import Grants
from confcom.errors import ConfigError
from confcom.formats.arguments import parse_tcp_address
from confcom.protocols.admission import NAMESPACE, SERVICE

_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_DNS = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[-A-Za-z0-9]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*"
)
_DAY = 24 * 3600.0


class WebhookConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the webhook; the defaults are those for production."""

    listen: str = "[::]:8443"
    """HOST:PORT of HTTPS, which the API server calls; [::] is every address."""
    http: str = "[::]:9464"
    """HOST:PORT, or unix:PATH, of /healthz, /readyz and /metrics; empty for none."""
    namespace: str = NAMESPACE
    """Namespace of the Service."""
    service: str = SERVICE
    """The Service that the API server calls; the certificate is for its name."""
    hosts: str = ""
    """Further names and addresses of the certificate, with commas between."""
    ca: str = "/etc/confcom/webhook-ca"
    """Folder with tls.crt and tls.key of the CA that the webhook configurations trust; changes are followed."""
    client_ca: str | None = None
    """PEM file of the authority that signed the API server's client certificate; without it any client may ask."""
    kubeconfig: str | None = None
    """Credentials for the Kubernetes API; else the pod's service account, or the user's own."""

    provision_grants: str = ""
    """Who may hold the provisioning device: NAMESPACE/SERVICEACCOUNT or NAMESPACE/*, with commas between."""
    oversized: Literal["refuse", "warn"] = "refuse"
    """Answer to a pod that requests more EPC than any node has; warn where larger nodes are made on demand."""
    quote_helper: bool = True
    """Whether the quote helper is enabled; if it is not, pods that ask it are warned."""
    wiring: Wiring = "plugin"
    """What brings the helper's folder into containers: our device plugin, or a volume of the host (host-path), which
    takes no plugin but is forbidden by Pod Security from `baseline` on."""

    lifetime: _Seconds = 30 * _DAY
    """Seconds that a certificate is valid; after half of them another one is issued."""
    look_every: _Seconds = 5.0
    """Seconds between two reads of the CA."""
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 6.0
    """Seconds for which a replica still answers after SIGTERM, so that callers find another one first."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=1)] = 6.0
    """Seconds that reviews in flight get then."""

    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Connections at a time; beyond it, the address with most gives up the oldest one that waits for its client."""
    body_memory: Annotated[int, msgspec.Meta(ge=8 << 20)] = 32 << 20
    """Bytes of all bodies that are being read; the largest makes room."""
    body_timeout: _Seconds = 5.0
    """Seconds for a body: as long as the API server waits."""
    idle_timeout: Annotated[float, msgspec.Meta(ge=1)] = 150.0
    """Seconds that a connection may stay without a review; more than the 90 after which the API server closes it."""

    def check(self) -> None:
        """`ConfigError` if grants, names or the address are wrong."""
        self.grants()
        for name in self.names():
            if not _is_host(name):
                raise ConfigError(f"{name[:80]!r} is neither a name nor an address", advice="Correct --hosts.")
        parse_tcp_address(self.listen)

    def grants(self) -> Grants:
        """Who may hold the provisioning device."""
        return Grants.parse(self.provision_grants)

    def names(self) -> tuple[str, ...]:
        """Names and addresses of the certificate."""
        own = f"{self.service}.{self.namespace}.svc"
        return (own, f"{own}.cluster.local", *(word for part in self.hosts.split(",") if (word := part.strip())))


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return _DNS.fullmatch(name) is not None
    return True
