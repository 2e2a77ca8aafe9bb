"""What the parts of the device plugin share: settings, and events with the log and the metrics that observe them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.devices.resources import PATIENCE
from confcom.devices.sgx_node import DEFAULT_UNIT_LIMIT, MAX_UNIT_LIMIT, PublisherName
from confcom.errors import ConfigError
from confcom.protocols.epc import CANONICAL, ENCLAVE, HELPER, HELPER_EPC, PROVISION
from confcom.services.runtime.process import Seconds
from confcom.services.runtime.status_page import Metrics

_RESOURCE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_BYTES = "sgx.intel.com/epc"


class DevicePluginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the device plugin; the defaults are those for production."""

    platform: Literal["auto", "intel", "simulated"] = "auto"
    """Whose EPC it is."""
    host_root: str = "/"
    """Where this process sees the host's root directory."""
    simulated_machine: str | None = None
    """File of the simulated machine on which this node's enclaves run."""
    simulated_epc: str = "168Mi"
    """EPC of the simulated node: one size per NUMA node, with commas between."""
    simulated_node: str = "/var/lib/confcom/simulated-node"
    """Folder of the simulated node, under the same path here and on the host."""
    wait_for_sgx: bool = False
    """On a node without SGX, wait for it instead of ending with an error."""

    resource: str = CANONICAL
    """Name of the EPC resource, counted in MiB."""
    reserve_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    """MiB held back for enclaves that ask for none, beside what quote helpers have."""
    overcommit: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.0
    """What may be requested as a multiple of what is there beside the reserve; above 1 enclaves may be paged."""
    publisher: PublisherName = "auto"
    """One device per MiB, or an amount in the node's status: `auto` goes by `unit_limit`. `dra`: devices that claims
    share (dynamic resource allocation, Kubernetes 1.36), and no extended resource at all."""
    unit_limit: Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIT_LIMIT)] = DEFAULT_UNIT_LIMIT
    """Most devices that `auto` makes; each costs the kubelet time whenever it restarts."""
    enclave_resource: str = ENCLAVE
    """Name of the enclave device's own resource, beside EPC in the node's status."""
    enclave_limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 110
    """Containers with enclaves at a time, beside EPC in the node's status; 110 is the kubelet's limit of pods."""
    provision_resource: str = PROVISION
    """Name of the provisioning device's resource."""
    provision_limit: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    """Containers that may hold the provisioning device at a time; 0: no container gets it."""
    provision_namespaces: str = ""
    """Namespaces whose pods may hold it, with commas between; `*` leaves the choice to admission control."""

    helper_folder: str = ""
    """Folder of the quote helper's socket, under the same path here and on the host, for containers that request
    `helper_resource`. Empty: there is no such resource."""
    helper_resource: str = HELPER
    """Name of the resource that brings a container to the quote helper."""
    helper_epc_mib: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    """MiB of EPC for each of the node's two quote helpers (the present one and a successor), which applications cannot
    request: the resource `sgx.confcom.dev/quote-helper-epc`, with both SGX devices. 0: there is no such resource."""
    helper_namespace: str = "confcom-system"
    """Namespace of the quote helper: only its pods may have that resource."""
    helper_limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 256
    """Containers that may have it at a time."""
    helper_patience: Seconds = PATIENCE
    """Seconds for which the helper may be away before the resource is unhealthy."""

    node_name: str = ""
    """This node's name in the Kubernetes API, for EPC in the node's status and for `dra`."""
    kubeconfig: str | None = None
    """Credentials for that; without it those of the pod's service account."""
    publish_interval: Seconds = 1.0
    """Seconds between two changes of the node's status at least."""

    plugin_dir: str = "/var/lib/kubelet/device-plugins"
    """The kubelet's directory of device plugins, with kubelet.sock."""
    registration: Literal["socket", "registry"] = "socket"
    """Register at kubelet.sock, or let the kubelet find our socket in `registry_dir`."""
    registry_dir: str = "/var/lib/kubelet/plugins_registry"
    """The directory that the kubelet watches for plugins."""
    pod_resources_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """Where the kubelet says which pod holds which device."""
    cdi_dir: str = "/var/run/cdi"
    """The container runtime's CDI directory, for `dra`: under the same path here and on the host, or mounted here."""

    http: str = ""
    """Where /healthz, /readyz and /metrics are: HOST:PORT, [ADDRESS]:PORT or unix:PATH. Empty: nowhere."""

    watch_interval: Seconds = 0.5
    """Seconds between two looks at the sockets."""
    health_interval: Seconds = 5.0
    """Seconds between two looks at the driver's devices."""
    register_timeout: Seconds = 10.0
    """Seconds for the kubelet to take a registration, and to open its stream then."""
    retry_initial: Seconds = 0.2
    """Seconds until another attempt after a failure; doubled each time."""
    retry_max: Seconds = 30.0
    """Most seconds between two attempts."""

    def check(self) -> None:
        """Check what depends on several fields; `ConfigError` says what is wrong."""
        names = (self.resource, self.enclave_resource, self.provision_resource, self.helper_resource, HELPER_EPC)
        for name in names:
            _check_resource(name)
        if len(set(names)) != len(names):
            raise ConfigError("two resources have the same name")
        if self.helper_folder and not _is_plain(self.helper_folder):
            raise ConfigError(
                f"{self.helper_folder!r} is no folder as the container runtime takes it",
                advice="Write an absolute path without dots, such as /var/run/aesmd.",
            )
        if self.resource == _BYTES:
            raise ConfigError(
                f"{_BYTES} counts bytes, and the EPC resource here counts MiB",
                advice="Leave the resource as it is: requests in other dialects are translated at admission.",
            )
        if self.publisher == "dra" and not self.node_name:
            raise ConfigError(
                "publisher dra needs the node's name in the Kubernetes API", advice="Name the node with --node-name."
            )
        if self.provision_limit and not self.namespaces:
            raise ConfigError(
                "names no namespace, but pods may hold the provisioning device (provision_limit)",
                setting="provision_namespaces",
                advice="Name the namespaces whose pods may hold the provisioning device.",
            )

    @property
    def namespaces(self) -> frozenset[str]:
        """`provision_namespaces` as a set."""
        return frozenset(word for part in self.provision_namespaces.split(",") if (word := part.strip()))


def _is_plain(path: str) -> bool:
    return path.startswith("/") and not {".", ".."} & set(path.split("/"))


def _check_resource(name: str) -> None:
    if _RESOURCE.fullmatch(name) is None or f".{name.split('/')[0]}".endswith(".kubernetes.io"):
        raise ConfigError(
            f"{name!r} is no name that the kubelet takes for an extended resource",
            advice="Write DOMAIN/NAME; the domain kubernetes.io is Kubernetes' own.",
        )


@dataclass(frozen=True, slots=True)
class PluginEvent:
    """One thing that happened to a resource; `name` is the log's event, `warning` its level."""

    name: str
    resource: str
    fields: Mapping[str, object] = field(default_factory=dict)
    warning: bool = False


Observer: TypeAlias = Callable[[PluginEvent], None]


def log_event(event: PluginEvent) -> None:
    """Write the event to the log."""
    logger = structlog.get_logger()
    write = logger.warning if event.warning else logger.info
    write(event.name, resource=event.resource, **event.fields)


PREFIX = "confcom_device_plugin"
_CLAIM_OUTCOMES = {"prepare": ("prepared", "failed"), "unprepare": ("unprepared", "unknown", "failed")}


class DevicePluginMetrics(Metrics):
    """Everything that the plugin counts. `docs/reference/device-plugin.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        gauge, counter = self.gauge, self.counter
        self._true = gauge("epc_mib", "MiB of EPC that the node has.", "numa_node")
        self._requestable = gauge("epc_requestable_mib", "MiB of EPC that may be requested: less the reserve, times "
                                  "the overcommit ratio.")  # fmt: skip
        self._reserve = gauge("epc_reserve_mib", "MiB of EPC held back.")
        self._overcommit = gauge("epc_overcommit_ratio", "What may be requested by what is there beside the reserve.")
        self._publisher = gauge("publisher", "1 for the way in which EPC is published.", "publisher")
        self._healthy = gauge("healthy", "1 while the resource's devices are there, else 0.", "resource")
        self._devices = gauge("devices", "Devices last told to the kubelet.", "resource")
        self._bytes = gauge("list_bytes", "Bytes of the last list told to the kubelet; it takes 4194304.", "resource")
        self._registrations = counter("registrations", "Registrations, by outcome.", "resource", "outcome")
        self._losses = counter("kubelet_losses", "Times that the kubelet or its stream was lost.", "resource")
        self._grants = counter("grants", "Containers that were given devices.", "resource")
        self._granted = counter("granted_units", "Devices given, summed up over containers.", "resource")
        self._publications = counter(
            "publications", "Changes of the node's status and of its slice, by outcome.", "outcome"
        )
        self._claims = gauge("claims", "Claims that are prepared.")
        self._calls = counter(
            "claim_calls", "Claims that the kubelet asked to be prepared or let go.", "call", "outcome"
        )
        for outcome in ("published", "failed"):
            self._publications.labels(outcome)
        for call, outcomes in _CLAIM_OUTCOMES.items():
            for outcome in outcomes:
                self._calls.labels(call, outcome)
        self._by_event: Mapping[str, Callable[[str, Mapping[str, Any]], None]] = {
            "epc.plan": self._plan,
            "epc.published": lambda _, fields: self._publications.labels(fields["outcome"]).inc(),
            "devices.sent": self._sent,
            "devices.health": lambda resource, fields: self._healthy.labels(resource).set(bool(fields["healthy"])),
            "devices.granted": self._grant,
            "kubelet.registered": self._registered,
            "claims.known": lambda _, fields: self._claims.set(fields["prepared"]),
            "claim.prepared": lambda _, fields: self._claim("prepare", fields),
            "claim.unprepared": lambda _, fields: self._claim("unprepare", fields),
            "kubelet.lost": lambda resource, _: self._losses.labels(resource).inc(),
        }

    def observe(self, event: PluginEvent) -> None:
        """Count an event, if a metric counts events of its name."""
        count = self._by_event.get(event.name)
        if count is not None:
            count(event.resource, event.fields)

    def _plan(self, resource: str, fields: Mapping[str, Any]) -> None:
        del resource
        for node, mib in fields["numa_nodes"].items():
            self._true.labels(node).set(mib)
        self._requestable.set(fields["units"])
        self._reserve.set(fields["reserve_mib"])
        self._overcommit.set(fields["overcommit"])
        self._publisher.labels(fields["publisher"]).set(1)

    def _sent(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._devices.labels(resource).set(fields["devices"])
        self._bytes.labels(resource).set(fields["bytes"])
        self._healthy.labels(resource).set(fields["healthy"] == fields["devices"])

    def _registered(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._registrations.labels(resource, fields["outcome"]).inc()
        # Beforehand, so that the first is an increase.
        self._losses.labels(resource)
        for outcome in ("registered", "failed"):
            self._registrations.labels(resource, outcome)

    def _claim(self, call: str, fields: Mapping[str, Any]) -> None:
        self._claims.set(fields["prepared"])
        self._calls.labels(call, fields["outcome"]).inc()

    def _grant(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._grants.labels(resource).inc()
        self._granted.labels(resource).inc(fields["units"])
