"""What a cluster is asked, and what it is refused for."""

from __future__ import annotations

import pytest

from confcom.addon.plan import OLDEST, Release, release_of


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("v1.36.2", Release(1, 36)),
        ("v1.33.5-gke.1080000", Release(1, 33)),
        ("v1.30.14+rke2r1", Release(1, 30)),
        ("v1.31.0-rc.1", Release(1, 31)),
        ("1.30", Release(1, 30)),
        ("v2.0.0", Release(2, 0)),
        ("", None),
        ("v1", None),
        ("latest", None),
        ("v1.9999999999999999999999999", None),
        ("v1.3o", Release(1, 3)),
    ],
)
def test_the_release_of_a_version(version: str, release: Release | None) -> None:
    assert release_of(version) == release


def test_releases_compare_as_numbers() -> None:
    assert Release(1, 9) < OLDEST <= Release(1, 30) < Release(2, 0)
