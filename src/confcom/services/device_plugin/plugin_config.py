"""Settings of the device plugin."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from confcom.devices.resources import PATIENCE
from confcom.devices.sgx_node import DEFAULT_UNIT_LIMIT, MAX_UNIT_LIMIT, PublisherName
from confcom.errors import ConfigError
from confcom.protocols.epc import CANONICAL, ENCLAVE, HELPER, HELPER_EPC, PROVISION

_RESOURCE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_BYTES = "sgx.intel.com/epc"
_Seconds = Annotated[float, msgspec.Meta(gt=0)]


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
    helper_patience: _Seconds = PATIENCE
    """Seconds for which the helper may be away before the resource is unhealthy."""

    node_name: str = ""
    """This node's name in the Kubernetes API, for EPC in the node's status and for `dra`."""
    kubeconfig: str | None = None
    """Credentials for that; without it those of the pod's service account."""
    publish_interval: _Seconds = 1.0
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

    watch_interval: _Seconds = 0.5
    """Seconds between two looks at the sockets."""
    health_interval: _Seconds = 5.0
    """Seconds between two looks at the driver's devices."""
    register_timeout: _Seconds = 10.0
    """Seconds for the kubelet to take a registration, and to open its stream then."""
    retry_initial: _Seconds = 0.2
    """Seconds until another attempt after a failure; doubled each time."""
    retry_max: _Seconds = 30.0
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
