"""The world of a simulated cluster: made once, and the same from then on, until the add-on is purged."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any

from confcom.errors import ConfigError
from confcom.manifests.objects import NAMESPACE, Object
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET, world_objects


def simulated_objects(
    now: datetime, *, secret: dict[str, Any] | None = None, machine_file: bytes | None = None
) -> list[Object]:
    """The world's objects: of the Secret in the cluster, else of a machine file, else of a new world."""
    # Here, because it brings the simulator along, and clusters with real nodes do without.
    from confcom.services.wiring import world_documents

    if secret is not None:
        machine_file = _content(secret)
    return world_objects(*world_documents(machine_file, now))


def _content(secret: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode((secret.get("data") or {})[WORLD_KEY], validate=True)
    except (KeyError, binascii.Error) as error:
        raise ConfigError(
            f"Secret {NAMESPACE}/{WORLD_SECRET} holds no simulated world",
            advice="Delete it to get a new world; what was attested in the old one is then worth nothing.",
        ) from error
