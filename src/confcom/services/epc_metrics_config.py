"""Settings of the exporter of EPC use."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from confcom.devices.epc_units import CANONICAL_RESOURCE
from confcom.errors import ConfigError

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `confcom metrics`; the defaults are those for production."""

    node_name: str = ""
    """This node's name in the Kubernetes API."""
    kubeconfig: str | None = None
    """Credentials for the API; without it those of the pod's service account."""
    host_root: str = "/"
    """Where this process sees the host's /proc, /sys and /dev."""
    simulated_node: str = ""
    """Folder of a simulated node, whose device is a file; empty on real ones."""
    resource: str = CANONICAL_RESOURCE
    """Name of the EPC resource that the node publishes, counted in MiB."""

    http: str = "[::]:9466"
    """Where /healthz, /readyz and /metrics are served."""
    interval: _Seconds = 10.0
    """Seconds between two looks at the processes."""

    tolerance: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.1
    """Share of its request that a container may exceed before it counts as over."""
    patience: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    """Seconds that it must be over without a break before that is reported."""
    events: bool = True
    """Report it as an event of the pod, beside the metric."""
    enforce: Literal["auto", "on", "off"] = "auto"
    """Let the kernel hold containers to their requests: where it can, never, or `on`: not ready where it cannot."""

    def check(self) -> None:
        """What one field alone cannot tell; `ConfigError` says what is wrong."""
        if not self.node_name:
            raise ConfigError(
                "which node is this?",
                advice="Name it with --node-name or CONFCOM_METRICS_NODE_NAME, in a pod from spec.nodeName.",
            )
