"""What a server with a certificate of its own keeps in a cluster: its Secret, and the ConfigMap with its authority."""

from __future__ import annotations

from collections.abc import Mapping

from confcom.cluster.kept_secret import KeptSecret
from confcom.cluster.objects import Ref

PLACE = "ConfigMap"


class PublishedCa(KeptSecret):
    """One server's objects; `key` is where the ConfigMap has the authorities, PEM after PEM."""

    places = (PLACE,)

    def __init__(
        self, *, namespace: str, secret: str, config_map: str, key: str, kubeconfig: str | None, manager: str
    ) -> None:
        super().__init__(namespace=namespace, secret=secret, kubeconfig=kubeconfig, manager=manager)
        self._config_map = Ref("v1", PLACE, namespace, config_map)
        self._key = key

    async def trusted(self, place: str) -> Mapping[str, bytes] | None:
        """What the ConfigMap publishes; None where there is none."""
        del place
        found = await (await self._open()).get(self._config_map)
        return None if found is None else {self._key: (found.get("data") or {}).get(self._key, "").encode()}

    async def trust(self, place: str, names: list[str], bundle: bytes) -> None:
        """Publish the authorities."""
        metadata = {"namespace": self._config_map.namespace, "name": self._config_map.name}
        data = dict.fromkeys(names, bundle.decode("ascii"))
        await (await self._open()).apply({"apiVersion": "v1", "kind": place, "metadata": metadata, "data": data})
