"""A service over TLS, one pod with a volume: the certificate that it keeps, its rights to that, and its Deployment."""

from __future__ import annotations

from typing import NamedTuple

from confcom.manifests import account_policies, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    NAMESPACE,
    Mounted,
    Object,
    Workload,
    cluster_pod,
    deployment,
    mount,
    names_of,
    namespaced_object,
    service,
    service_account,
    settings,
)

CA_KEY = "ca-certificates.crt"
SECRET_KEYS = ("tls.crt", "tls.key", "tls.since", "next.crt", "next.key", "ca.crt")
"""What the service keeps in its Secret."""
FOLDER = "/var/lib/confcom"
"""Where its volume is."""


class TlsService(NamedTuple):
    """A service that listens at `port`, and what an operator decided about it.

    `secret` is one with a certificate that is managed elsewhere; empty: the service makes its own. `storage` is the
    size of its volume, as SIZE or CLASS/SIZE; empty: the pod's own folder. `claim` names the volume.
    """

    workload: Workload
    port: int
    secret: str
    storage: str
    claim: str

    @property
    def own_secret(self) -> str:
        """The Secret of a certificate that the service makes."""
        return f"{self.workload.name}-tls"

    @property
    def config_map(self) -> str:
        """Where the service publishes the authority of its certificate, under `CA_KEY`."""
        return f"{self.workload.name}-ca"

    @property
    def host(self) -> str:
        """The name of the service in the cluster."""
        return names_of(self.workload)[0]

    def objects(self, *, opening: Object, service_port: int, pod: Object) -> list[Object]:
        """Every object of the service; the Deployment last, after what it uses."""
        workload = self.workload
        made = deployment(workload, pod, replicas=1)
        if self.storage:
            # A volume is in one place at a time: a successor would wait for it until its predecessor has gone.
            made["spec"]["strategy"] = {"type": "Recreate"}
        return [
            opening,
            service_account(workload, token=True),
            # Without data: the service writes its certificate and its CA, and an apply leaves both alone.
            namespaced_object("v1", "Secret", self.own_secret, workload.component, type="Opaque"),
            namespaced_object("v1", "ConfigMap", self.config_map, workload.component),
            *account_policies.own_data(workload, (*SECRET_KEYS, CA_KEY)),
            *self._rights(),
            *self._claim(),
            service(workload, service_port, "https"),
            made,
        ]

    def pod(
        self,
        config: AddonConfig,
        args: list[str],
        env: list[Object],
        volumes: list[Mounted],
        *,
        requests: tuple[str, str, str],
    ) -> Object:
        """Its pod, with its own volume before `volumes`; `requests` as of `resources`."""
        lasting = {"persistentVolumeClaim": {"claimName": self.claim}}
        store = {"name": "store", **(lasting if self.storage else {"emptyDir": {"sizeLimit": "1Gi"}})}
        return cluster_pod(
            config,
            self.workload,
            args,
            env=env,
            ports={"https": self.port},
            requests=requests,
            volumes=[(store, mount("store", FOLDER)), *volumes],
        )

    def settings(self, daemon: str, values: dict[str, str]) -> list[Object]:
        """The settings of its daemon as environment: where it listens and its certificate, then `values`."""
        own = {
            "listen": f"[::]:{self.port}",
            "tls_secret": self.secret or self.own_secret,
            "tls_given": "true" if self.secret else "false",
            "tls_config_map": self.config_map,
            "tls_namespace": NAMESPACE,
            "tls_service": self.workload.name,
        }
        return settings(daemon, own | values)

    def _rights(self) -> list[Object]:
        return objects.role(
            self.workload,
            [
                objects.rule("", ["secrets"], ["get"], [self.secret or self.own_secret]),
                objects.rule("", ["secrets"], ["patch"], [self.own_secret]),
                objects.rule("", ["configmaps"], ["get", "patch"], [self.config_map]),
            ],
        )

    def _claim(self) -> list[Object]:
        if not self.storage:
            return []
        storage_class, _, size = self.storage.rpartition("/")
        spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
        if storage_class:
            spec["storageClassName"] = storage_class
        return [namespaced_object("v1", "PersistentVolumeClaim", self.claim, self.workload.component, spec=spec)]
