"""What a cluster must be able to do for the add-on: asked before anything is changed, and said where it is not so."""

from __future__ import annotations

import re
from typing import NamedTuple

from confcom.cluster.objects import NOT_FOUND, ClusterObjects
from confcom.errors import ClusterRefused, ConfigError
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.dynamic_resources import trial_claim


class Release(NamedTuple):
    """A minor release of Kubernetes."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = Release(1, 30)
"""Admission policies and the match conditions of webhooks are stable, and tokens of pods name their node."""
OLDEST_WITH_CLAIMS = Release(1, 34)
"""Claims are stable (resource.k8s.io/v1), and can ask for a part of a device where a feature gate lets them."""
USUAL_WITH_CLAIMS = Release(1, 36)
"""That gate is on by default."""
GATE = "DRAConsumableCapacity"
MAX_SHOWN = 80
"""Characters of a version that are shown."""

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\D|$)")


def release_of(version: str) -> Release | None:
    """The release that a version such as `v1.33.5-gke.12` belongs to; None where it names none."""
    found = _VERSION.match(version)
    return Release(int(found[1]), int(found[2])) if found else None


async def check_cluster(cluster: ClusterObjects, config: AddonConfig) -> None:
    """Refuse with a `ConfigError` what this cluster cannot do; one that does not say what it is gets a chance."""
    version = await cluster.version()
    release = release_of(version)
    if release is not None and release < OLDEST:
        raise ConfigError(
            f"this cluster is Kubernetes {_shown(version)}, and the add-on needs {OLDEST} or later",
            advice="Bring the cluster to a later version first; nothing was changed.",
        )
    if config.publisher != "dra":
        return
    if release is not None and release < OLDEST_WITH_CLAIMS:
        raise _no_claims(f"this cluster is Kubernetes {_shown(version)}")
    if not await _keeps_amounts_of_claims(cluster):
        raise _no_claims(f"this cluster, Kubernetes {_shown(version)}, has it switched off")


async def _keeps_amounts_of_claims(cluster: ClusterObjects) -> bool:
    """Whether the server would keep a claim's amount: it drops fields whose feature gate is off without a word."""
    try:
        kept = await cluster.apply(trial_claim(), dry_run=True)
    except ClusterRefused as refused:
        if refused.status == NOT_FOUND:
            return False
        raise
    return all("capacity" in request["exactly"] for request in kept["spec"]["spec"]["devices"]["requests"][:1])


def _no_claims(found: str) -> ConfigError:
    return ConfigError(
        f"--publisher dra needs claims of parts of a device, which Kubernetes has from {USUAL_WITH_CLAIMS} on (in "
        f"{OLDEST_WITH_CLAIMS} and 1.35 with the feature gate {GATE}); {found}",
        advice="Publish EPC as a resource instead, which every version can: --publisher auto.",
    )


def _shown(version: str) -> str:
    return version.removeprefix("v")[:MAX_SHOWN]
