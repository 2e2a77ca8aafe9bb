"""`confcom addon` where no cluster is asked, or none answers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from confcom.cli.addon import addon
from confcom.cli.addon_change import print_result
from confcom.cli.root import run
from confcom.errors import ExitCode
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig

NOBODY = """
apiVersion: v1
kind: Config
current-context: one
contexts: [{name: one, context: {cluster: one, user: one}}]
clusters: [{name: one, cluster: {server: 'https://127.0.0.1:9'}}]
users: [{name: one, user: {token: x}}]
"""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> str:
    path = tmp_path / "kubeconfig"
    path.write_text(NOBODY)
    return str(path)


@pytest.mark.promise("M1")
def test_what_is_available_is_said_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["addon", "list-available"]) == ExitCode.OK
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"name", "description"}
    assert row["name"] == "confcom"
    assert run(["addon", "list-available", "-o", "table"]) == ExitCode.OK
    assert capsys.readouterr().out.splitlines()[0].split() == ["name", "description"]


@pytest.mark.promise("M1")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("confcon", "The addon \"confcon\" is not a recognized addon option. Did you mean ['confcom']?"),
        ("monitoring", 'The addon "monitoring" is not a recognized addon option. Possible options: confcom'),
        ("confcom,monitoring", "Please pick only 1 addon."),
    ],
)
def test_an_addon_that_there_is_not(name: str, said: str, kubeconfig: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("enable", "update", "disable", "show"):
        assert run(["addon", command, "--addon", name, "--kubeconfig", kubeconfig]) == ExitCode.USAGE
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["confcom", "ConfCom", "ACCSGXDevicePlugin", "accsgxdeviceplugin"])
def test_the_addons_names_compare_without_case(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["addon", "manifests", "-a", name]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("---\n")


def test_a_cluster_that_does_not_answer(kubeconfig: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["addon", "list", "--kubeconfig", kubeconfig]) == ExitCode.PLATFORM
    assert "cannot read ConfigMap confcom-system/confcom-addon" in capsys.readouterr().err


def test_a_context_that_there_is_not(kubeconfig: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["addon", "list", "--kubeconfig", kubeconfig, "--context", "two"]) == ExitCode.USAGE
    assert "'two'" in capsys.readouterr().err


def test_a_command_line_of_az_is_taken_with_a_note(kubeconfig: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "update",
        "--addon",
        "confcom",
        "--name",
        "cluster1",
        "--resource-group",
        "group1",
        "--enable-sgxquotehelper",
    ]
    assert run(["addon", *words, "--kubeconfig", kubeconfig]) == ExitCode.PLATFORM
    assert "--name and --resource-group are az's" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["enable", "manifests"])
def test_a_wrong_value_is_named_with_its_option(
    command: str, kubeconfig: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a cluster is asked; the message has no names of the program's own."""
    kinds = {"integer": "-1", "float": "0.5", "text": "?"}
    options = [param for param in addon.commands[command].params if param.name in AddonConfig.__struct_fields__
               and param.type.name in kinds]  # fmt: skip
    assert len(options) > 30
    target = ["--kubeconfig", kubeconfig] if command == "enable" else []
    for param in options:
        option = param.opts[0]
        assert run(["addon", command, *target, f"{option}={kinds[param.type.name]}"]) == ExitCode.USAGE, option
        said = capsys.readouterr().err
        assert said.startswith(f"confcom: {option}: "), said
        assert "$" not in said
        assert option == f"--{param.name}" or param.name not in said


def test_manifests_are_what_is_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--enable-sgxquotehelper", "--disable-webhook", "--provision-grants", "a/b,c/*", "--toleration", "x=y"]
    words += ["--image", "registry/x:1", "--api-ports", "443,7443", "--quote-helper-groups", "105"]
    words += ["--api-addresses", "10.240.0.1/32,fd00::/64", "--webhook-client-ca", "api-client-ca"]
    words += ["--expected-signers", f"{'0' * 64},{'a' * 64}"]
    words += ["--collateral-url", "https://pccs.example", "--collateral-fmspc", "00906ed50000"]
    words += ["--collateral-tcb-set", "19", "--collateral-tcb-set", "canary=early"]
    words += ["--enable-attestation-service", "--attestation-url", "https://attest.example"]
    words += ["--attestation-storage", "fast/2Gi", "--attestation-tls-secret", "given"]
    words += ["--attestation-administrators", "ops", "--attestation-pin-secret", "hsm-pin"]
    words += ["--attestation-keys", "pkcs11:token=t?module-path=/x.so"]
    words += ["--attestation-database", "db", "--attestation-database-port", "6432", "--attestation-replicas", "3"]
    words += ["--collateral-database", "db", "--collateral-database-port", "5433", "--collateral-replicas", "4"]
    words += ["--enable-metrics"]
    assert run(["addon", "manifests", *words]) == ExitCode.OK
    config = AddonConfig(
        quote_helper=True,
        metrics=True,
        webhook=False,
        provision_grants=("a/b", "c/*"),
        tolerations=("x=y",),
        image="registry/x:1",
        api_ports=(443, 7443),
        api_addresses=("10.240.0.1/32", "fd00::/64"),
        webhook_client_ca="api-client-ca",
        quote_helper_groups=(105,),
        expected_signers=("0" * 64, "a" * 64),
        collateral_url="https://pccs.example",
        collateral_database="db",
        collateral_database_port=5433,
        collateral_replicas=4,
        collateral_fmspcs=("00906ed50000",),
        collateral_tcb_sets=("19", "canary=early"),
        attestation=True,
        attestation_url="https://attest.example",
        attestation_storage="fast/2Gi",
        attestation_tls_secret="given",
        attestation_administrators="ops",
        attestation_keys="pkcs11:token=t?module-path=/x.so",
        attestation_pin_secret="hsm-pin",
        attestation_database="db",
        attestation_database_port=6432,
        attestation_replicas=3,
    )
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == render(config, version=_version())


def test_a_simulated_world_is_written_when_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = tmp_path / "world.json"
    assert run(["simulate", "machine", "-o", str(world)]) == ExitCode.OK
    simulated = ["addon", "manifests", "--platform", "simulated"]
    capsys.readouterr()
    assert run(simulated) == ExitCode.OK
    output = capsys.readouterr()
    assert "confcom-simulated-world" in output.err
    assert "Secret/confcom-simulated-world" not in _names(output.out)
    assert run([*simulated, "--simulated-world", str(world)]) == ExitCode.OK
    names = _names(capsys.readouterr().out)
    assert names[2:4] == ["Secret/confcom-simulated-world", "ConfigMap/confcom-simulated-root"]
    assert run(["addon", "manifests", "--simulated-world", str(world)]) == ExitCode.USAGE


def _names(text: str) -> list[str]:
    return [f"{one['kind']}/{one['metadata']['name']}" for one in yaml.safe_load_all(text)]


def _version() -> str:
    from importlib.metadata import version

    return version("confcom")


class TestForms:
    """What `-o` gives, as people who know az expect it."""

    LONG = {
        "name": "confcom",
        "api_key": "ACCSGXDevicePlugin",
        "config": {
            "provisionGrants": ",".join(f"a-long-namespace-{number}/service-account" for number in range(20)),
            "collateralUrl": "https://pccs." + "x" * 300 + ".example:8081",
            "webhook": "true",
        },
        "identity": None,
        "version": "0.1.0",
        "ready": {"sgx-quote-helper-" + "y" * 60: "1/1"},
    }

    @pytest.mark.promise("M1")
    @pytest.mark.parametrize("result", [LONG, [LONG], [LONG["config"]], [{"name": "a", "description": "b " * 200}]])
    def test_a_table_fits_a_hundred_columns_and_loses_nothing(
        self, result: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        print_result(result, "table")
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
        assert lines[1].startswith("----")
        text = "".join("".join(lines).split())
        for value in json.dumps(result).replace('"', " ").replace("\\", " ").split():
            if len(value) > 3 and value.isalnum():
                assert value in text

    def test_an_objects_table_has_a_line_per_setting(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_result({"name": "confcom", "config": {"a": "1", "b": ""}, "identity": None, "none": {}}, "table")
        assert capsys.readouterr().out.splitlines() == [
            "name      value",
            "--------  -------",
            "name      confcom",
            "config.a  1",
            "config.b",
            "identity",
            "none",
        ]

    def test_tsv_is_that_of_az(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_result([{"name": "confcom", "api_key": "ACCSGXDevicePlugin", "enabled": True}], "tsv")
        assert capsys.readouterr().out == "ACCSGXDevicePlugin\tTrue\tconfcom\n"
        print_result(self.LONG, "tsv")
        assert capsys.readouterr().out == "ACCSGXDevicePlugin\t\tNone\tconfcom\t\t0.1.0\n"
        print_result([], "tsv")
        assert capsys.readouterr().out == ""

    def test_none_is_nothing_and_case_is_no_matter(self, capsys: pytest.CaptureFixture[str]) -> None:
        for form in ("none", "NONE", "None"):
            assert run(["addon", "list-available", "-o", form]) == ExitCode.OK
        assert capsys.readouterr().out == ""
        assert run(["addon", "list-available", "-o", "TSV"]) == ExitCode.OK
        assert capsys.readouterr().out.endswith("\tconfcom\n")


class TestWordsOfAz:
    @pytest.mark.promise("M1")
    @pytest.mark.parametrize(
        ("typed", "right"),
        [
            ("enable-addons --addons confcom -n c -g g", "addon enable --addons confcom -n c -g g"),
            ("aks enable-addons -a confcom --enable-sgxquotehelper", "addon enable -a confcom --enable-sgxquotehelper"),
            ("az aks disable-addons --addons confcom", "addon disable --addons confcom"),
            ("aks addon update --addon confcom --name 'my c'", "addon update --addon confcom --name 'my c'"),
            ("addon enable-addons -a confcom", "addon enable -a confcom"),
            ("aks create -a confcom", "addon --help"),
            ("az", "addon --help"),
        ],
    )
    def test_the_same_line_is_told_as_it_is_written_here(
        self, typed: str, right: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(shlex.split(typed)) == ExitCode.USAGE
        assert f"Type: confcom {right}\n" in capsys.readouterr().err

    def test_options_that_do_no_harm_are_taken_with_a_note(
        self, kubeconfig: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = f"addon show --addons confcom -g g --subscription s --kubeconfig {kubeconfig} -o tsv"
        assert run(line.split()) == ExitCode.PLATFORM
        assert (
            "--resource-group and --subscription are az's: the cluster is that of the kubeconfig"
            in capsys.readouterr().err
        )

    def test_a_query_is_refused_with_another_way(self, kubeconfig: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["addon", "show", "--query", "config", "--kubeconfig", kubeconfig]) == ExitCode.USAGE
        assert "jq" in capsys.readouterr().err


def test_settings_are_listed_by_subject(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["addon", "enable", "--help"]) == ExitCode.OK
    subject, found = "", {}
    for line in capsys.readouterr().out.splitlines():
        subject = line.removesuffix(":") if line.endswith(":") and not line.startswith(" ") else subject
        if line.startswith("  -"):
            found[line.split()[0]] = subject
    assert found["--timeout"] == "Options"
    assert found["--image"] == "Image"
    assert found["--expected-signers"] == "Quote helper"
    assert found["--approve-for"] == "Certificate signer"
