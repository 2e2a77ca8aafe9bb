"""A service over TLS, one pod with a volume: the certificate that it keeps, its rights to that, and its Deployment."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, NamedTuple

from confcom.manifests import account_policies, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import ANY_NODE, NAMESPACE, Mounted, Object, Workload, namespaced_object

CA_KEY = "ca-certificates.crt"
SECRET_KEYS = ("tls.crt", "tls.key", "tls.since", "next.crt", "next.key", "ca.crt")
"""What the service keeps in its Secret."""
FOLDER = "/var/lib/confcom"
"""Where its volume is."""


DATABASE_FOLDER = "/etc/confcom/database"
"""Where the authority of a PostgreSQL is."""
LEAVE_AFTER = 6
"""Seconds for which a pod that has a successor still answers after SIGTERM: nodes need some to send it nothing more."""


class SharedDatabase(NamedTuple):
    """A PostgreSQL that an operator brings: the Secret of its addresses, its port, and the pods that use it.

    The Secret has `url`, for the role that serves, which `role` names; `owner-url`, for the one that changes the
    schema; and `ca.crt`, the authority of the server's certificate.
    """

    secret: str
    port: int
    replicas: int

    def settings(self, variable: str, key: str = "url") -> list[Object]:
        """The address in this environment variable, and the authority."""
        address = {"name": variable, "valueFrom": self._value(key)}
        return [address, {"name": "PGSSLROOTCERT", "value": f"{DATABASE_FOLDER}/ca.crt"}]

    def volume(self) -> Mounted:
        """The authority's file."""
        items = [{"key": "ca.crt", "path": "ca.crt"}]
        return objects.secret_volume("database", self.secret, DATABASE_FOLDER, items=items)

    def migration(self, config: AddonConfig, workload: Workload, variable: str) -> list[Object]:
        """A Job that brings the schema to the newest revision; its name changes with what it runs.

        The command `confcom COMPONENT migrate` reads the address from `variable`.
        """
        own = Workload(f"{workload.component}-migration", f"{workload.name}-migration")
        runs = "\n".join((config.image, self.secret, *config.image_pull_secrets))
        volume, mounts = self.volume()
        task = objects.container(
            config,
            "task",
            [workload.component, "migrate", "--role", "$(ROLE)"],
            env=[*self.settings(variable, "owner-url"), {"name": "ROLE", "valueFrom": self._value("role")}],
            resources=objects.resources("20m", "64Mi", "256Mi"),
            securityContext=objects.confined(),
            volumeMounts=mounts,
        )
        spec = {
            "serviceAccountName": own.name,
            "automountServiceAccountToken": False,
            "priorityClassName": objects.CLUSTER_CRITICAL,
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": False,
            "restartPolicy": "OnFailure",
            "securityContext": {"fsGroup": objects.USER},
            "nodeSelector": ANY_NODE,
            "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
            "containers": [task],
            "volumes": [volume],
        }
        job = namespaced_object(
            "batch/v1",
            "Job",
            f"{own.name}-{sha256(runs.encode()).hexdigest()[:8]}",
            own.component,
            spec={"backoffLimit": 20, "template": objects.pod_template(own, spec)},
        )
        return [
            objects.opening(own, egress=(objects.DNS_PORT, self.port)),
            objects.service_account(own, token=False),
            job,
        ]

    def _value(self, key: str) -> Object:
        return {"secretKeyRef": {"name": self.secret, "key": key}}


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
    database: SharedDatabase | None = None
    """Instead of the volume."""

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
        return objects.names_of(self.workload)[0]

    def objects(
        self,
        config: AddonConfig,
        pod: Object,
        *,
        service_port: int,
        egress: tuple[int, ...],
        more_egress: tuple[int, ...],
        migrates: str,
    ) -> list[Object]:
        """Every object of the service; the Deployment last, after what it uses.

        `migrates` is the variable with the database's address for the command that changes its schema.
        """
        workload, shared, replicas = self.workload, [], 1
        if self.database is not None:
            more_egress, replicas = (*more_egress, self.database.port), self.database.replicas
            shared = self.database.migration(config, workload, migrates)
        made = objects.deployment(workload, pod, replicas=replicas)
        if self._volume_size:
            # A volume is in one place at a time: a successor would wait for it until its predecessor has gone.
            made["spec"]["strategy"] = {"type": "Recreate"}
        return [
            *shared,
            objects.opening(workload, ingress=(self.port,), egress=egress, more=more_egress),
            objects.service_account(workload, token=True),
            # Without data: the service writes its certificate and its CA, and an apply leaves both alone.
            namespaced_object("v1", "Secret", self.own_secret, workload.component, type="Opaque"),
            namespaced_object("v1", "ConfigMap", self.config_map, workload.component),
            *account_policies.own_data(workload, (*SECRET_KEYS, CA_KEY)),
            *self._rights(),
            *self._claim(),
            objects.service(workload, service_port, "https"),
            made,
        ]

    def pod(
        self,
        config: AddonConfig,
        values: dict[str, str],
        volumes: list[Mounted],
        *,
        requests: Object,
        **body: Any,  # noqa: ANN401 - JSON
    ) -> Object:
        """Its pod; `values` are settings of its daemon, beside those of its certificate and its store."""
        store: Object = {"emptyDir": {"sizeLimit": "1Gi"}}
        if self._volume_size:
            store = {"persistentVolumeClaim": {"claimName": self.claim}}
        own = [objects.tmp(), objects.volume("store", FOLDER, read_only=False, **store)]
        component = self.workload.component
        return objects.pod(
            config,
            self.workload,
            [component, "serve"],
            env=self._settings(f"{component}-service", values),
            ports={"https": self.port},
            requests=requests,
            volumes=[*own, *([] if self.database is None else [self.database.volume()]), *volumes],
            **body,
        )

    def _settings(self, daemon: str, values: dict[str, str]) -> list[Object]:
        own = {
            "listen": f"[::]:{self.port}",
            "tls_secret": self.secret or self.own_secret,
            "tls_given": "true" if self.secret else "false",
            "tls_config_map": self.config_map,
            "tls_namespace": NAMESPACE,
            "tls_service": self.workload.name,
            **({} if self._volume_size else {"leave_after": str(LEAVE_AFTER)}),
        }
        store = objects.settings(daemon, {"store": f"{FOLDER}/{self.workload.component}.sqlite"})
        if self.database is not None:
            store = self.database.settings(store[0]["name"])
        return [*objects.settings(daemon, own | values), *store]

    @property
    def _volume_size(self) -> str:
        return self.storage if self.database is None else ""

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
        if not self._volume_size:
            return []
        storage_class, _, size = self._volume_size.rpartition("/")
        spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
        if storage_class:
            spec["storageClassName"] = storage_class
        return [namespaced_object("v1", "PersistentVolumeClaim", self.claim, self.workload.component, spec=spec)]
