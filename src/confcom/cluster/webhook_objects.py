"""What the admission webhook reads and writes in a cluster: its Secret, and whom two configurations let it be."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

from confcom.cluster.kept_secret import KeptSecret, decoded
from confcom.cluster.objects import Object, Ref

FIELD_MANAGER = "confcom-webhook"
ADMISSION = "admissionregistration.k8s.io/v1"
KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")


class WebhookObjects(KeptSecret):
    """One webhook's objects."""

    places = KINDS

    def __init__(self, *, namespace: str, secret: str, configuration: str, kubeconfig: str | None) -> None:
        super().__init__(namespace=namespace, secret=secret, kubeconfig=kubeconfig, manager=FIELD_MANAGER)
        self._configuration = configuration

    async def trusted(self, place: str) -> Mapping[str, bytes] | None:
        """The CA bundle in each entry of a configuration, by name; None where there is no such configuration."""
        found = await (await self._open()).get(Ref(ADMISSION, place, "", self._configuration))
        if found is None:
            return None
        return {entry["name"]: decoded(entry["clientConfig"].get("caBundle") or "") for entry in found["webhooks"]}

    async def trust(self, place: str, names: list[str], bundle: bytes) -> None:
        """Put the CA bundle into entries of a configuration, and nothing else."""
        client: Object = {"caBundle": b64encode(bundle).decode()}
        wanted = {
            "apiVersion": ADMISSION,
            "kind": place,
            "metadata": {"name": self._configuration},
            "webhooks": [{"name": name, "clientConfig": client} for name in names],
        }
        await (await self._open()).apply(wanted)
