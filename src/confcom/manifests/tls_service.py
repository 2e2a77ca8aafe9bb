"""A service over TLS: the certificate that it keeps, its rights to that, its store on a volume or in a database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from confcom.manifests import account_policies, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, Component, Mounted, Object, Workload, namespaced_object, rule

CA_KEY = "ca-certificates.crt"
SECRET_KEYS = ("tls.crt", "tls.key", "tls.since", "next.crt", "next.key", "ca.crt")
"""What the service keeps in its Secret."""
FOLDER = "/var/lib/confcom"
"""Where its volume is."""


def own_data(workload: Workload, secret: str, config_map: str) -> list[Object]:
    """A Secret and a ConfigMap without data, and what of them the component may change.

    The component writes its certificate or CA there, and an apply leaves that alone.
    """
    return [
        namespaced_object("v1", "Secret", secret, workload.component, type="Opaque"),
        namespaced_object("v1", "ConfigMap", config_map, workload.component),
        *account_policies.own_data(workload, (*SECRET_KEYS, CA_KEY)),
    ]


def own_data_rules(secret: str, config_map: str, given: str = "") -> list[Object]:
    """The rights to these; a Secret that an operator has given is read instead."""
    return [
        rule("", ["secrets"], ["get"], [given or secret]),
        rule("", ["secrets"], ["patch"], [secret]),
        rule("", ["configmaps"], ["get", "patch"], [config_map]),
    ]


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
        """A Job that brings the schema to the newest revision.

        The pods of a Job cannot be changed, so its name changes with every setting that is in them.
        The command `confcom COMPONENT migrate` reads the address from `variable`.
        """
        own = Workload(f"{workload.component}-migration", f"{workload.name}-migration")
        tolerated = json.dumps(config.tolerated(), sort_keys=True, separators=(",", ":"))
        runs = "\n".join((config.image, config.image_pull_policy, self.secret, tolerated, *config.image_pull_secrets))
        volume, mounts = self.volume()
        words = [workload.component, "migrate", "--role", "$(ROLE)"]
        env = [*self.settings(variable, "owner-url"), {"name": "ROLE", "valueFrom": self._value("role")}]
        egress = (objects.DNS_PORT, self.port)
        spec = objects.any_node(own) | {
            "automountServiceAccountToken": False,
            "dnsPolicy": objects.dns_policy(egress),
            "restartPolicy": "OnFailure",
            "tolerations": objects.tolerations(config),
            "containers": [objects.task(config, "task", words, mounts, env=env)],
            "volumes": [volume],
        }
        name = f"{own.name}-{sha256(runs.encode()).hexdigest()[:8]}"
        job = {"backoffLimit": 20, "template": objects.pod_template(own, spec)}
        return [
            objects.network_policy(own, egress=egress),
            objects.service_account(own, token=False),
            namespaced_object("batch/v1", "Job", name, own.component, spec=job),
        ]

    def _value(self, key: str) -> Object:
        return {"secretKeyRef": {"name": self.secret, "key": key}}


class TlsService(NamedTuple):
    """A service that listens at `port`, for others at `service_port`, and what an operator decided about it.

    `secret` is one with a certificate that is managed elsewhere; empty: the service makes its own. `storage` is the
    size of its volume, as SIZE or CLASS/SIZE; empty: the pod's own folder. `claim` names the volume.
    """

    workload: Workload
    port: int
    service_port: int
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
        *,
        settings: dict[str, str],
        volumes: list[Mounted],
        requests: Object,
        egress: tuple[int, ...],
        migrates: str,
        init: Sequence[Object] = (),
    ) -> list[Object]:
        """Every object of the service; `settings` are those of its daemon beside its certificate and its store.

        `migrates` is the variable with the database's address for the command that changes its schema.
        """
        workload, shared, replicas, database_volumes = self.workload, [], 1, []
        daemon = f"{workload.component}-service"
        env = objects.environment(daemon, {"store": f"{FOLDER}/{workload.component}.sqlite"})
        if self.database is not None:
            egress, replicas = (*egress, self.database.port), self.database.replicas
            shared = self.database.migration(config, workload, migrates)
            env, database_volumes = self.database.settings(env[0]["name"]), [self.database.volume()]
        component = Component(
            workload=workload,
            replicas=replicas,
            # A volume is in one place at a time: a successor would wait for it until its predecessor has gone.
            recreated=bool(self._volume_size),
            args=(workload.component, "serve"),
            daemon=daemon,
            settings=self._settings() | settings,
            env=env,
            ports={"https": self.port},
            service_port=self.service_port,
            requests=requests,
            volumes=[self._store(), *database_volumes, *volumes],
            egress=egress,
            rules=own_data_rules(self.own_secret, self.config_map, given=self.secret),
            init=init,
        )
        return [
            *shared,
            *own_data(workload, self.own_secret, self.config_map),
            *self._claim(),
            *component.objects(config),
        ]

    def _settings(self) -> dict[str, str]:
        return {
            "tls_secret": self.secret or self.own_secret,
            "tls_given": "true" if self.secret else "false",
            "tls_config_map": self.config_map,
            "tls_namespace": NAMESPACE,
            "tls_service": self.workload.name,
            **({} if self._volume_size else {"leave_after": str(LEAVE_AFTER)}),
        }

    def _store(self) -> Mounted:
        """Its volume; without one a folder of the pod, with room for uploads beside the store."""
        if self._volume_size:
            return objects.volume("store", FOLDER, read_only=False, persistentVolumeClaim={"claimName": self.claim})
        return objects.volume("store", FOLDER, read_only=False, emptyDir={"sizeLimit": "1Gi"})

    @property
    def _volume_size(self) -> str:
        return self.storage if self.database is None else ""

    def _claim(self) -> list[Object]:
        if not self._volume_size:
            return []
        storage_class, _, size = self._volume_size.rpartition("/")
        spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
        if storage_class:
            spec["storageClassName"] = storage_class
        return [namespaced_object("v1", "PersistentVolumeClaim", self.claim, self.workload.component, spec=spec)]
