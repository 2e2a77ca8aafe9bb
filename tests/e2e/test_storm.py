"""A tenant's storm of connections costs other pods no quote, and is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import CONFINED, limits, one_container, pod
from cluster_load import Load
from kubectl import ADDON_NAMESPACE, Kubectl

NAME = "stormy"
STORM = """
import contextlib, os, socket

for _ in range(7):
    if os.fork() == 0:
        break
while True:
    held = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    for one in held:
        one.setblocking(False)
        with contextlib.suppress(OSError):
            one.connect("/var/run/aesmd/aesm.socket")
    for one in held:
        one.close()
"""


def throttled(cluster: Kubectl, helper: str, uid: str) -> int:
    """Connections of the pod that the helper has closed unread."""
    page = cluster("get", "--raw", f"/api/v1/namespaces/{ADDON_NAMESPACE}/pods/{helper}:9464/proxy/metrics")
    found = re.search(rf'confcom_quote_helper_throttled_connections_total{{peer="pod {uid}"}} (\S+)', page)
    return int(float(found[1])) if found else 0


@pytest.mark.promise("M10")
def test_eight_processes_that_open_and_close_connections(
    cluster: Kubectl, enabled: Addon, made: Callable[..., Any], image: str
) -> None:
    load = Load.start(cluster, image)
    try:
        annotation = {"confcom.dev/quote-mode": "out-of-proc"}
        spec = one_container(image, "python3", "-c", STORM, resources=limits(5), securityContext=CONFINED)
        made(pod(NAME, "e2e", spec, annotations=annotation))
        uid = cluster.get("pod", NAME, "-n", "e2e")["metadata"]["uid"]
        (helper,) = enabled.pods("quote-helper")
        name = helper["metadata"]["name"]
        for _ in range(3):
            before = throttled(cluster, name, uid)
            cluster.wait("a storm", lambda before=before: throttled(cluster, name, uid) > before + 10_000)
            load.more()
        log = cluster("logs", name, "-n", ADDON_NAMESPACE)
        assert f'"peer":"pod {uid}"' in next(line for line in log.splitlines() if '"aesm.throttled"' in line)
        (after,) = enabled.pods("quote-helper")
        assert after["metadata"]["name"] == name
        ready = next(one for one in after["status"]["conditions"] if one["type"] == "Ready")
        since = cluster.get("pod", NAME, "-n", "e2e")["status"]["startTime"]
        assert (ready["status"], ready["lastTransitionTime"] < since) == ("True", True)
        assert cluster.wait("figures", load.figures)["failures"] == []
    finally:
        load.end()
