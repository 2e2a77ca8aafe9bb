"""Nodes of other kinds beside the cluster's one: objects of the API that report as a kubelet would, and run nothing.

A pod that the scheduler places there stays as it is, which is all that placement needs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from kubectl import Kubectl

BEAT = 10.0
"""Seconds between two reports; after 40 s without one the API's controller gives the node up."""
_AMOUNTS = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti"}


@contextmanager
def stand_in_nodes(cluster: Kubectl, labels: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """Nodes by name, with these labels, larger and emptier than the cluster's own."""
    ended = threading.Event()
    for name, own in labels.items():
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64"} | dict(own)}
        cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    beats = threading.Thread(target=_report, args=(cluster, tuple(labels), ended))
    beats.start()
    try:
        for name in labels:
            cluster.wait(f"node {name} to be usable", lambda name=name: _usable(cluster.get("node", name)))
        yield
    finally:
        ended.set()
        beats.join()
        cluster("delete", "node", *labels, "--ignore-not-found")


def _usable(node: Any) -> bool:
    return not node["spec"].get("taints") and "cpu" in node.get("status", {}).get("allocatable", {})


def _report(cluster: Kubectl, names: tuple[str, ...], ended: threading.Event) -> None:
    while True:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: TID251 - the kubelet's part reads the clock
        ready = {"type": "Ready", "status": "True", "reason": "StandIn", "lastHeartbeatTime": now}
        status = {"status": {"conditions": [ready], "capacity": _AMOUNTS, "allocatable": _AMOUNTS}}
        for name in names:
            cluster.attempt("patch", "node", name, "--subresource=status", "--type=merge", "-p", json.dumps(status))
        if ended.wait(BEAT):
            return
