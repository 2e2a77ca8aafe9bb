"""The values of the Helm chart: each has an effect and is documented; nonsense is refused by name."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import pytest
import yaml

from confcom.manifests.addon import parse_state, render
from confcom.manifests.addon_config import AddonConfig
from helm import (
    CHART,
    COMPONENTS,
    MADE_ANEW,
    ROOT,
    Helm,
    Objects,
    by_name,
    in_order,
    rendered_by,
    with_all_components,
)

VERSION = version("confcom")
RECORD = "ConfigMap/confcom-addon"
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
# What every component has; values.yaml lists them with the device plugin.
SHARED = frozenset(DEFAULTS["devicePlugin"])
# Maps that take any keys.
OPEN = ("nodeSelector", "serviceMonitor.labels")
pytestmark = pytest.mark.timeout(1800)


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Paths of values, without those that every component has."""
    for key, value in values.items():
        path = f"{above}{key}"
        if above.removesuffix(".") in COMPONENTS and key in SHARED:
            continue
        if isinstance(value, dict) and path not in OPEN:
            yield from leaves(value, f"{path}.")
        else:
            yield path


def sections(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Paths of the maps that take known keys only."""
    for key, value in values.items():
        if isinstance(value, dict) and f"{above}{key}" not in OPEN and key not in SHARED:
            yield f"{above}{key}"
            yield from sections(value, f"{above}{key}.")


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their paths as the maps that they are in."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *folders, last = path.split(".")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return found


OPERATOR = {"monitoring": "operator"}
DATABASES = {"collateral.database.secret": "db", "attestation.database.secret": "db"}
VOLUME = {"collateral.storage.size": "1Gi"}
# For every value another one, and what else is needed for it to mean something.
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "image.registry": ("registry.example", {}),
    "image.repository": ("mirror/confcom", {}),
    "image.tag": ("1.2", {}),
    "image.digest": (f"sha256:{'0' * 64}", {}),
    "image.pullPolicy": ("Always", {}),
    "image.pullSecrets": (["key"], {}),
    "platform": ("simulated", {}),
    "simulatedEpc": ("64Gi", {"platform": "simulated"}),
    "epc.publisher": ("dra", {}),
    "epc.reserveMiB": (7, {}),
    "epc.overcommit": (1.5, {}),
    "provisionGrants": (["apps/*"], {}),
    "nodeSelector": ({"pool": "sgx"}, {}),
    "tolerations": ([{"operator": "Exists"}], {}),
    "apiServer.ports": ([8443], {}),
    "apiServer.addresses": (["10.0.0.1/32"], {}),
    "quoteHelper.enabled": (False, {}),
    "quoteHelper.epcMiB": (9, {}),
    "quoteHelper.groups": ([105], {}),
    "quoteHelper.seccompProfile": ("localhost/helper.json", {}),
    "quoteHelper.expectedSigners": (["00" * 32], {}),
    "webhook.enabled": (False, {}),
    "webhook.replicas": (5, {}),
    "webhook.namespaces": ("labelled", {}),
    "webhook.oversized": ("warn", {}),
    "webhook.clientCa": ("ca", {}),
    "collateral.enabled": (False, {}),
    "collateral.upstream": ("thim", {}),
    "collateral.fmspcs": (["00906ed50000"], {}),
    "collateral.tcbSets": (["early"], {}),
    "collateral.storage.size": ("1Gi", {}),
    "collateral.storage.className": ("fast", VOLUME),
    "collateral.database.secret": ("db", {}),
    "collateral.database.port": (6432, DATABASES),
    "collateral.replicas": (3, DATABASES),
    "collateral.tlsSecret": ("given", {}),
    "collateral.url": ("https://pccs.example", {"collateral.enabled": False}),
    "attestation.enabled": (False, {}),
    "attestation.url": ("https://attest.example", {}),
    "attestation.storage.size": ("", {}),
    "attestation.storage.className": ("fast", {}),
    "attestation.database.secret": ("db", {}),
    "attestation.database.port": (6432, DATABASES),
    "attestation.replicas": (3, DATABASES),
    "attestation.tlsSecret": ("given", {}),
    "attestation.administrators": ("ops", {}),
    "attestation.keys": ("pkcs11:token=b?module-path=/x", {"attestation.keys": "pkcs11:token=a?module-path=/x",
                                                          "attestation.pinSecret": "pin"}),
    "attestation.pinSecret": ("other", {"attestation.keys": "pkcs11:token=a?module-path=/x",
                                        "attestation.pinSecret": "pin"}),
    "attestedCertificates.enabled": (False, {}),
    "attestedCertificates.approveFor": (["issuers.cert-manager.io/x"], {}),
    "metrics.enabled": (False, {"autoscaling.enabled": False}),
    "metrics.epcEnforcement": (True, {}),
    "autoscaling.enabled": (False, {}),
    "monitoring": ("off", {}),
    "serviceMonitor.enabled": (True, {}),
    "serviceMonitor.interval": ("9s", OPERATOR),
    "serviceMonitor.labels": ({"release": "prometheus"}, OPERATOR),
}  # fmt: skip


def test_there_is_another_value_for_every_one() -> None:
    assert OTHERS.keys() == {*leaves(DEFAULTS)}


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> Any:
    """A function that gives the objects of values by path, with all components, without CAs; each is rendered once."""
    known: dict[str, Objects] = {}

    def found(values: Mapping[str, Any]) -> Objects:
        key = json.dumps(values, sort_keys=True)
        if key not in known:
            objects = by_name(rendered_by(helm, with_all_components(_enabled(nested(values))), "--no-hooks"))
            for name in MADE_ANEW & objects.keys():
                objects[name].pop("data", None)
                for one in objects[name].get("webhooks", ()):
                    del one["clientConfig"]["caBundle"]
                objects[name].get("spec", {}).pop("caBundle", None)
            known[key] = objects
        return known[key]

    return found


def _enabled(values: dict[str, Any]) -> dict[str, Any]:
    """The components of these values enabled, unless they say otherwise."""
    for section in values.keys() & (COMPONENTS.keys() - {"devicePlugin"}):
        values[section].setdefault("enabled", True)
    return values


@pytest.mark.parametrize("path", OTHERS)
def test_every_value_has_an_effect_beyond_the_record_of_it(rendered: Any, path: str) -> None:
    value, needed = OTHERS[path]
    before, after = rendered(needed), rendered(needed | {path: value})
    assert before | {RECORD: {}} != after | {RECORD: {}}


def test_unknown_values_are_refused_in_every_section_by_name(helm: Helm) -> None:
    places = [*sections(DEFAULTS)]
    done = helm("template", "confcom", values=nested({f"{place}.ours": 1 for place in places} | {"ours": 1}))
    assert done.returncode != 0
    for place in places:
        assert re.search(rf"at '/{place.replace('.', '/')}': additional properties 'ours' not allowed", done.stderr)
    assert "at '': additional properties 'ours' not allowed" in done.stderr


def test_values_that_lack_something_are_refused_by_name(helm: Helm) -> None:
    """Helm takes the values of an earlier chart with `--reuse-values`, without defaults of the one that it installs."""
    optional = {path for path in leaves(DEFAULTS) if isinstance(_default(path), list | dict)} - {"apiServer.ports"}
    lacking = {*sections(DEFAULTS), *leaves(DEFAULTS)} - optional - {"devicePlugin"}
    for depth in (0, 1, 2):
        places = [place for place in lacking if place.count(".") == depth]
        done = helm("template", "confcom", values=nested(dict.fromkeys(places)))
        assert done.returncode != 0
        for above, names in itertools.groupby(sorted(places), key=lambda place: place.rpartition(".")[0]):
            pointer = f"/{above.replace('.', '/')}" if above else ""
            (line,) = re.findall(rf"at '{pointer}': (missing propert.*)", done.stderr)
            assert {*re.findall(r"'(\w+)'", line)} == {name.rpartition(".")[2] for name in names}


def test_lists_and_maps_may_be_left_blank(helm: Helm) -> None:
    """`name:` with nothing but comments behind it, in a file of values."""
    empty = [path for path in leaves(DEFAULTS) if _default(path) in ([], {})]
    found = by_name(rendered_by(helm, _enabled(nested(dict.fromkeys(empty)))))
    wanted = by_name(rendered_by(helm, _enabled(nested({path: _default(path) for path in empty}))))
    assert {name for name in wanted if found[name] != wanted[name]} <= MADE_ANEW


def _default(path: str) -> Any:
    value: Any = DEFAULTS
    for word in path.split("."):
        value = value[word]
    return value


def test_the_documentation_has_every_value_and_no_other() -> None:
    """Of a row the first name has the whole path; others stand in the section of one before."""
    text = (ROOT / "docs" / "reference" / "addon.md").read_text()
    chapter = text.split("## The Helm chart")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in chapter.splitlines() if row.startswith("| ") and "---" not in row]
    known, found = {*leaves(DEFAULTS)}, set()
    for row in rows:
        above: list[str] = [""]
        for name in re.findall(r"`([^`]+)`", row):
            paths = [f"{place}{name}" for place in above if f"{place}{name}" in known]
            if not paths and name in SHARED | COMPONENTS.keys() | {"install", "upgrade", "test", "uninstall"}:
                continue
            assert paths, name
            found.add(paths[0])
            folders = paths[0].split(".")[:-1]
            above = [".".join([*folders[:depth], ""]) for depth in range(len(folders), 0, -1)] + above
    assert found == known
    assert {*re.findall(r"`([^`]+)`", next(row for row in rows if "of each of" in row))} == SHARED | {*COMPONENTS}


def test_values_of_the_command_line_are_those_of_a_file(helm: Helm) -> None:
    words = (
        "epc.overcommit=1.25", "epc.reserveMiB=2000000", "quoteHelper.enabled=true", "quoteHelper.epcMiB=8",
        "quoteHelper.groups={105,2000000000}", "apiServer.ports={443,16443}", "collateral.enabled=true",
        "collateral.tcbSets={19,canary=early}", "provisionGrants={apps/*,more/one}", "nodeSelector.pool=sgx",
        "tolerations[0].key=a", "tolerations[0].operator=Exists", "tolerations[1].key=b", "image.pullSecrets={x,y}",
    )  # fmt: skip
    found = by_name(rendered_by(helm, {}, "--no-hooks", *(part for word in words for part in ("--set", word))))
    config = AddonConfig(
        overcommit=1.25,
        epc_reserve_mib=2_000_000,
        quote_helper=True,
        quote_helper_epc_mib=8,
        quote_helper_groups=(105, 2_000_000_000),
        api_ports=(443, 16443),
        collateral=True,
        collateral_tcb_sets=("19", "canary=early"),
        provision_grants=("apps/*", "more/one"),
        node_selector=("pool=sgx",),
        tolerations=("a", "b="),
        image_pull_secrets=("x", "y"),
    )
    wanted = by_name(json.loads(json.dumps(render(config, version=VERSION))))
    assert found[RECORD] == wanted[RECORD]
    assert parse_state(found[RECORD]["data"]).config == config
    for name in ("DaemonSet/sgx-device-plugin", "NetworkPolicy/confcom-collateral"):
        found[name]["spec"].get("template", {}).get("spec", {}).pop("tolerations", None)
        wanted[name]["spec"].get("template", {}).get("spec", {}).pop("tolerations", None)
        assert in_order(found[name]) == in_order(wanted[name])


def test_overcommit_may_be_a_word(helm: Helm) -> None:
    found = by_name(rendered_by(helm, {}, "--set-string", "epc.overcommit=1.25"))
    assert found == by_name(rendered_by(helm, {}, "--set", "epc.overcommit=1.25")) | {
        name: found[name] for name in MADE_ANEW & found.keys()
    }


@pytest.mark.parametrize("component", COMPONENTS)
def test_variables_of_the_operator_replace_those_of_the_chart(rendered: Any, component: str) -> None:
    """Kubernetes takes a list with one name twice, and Helm's next upgrade merges it wrongly."""
    before = rendered({})[COMPONENTS[component]]["spec"]["template"]["spec"]["containers"][0]["env"]
    own = [{"name": before[0]["name"], "value": "ours"}, {"name": "HTTPS_PROXY", "value": "http://proxy.example"}]
    after = rendered({f"{component}.extraEnv": own})[COMPONENTS[component]]["spec"]["template"]["spec"]
    assert after["containers"][0]["env"] == before[1:] + own


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"quoteHelperEnabled": True}, "quoteHelperEnabled"),
        ({"quoteHelper": {"enable": True}}, "enable"),
        ({"quoteHelper": {"enabled": "yes"}}, "enabled"),
        ({"platform": "amd"}, "platform"),
        ({"image": {"tag": "a b"}}, "tag"),
        ({"image": {"digest": "1234"}}, "digest"),
        ({"image": {"pullSecrets": ["A_B"]}}, "pullSecrets"),
        ({"webhook": {"replicas": 0}}, "replicas"),
        ({"provisionGrants": "a/b"}, "provisionGrants"),
        ({"provisionGrants": ["one"]}, "provisionGrants"),
        ({"epc": {"overcommit": 0.5}}, "overcommit"),
        ({"epc": {"overcommit": "0.5"}}, "overcommit"),
        ({"collateral": {"url": 'https://x/"'}}, "url"),
        ({"collateral": {"storage": {"size": "much"}}}, "size"),
        ({"attestation": {"url": "http://attest.example"}}, "url"),
        ({"attestation": {"enabled": True}, "platform": "simulated"}, "has no collateral"),
        ({"attestedCertificates": {"enabled": True}, "platform": "simulated"}, "has no collateral"),
        ({"attestedCertificates": {"approveFor": ["confcom.dev/attested"]}}, "approveFor"),
        ({"attestedCertificates": {"approveFor": ["kubernetes.io/kubelet-serving"]}}, "approveFor"),
        (
            {"attestedCertificates": {"approveFor": ["issuers.cert-manager.io/x"]}, "platform": "simulated"},
            "with the word simulated",
        ),
        ({"autoscaling": {"enabled": True}}, "set metrics.enabled too"),
        ({"collateral": {"tcbSets": ["early", "19"]}}, "gives the same clients two sets"),
        ({"collateral": {"tcbSets": ["a=early", "19", "a=18"]}}, "gives the same clients two sets"),
        ({"attestation": {"keys": "pkcs11:token=a?module-path=/x&pin-value=1"}}, "keys"),
        ({"attestation": {"administrators": "A_B"}}, "administrators"),
        ({"attestation": {"enabled": True, "pinSecret": "pin"}}, "belong together"),
        ({"collateral": {"fmspcs": ["00906ed5000g"]}}, "fmspcs"),
        ({"collateral": {"tcbSets": ["0"]}}, "tcbSets"),
        ({"webhook": {"clientCa": "A_B"}}, "clientCa"),
        ({"nodeSelector": {"a b": "c"}}, "a b"),
        ({"tolerations": [{"operator": "Exists", "effect": "NoExecute"}]}, "tolerations"),
        ({"simulatedEpc": "168Mi'"}, "simulatedEpc"),
        ({"apiServer": {"addresses": ["10.0.0.1"]}}, "addresses"),
        ({"devicePlugin": {"resources": {"memory": "1Gi"}}}, "resources"),
        ({"webhook": {"extraEnv": [{"name": "A", "value": 5}]}}, "extraEnv"),
        ({"webhook": {"extraEnv": [{"value": "5"}]}}, "extraEnv"),
        (
            {"webhook": {"extraEnv": [{"name": "A", "value": "5"}, {"name": "A", "value": "6"}]}},
            "extraEnv of the webhook names a variable twice: A, A",
        ),
        ({"webhook": {"labels": {"app.kubernetes.io/component": "own"}}}, "app.kubernetes.io/component"),
        ({"webhook": {"podLabels": {"app.kubernetes.io/part-of": "own"}}}, "app.kubernetes.io/part-of"),
        ({"webhook": {"nodeSelector": {"pool": True}}}, "pool"),
        ({"webhook": {"podAnnotations": {"checked": True}}}, "checked"),
        ({"webhook": {"priorityClassName": "A_B"}}, "priorityClassName"),
        ({"serviceMonitor": {"labels": {"helm.sh/chart": "own"}}}, "helm.sh/chart"),
        ({"image": {"tag": 1234}}, "tag"),
        ({"image": {"pullSecrets": [{"name": "key"}]}}, "pullSecrets"),
        ({"nameOverride": "own"}, "nameOverride"),
        (
            {"provisionGrants": ["apps/one"], "epc": {"publisher": "dra"}},
            "provisionGrants: apps/one is one service account",
        ),
    ],
    ids=str,
)
def test_the_chart_refuses_values_that_make_no_sense(helm: Helm, values: dict[str, Any], named: str) -> None:
    done = helm("template", "confcom", values=values)
    assert done.returncode != 0
    assert named in done.stderr
