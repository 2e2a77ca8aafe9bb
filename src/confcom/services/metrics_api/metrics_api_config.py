"""Settings of the metrics API."""

from __future__ import annotations

from typing import Annotated

import msgspec

from confcom.formats.arguments import parse_tcp_address
from confcom.protocols.custom_metrics import NAMESPACE, SERVICE
from confcom.services.runtime.status_page import parse_address

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class MetricsApiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the metrics API; the defaults are those for production."""

    listen: str = "[::]:8443"
    """HOST:PORT of HTTPS, which the API server asks; [::] is every address."""
    http: str = "[::]:9464"
    """HOST:PORT, or unix:PATH, of /healthz, /readyz and /metrics; empty for none."""
    namespace: str = NAMESPACE
    """Namespace of the Service, and of the exporters."""
    service: str = SERVICE
    """The Service that the API server asks; the certificate is for its name."""
    ca: str = "/etc/confcom/metrics-api-ca"
    """Folder with tls.crt and tls.key of the CA that the APIService trusts; changes are followed."""
    exporters_ca: str = "/etc/confcom/exporters-ca/ca.crt"
    """PEM file with the CAs of the exporters' certificates; changes are followed."""
    kubeconfig: str | None = None
    """Credentials for the Kubernetes API; else the pod's service account, or the user's own."""

    interval: _Seconds = 5.0
    """Seconds between two reads of every exporter."""
    timeout: _Seconds = 4.0
    """Seconds for the whole answer of an exporter."""
    stale_after: _Seconds = 30.0
    """Seconds after which figures are no longer given: HPA ignores their timestamps."""
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 6.0
    """Seconds for which a replica still answers after SIGTERM, so that the API server finds another one first."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Connections at a time."""

    def check(self) -> None:
        """`ConfigError` if an address is wrong."""
        parse_tcp_address(self.listen)
        if self.http:
            parse_address(self.http)

    def names(self) -> tuple[str, ...]:
        """Names of the certificate."""
        own = f"{self.service}.{self.namespace}.svc"
        return (own, f"{own}.cluster.local")
