"""The manifests of the documents at a real API server, with the webhook before it: taken as they are shown."""

from __future__ import annotations

import json

import pytest

from cluster_addon import Addon
from documented import Block, blocks, objects
from kubectl import Kubectl

SHOWN = [block for block in blocks("yaml") if objects(block.text)]


@pytest.mark.complaint("azure-docs #116281", "emojivoto #26")
@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.place)
def test_the_api_server_takes_it(enabled: Addon, cluster: Kubectl, block: Block) -> None:
    words = ("apply", "--server-side", "--force-conflicts", "--field-manager=e2e", "--dry-run=server", "-f", "-")
    for one in objects(block.text):
        where = ("-n", one["metadata"].get("namespace", "e2e")) if one["kind"] != "DeviceClass" else ()
        outcome = cluster.attempt(*words, *where, given=json.dumps(one))
        assert outcome.code == 0, outcome.err
