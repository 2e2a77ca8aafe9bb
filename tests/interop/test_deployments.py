"""The kustomize base and the Helm chart, as kubectl and Helm understand them, are what the command line renders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64decode
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.webhook import WebhookCa
from confcom.pki.serving_pair import Authority

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
HELM = Path(__file__).parent / "helm"
VERSION = version("confcom")


def by_name(objects: list[Any]) -> dict[str, Any]:
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in objects if one}
    assert len(found) == len([one for one in objects if one])
    return found


def rendered(ca: WebhookCa | None = None, **settings: Any) -> dict[str, Any]:
    objects = render(AddonConfig(**settings), version=VERSION, webhook_ca=ca)
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
    ca = WebhookCa(b"certificate" * 20, b"key", b"certificate" * 20)
    assert _in_one_line(found) == _in_one_line(rendered(ca))


def _in_one_line(thing: Any) -> Any:
    """Base64 without the line ends that the API server passes over, and elements in the order of their names."""
    if isinstance(thing, dict):
        wrapped = ("caBundle", "tls.crt", "tls.key", "ca.crt")
        return {name: "".join(one.split()) if name in wrapped else _in_one_line(one) for name, one in thing.items()}
    return [_in_one_line(one) for one in thing] if isinstance(thing, list) else thing


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Helm's engine with its check of values, built from its module."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: Helm cannot be built")
    target = tmp_path_factory.mktemp("helm") / "helm"
    command = [go, "build", "-mod=readonly", "-o", str(target), "."]
    built = subprocess.run(command, cwd=HELM, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return target


def template(helm: Path, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [str(helm), str(DEPLOY / "helm")]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, timeout=60, check=False)


ALL: dict[str, Any] = {"quote_helper": True, "collateral": True, "metrics": True, "epc_enforcement": True}
CASES: list[dict[str, Any]] = [
    {},
    {"quote_helper": True},
    ALL,
    ALL | {"platform": "simulated", "simulated_epc": "64Gi,64Gi"},
    ALL | {"publisher": "dra", "quote_helper_epc_mib": 9},
    {"publisher": "dra", "platform": "simulated", "quote_helper": True},
    {"publisher": "devices", "webhook": False, "image": "registry:5000/x@sha256:00", "image_pull_policy": "Always"},
    {"publisher": "node-status", "epc_reserve_mib": 12, "overcommit": 1.5, "webhook_replicas": 3, "oversized": "warn"},
    {"provision_grants": ("apps/one", "apps/two", "more/*"), "collateral": True, "collateral_upstream": "https://x:1/"},
    {"webhook_namespaces": "labelled", "platform": "simulated"},
    {
        "collateral": True,
        "quote_helper": True,
        "collateral_fmspcs": ("00906ed50000", "tdx:b0c06f000000"),
        "collateral_storage": "standard/2Gi",
        "collateral_tls_secret": "given",
    },
    {"collateral": True, "collateral_storage": "512Mi", "platform": "simulated"},
    {"quote_helper": True, "collateral_url": "https://pccs.example:9443/sgx/certification/v4/"},
    {
        "quote_helper": True,
        "quote_helper_groups": (105, 4242),
        "collateral_url": "https://pccs.example/here/",
        "publisher": "dra",
        "provision_grants": ("apps/*",),
    },
    {"webhook_client_ca": "api-client-ca", "api_addresses": ("10.240.0.1/32", "fd00::/64")},
    {"api_ports": (443, 16443), "metrics": True, "image_pull_secrets": ("one", "two")},
    {"quote_helper": True, "quote_helper_seccomp": "localhost/confcom/quote-helper.json"},
    {"quote_helper": True, "provision_grants": ("confcom-system/x", "apps/*")},
    {
        "metrics": True,
        "node_selector": ("pool=acc", "example.com/empty="),
        "tolerations": ("*", "key", "key=value", "a.b/key=value:NoExecute", "key:NoSchedule", "key=:NoSchedule"),
    },
]


def _ca_of(found: dict[str, Any]) -> WebhookCa | None:
    """What the chart made: a CA that can issue the webhook's certificates."""
    if "Secret/sgx-webhook-ca" not in found:
        return None
    data = {name: b64decode(text) for name, text in found["Secret/sgx-webhook-ca"]["data"].items()}
    assert Authority.parse(data["tls.crt"], data["tls.key"]) is not None
    assert data["ca.crt"] == data["tls.crt"]
    return WebhookCa(data["tls.crt"], data["tls.key"], data["ca.crt"])


@pytest.mark.interop
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_helm_chart_is_what_is_rendered(helm: Path, settings: dict[str, Any]) -> None:
    done = template(helm, _values(settings))
    assert done.returncode == 0, done.stderr
    found = by_name(list(yaml.safe_load_all(done.stdout)))
    for one in found.values():
        assert one["metadata"]["labels"].pop("helm.sh/chart") == f"confcom-{VERSION}"
    wanted = rendered(_ca_of(found), **settings)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert found[name] == one


@pytest.mark.interop
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "values",
    [
        {"quoteHelper": True},
        {"platform": "amd"},
        {"webhookReplicas": 0},
        {"provisionGrants": "a/b"},
        {"overcommit": 0.5},
        {"collateralUrl": 'https://x/"'},
        {"collateralStorage": "much"},
        {"webhookClientCa": "A_B"},
        {"provisionGrants": ["apps/one"], "publisher": "dra"},
    ],
    ids=str,
)
def test_the_chart_refuses_values_that_make_no_sense(helm: Path, values: dict[str, Any]) -> None:
    done = template(helm, values)
    assert done.returncode != 0
    assert next(iter(values)) in done.stderr or "the grant apps/one is for one service account" in done.stderr


def _values(settings: dict[str, Any]) -> dict[str, Any]:
    names = {"quote_helper": "quoteHelperEnabled"}
    for switch in ("webhook", "collateral", "metrics", "epc_enforcement"):
        names[switch] = f"{_camel(switch)}Enabled"
    return {names.get(key, _camel(key)): list(one) if isinstance(one, tuple) else one for key, one in settings.items()}


def _camel(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join({"mib": "MiB"}.get(word, word.capitalize()) for word in rest)
