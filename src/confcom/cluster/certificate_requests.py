"""CertificateSigningRequests of the Kubernetes API: followed and answered by a signer, made and read by a requester."""

from __future__ import annotations

import asyncio
import random
import re
import time
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from itertools import islice
from typing import Any

from lightkube.core.resource import ApiInfo, GlobalSubResource, ResourceDef
from lightkube.generic_resource import Generic

from confcom.cluster.client import (
    CLIENT_LIFETIME,
    CSR_KIND,
    KNOWN,
    cluster_errors,
    list_and_watch,
    missing_ok,
    open_client,
)
from confcom.cluster.nodes import LIFE, PodEvent, report_event
from confcom.protocols.certificate_requests import (
    APPROVED,
    DENIED,
    EVENTS_CONTROLLER,
    FAILED,
    GROUP,
    PLURAL,
    POD_UID,
    SIGNER,
    VERSION,
    Requester,
)

MAX_PENDING = 65_536
"""Requests without a decision that are remembered; the others are found when the list is read again."""
MAX_OF_ONE = 64
"""Those of one pod, which has one or two at a time."""
CHUNK = 8
"""Requests of one answer to a list: the API server keeps up to 1.5 MiB of each."""
_Requester = tuple[str, str]
"""Account, and pod's uid as it is in the request."""
_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._:@]{0,252}")
"""Names of requests that are answered. The API server lets them hold anything but "/" and "%", of any length: `?…`
would make a request for the list out of one for a single object."""
_ADVICE = (
    "The signer's service account needs get, list and watch on certificatesigningrequests, update on their approval "
    f"and status, and approve and sign on signers for {SIGNER}, approve for those of approve_for."
)
_DEFINITION = ResourceDef(GROUP, VERSION, CSR_KIND.name)


def _sub_resource(action: str) -> Any:  # noqa: ANN401 - a class that lightkube understands
    info = ApiInfo(
        resource=_DEFINITION, parent=_DEFINITION, plural=PLURAL, verbs=["get", "patch", "put"], action=action
    )
    return type(action.title(), (GlobalSubResource, Generic), {"_api_info": info})


_APPROVAL, _STATUS = _sub_resource("approval"), _sub_resource("status")


class PendingRequests:
    """The requests for some signers that wait for a decision of ours, by requester and name."""

    def __init__(self, kubeconfig: str | None, signers: Collection[str]) -> None:
        self._unread = set(signers)
        self.changed = asyncio.Event()
        """Set whenever a request is added."""
        self._kubeconfig = kubeconfig
        self._requesters: dict[str, _Requester] = {}
        self._queues: dict[str, dict[str, dict[str, None]]] = {}
        """Names by account and pod, the oldest first."""
        self._taken: set[str] = set()

    @property
    def known(self) -> bool:
        """Whether the whole list has been read."""
        return not self._unread

    def __len__(self) -> int:
        return len(self._requesters) + len(self._taken)

    def add(self, name: str, requester: _Requester) -> None:
        """Remember a request; not while it is taken, and no more of one pod than `MAX_OF_ONE`."""
        account, pod = requester
        queued = len(self._queues.get(account, {}).get(pod, ()))
        if name in self._taken or name in self._requesters or queued >= MAX_OF_ONE or len(self) >= MAX_PENDING:
            return
        self._requesters[name] = requester
        self._queues.setdefault(account, {}).setdefault(pod, {})[name] = None
        self.changed.set()

    def take(self) -> tuple[str, _Requester] | None:
        """A request and its requester, until `release`; None if there is none.

        The account is chosen by chance, and then its pod, so that one with many requests does not delay the others; and
        one of its oldest requests, so that replicas seldom work on the same one.
        """
        if not self._queues:
            return None
        pods = self._queues[random.choice([*self._queues])]  # noqa: S311 - no secret
        queue = pods[random.choice([*pods])]  # noqa: S311 - as above
        name = random.choice([*islice(queue, 16)])  # noqa: S311 - as above
        requester = self._requesters[name]
        self._remove(name)
        self._taken.add(name)
        return name, requester

    def release(self, name: str) -> None:
        """The request is decided, or is to be added again."""
        self._taken.discard(name)

    def _remove(self, name: str) -> None:
        requester = self._requesters.pop(name, None)
        if requester is not None:
            account, pod = requester
            pods = self._queues[account]
            del pods[pod][name]
            if not pods[pod]:
                del pods[pod]
            if not pods:
                del self._queues[account]

    async def follow(self, signer: str) -> None:
        """List, then watch, for `LIFE` at most; `ClusterError` on failure."""
        chosen = {"spec.signerName": signer}
        with suppress(TimeoutError):
            async with open_client(self._kubeconfig, field_manager="confcom-certificate-signer") as client:
                async with asyncio.timeout(LIFE):
                    with cluster_errors("cannot follow the certificate requests", advice=_ADVICE):
                        listing = list_and_watch(client, CSR_KIND.resource, chunk=CHUNK, fields=chosen)
                        async with aclosing(listing) as changes:
                            async for kind, document in changes:
                                if kind == KNOWN:
                                    self._unread.discard(signer)
                                else:
                                    self._see(kind, document)

    def _see(self, kind: str, document: Mapping[str, Any]) -> None:
        """Note a request without a decision. `Approved` is none for our own signer: it may have come by hand."""
        name, spec, status = document["metadata"]["name"], document["spec"], document.get("status") or {}
        if not _NAME.fullmatch(name):
            return
        types = {one.get("type") for one in status.get("conditions") or ()}
        decided = {DENIED, FAILED} if spec.get("signerName") == SIGNER else {DENIED, FAILED, APPROVED}
        if kind == "DELETED" or status.get("certificate") or types & decided:
            self._remove(name)
        else:
            extra = spec.get("extra") or {}
            self.add(name, (str(spec.get("username", "")), str(extra.get(POD_UID, ""))))


class CertificateRequests:
    """Reads and writes single requests; the client is opened again before its token expires.

    Failures are `ClusterError`, refusals of the API server `ClusterRefused`: with status 409 where another replica was
    first, or where a name is taken.
    """

    def __init__(self, kubeconfig: str | None, manager: str) -> None:
        self._kubeconfig = kubeconfig
        self._manager = manager
        self._client: Any = None
        self._opened = 0.0

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def get(self, name: str) -> dict[str, Any] | None:
        """A request; None if there is none of that name."""
        client = await self._open()
        with missing_ok(), cluster_errors(f"cannot read the certificate request {name}"):
            return dict(await client.get(CSR_KIND.resource, name))
        return None

    async def create(
        self, name: str, request: bytes, usages: Sequence[str], lifetime: int | None, *, signer: str = SIGNER
    ) -> None:
        """Make a request for a signer, else ours; `request` is PEM, `lifetime` in seconds."""
        spec: dict[str, Any] = {"signerName": signer, "request": b64encode(request).decode(), "usages": [*usages]}
        if lifetime is not None:
            spec["expirationSeconds"] = lifetime
        wanted = {
            "apiVersion": CSR_KIND.api_version,
            "kind": CSR_KIND.name,
            "metadata": {"name": name},
            "spec": spec,
        }
        advice = "The account needs the ClusterRole confcom-certificate-requester: an administrator binds it."
        client = await self._open()
        with cluster_errors(f"cannot make the certificate request {name}", advice=advice):
            await client.create(CSR_KIND.resource(wanted))

    async def decide(self, document: Mapping[str, Any], condition: Mapping[str, str]) -> dict[str, Any]:
        """Approve or deny the request; refused with 409 if it has changed since it was read. Gives the new one."""
        return await self._write(_APPROVAL, document, {"conditions": [*_conditions(document), dict(condition)]})

    async def fail(self, document: Mapping[str, Any], condition: Mapping[str, str]) -> None:
        """Say that an approved request gets no certificate."""
        await self._write(_STATUS, document, {"conditions": [*_conditions(document), dict(condition)]})

    async def issue(self, document: Mapping[str, Any], chain: bytes) -> None:
        """Give the certificate (PEM)."""
        conditions = _conditions(document)
        await self._write(_STATUS, document, {"conditions": conditions, "certificate": b64encode(chain).decode()})

    async def report(self, requester: Requester, reason: str, note: str, now: datetime, *, instance: str) -> None:
        """Write an event about a pod that gets no certificate."""
        event = PodEvent(
            namespace=requester.namespace,
            pod=requester.pod,
            uid=requester.pod_uid,
            container="",
            reason="CertificateDenied",
            note=note,
            action="Sign",
            key=reason,
        )
        await report_event(await self._open(), event, now, controller=EVENTS_CONTROLLER, instance=instance)

    async def _write(self, part: Any, document: Mapping[str, Any], status: object) -> dict[str, Any]:  # noqa: ANN401
        name = document["metadata"]["name"]
        wanted = dict(document) | {"apiVersion": CSR_KIND.api_version, "kind": CSR_KIND.name, "status": status}
        client = await self._open()
        with cluster_errors(f"cannot write the certificate request {name}", advice=_ADVICE):
            return dict(await client.replace(part(wanted)))

    async def _open(self) -> Any:  # noqa: ANN401 - lightkube's signatures know its own models only
        now = time.monotonic()
        if self._client is None or now - self._opened > CLIENT_LIFETIME:
            former, self._client = self._client, open_client(self._kubeconfig, field_manager=self._manager)
            self._opened = now
            if former is not None:
                await former.close()
        return self._client


def _conditions(document: Mapping[str, Any]) -> list[Any]:
    return list((document.get("status") or {}).get("conditions") or ())
