"""The kustomize base, as kubectl understands it, is what the command line renders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import IssuingCa
from confcom.manifests.webhook import CA_SECRET

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VERSION = version("confcom")


def by_name(objects: list[Any]) -> dict[str, Any]:
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in objects if one}
    assert len(found) == len([one for one in objects if one])
    return found


def rendered(ca: IssuingCa | None = None, **settings: Any) -> dict[str, Any]:
    objects = render(AddonConfig(**settings), version=VERSION, cas={} if ca is None else {CA_SECRET: ca})
    return by_name(json.loads(json.dumps(objects)))


def test_the_checked_in_base_is_what_is_rendered() -> None:
    assert by_name(list(yaml.safe_load_all((DEPLOY / "kustomize" / "addon.yaml").read_text()))) == rendered()


@pytest.fixture
def kubectl() -> str:
    found = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if not found:
        pytest.skip("kubectl is on no PATH, and $KUBECTL names none")
    return found


def test_the_kustomize_base_is_what_is_rendered(kubectl: str, tmp_path: Path) -> None:
    """With a CA in two files beside it."""
    base = shutil.copytree(DEPLOY / "kustomize", tmp_path / "base")
    (base / "webhook-ca.crt").write_text("certificate" * 20)
    (base / "webhook-ca.key").write_text("key")
    built = subprocess.run([kubectl, "kustomize", str(base)], capture_output=True, text=True, timeout=60, check=True)
    found = by_name(list(yaml.safe_load_all(built.stdout.replace("caBundle: |\n", "caBundle: >\n"))))
    ca = IssuingCa(b"certificate" * 20, b"key", b"certificate" * 20)
    assert _in_one_line(found) == _in_one_line(rendered(ca))


def _in_one_line(thing: Any) -> Any:
    """Base64 without the line ends that the API server passes over, and elements in the order of their names."""
    if isinstance(thing, dict):
        wrapped = ("caBundle", "tls.crt", "tls.key", "ca.crt")
        return {name: "".join(one.split()) if name in wrapped else _in_one_line(one) for name, one in thing.items()}
    return [_in_one_line(one) for one in thing] if isinstance(thing, list) else thing
