"""Names of events about pods."""

from __future__ import annotations

import re

import pytest

from confcom.cluster.nodes import PodEvent

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@pytest.mark.parametrize("pod", ["app", "a" * 253, f"{'a' * 199}-{'b' * 40}", f"{'a' * 199}.{'b' * 40}"])
def test_the_name_of_an_event_is_one_that_the_api_takes(pod: str) -> None:
    event = PodEvent("apps", pod, "uid", "app", "EpcOverLimit", "note", "Watching")
    assert SUBDOMAIN.fullmatch(event.name)
    assert len(event.name) <= 253
    assert event.name != PodEvent("apps", pod, "uid", "other", "EpcOverLimit", "note", "Watching").name
