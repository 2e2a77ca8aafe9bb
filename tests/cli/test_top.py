"""`confcom top` against the API on a real socket, whole and with parts missing."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from confcom.cli.root import root
from confcom.errors import ClusterError, ExitCode
from epc_api import EpcApi, component, enclave, make_pod, page

MIB = 1 << 20
UID = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77"


@pytest.fixture
def api() -> Iterator[EpcApi]:
    with EpcApi() as api:
        api.nodes = {"n1": "168", "n2": "64k"}
        api.put(make_pod("greedy", uid=UID, mib=10))
        api.put(make_pod("modest", mib=10))
        api.put(make_pod("plain"))
        api.put(make_pod("done", mib=99, phase="Succeeded"))
        api.put(make_pod("sgx-metrics-1", namespace="confcom-system", labels=component("metrics")))
        api.put(make_pod("sgx-quote-helper-1", namespace="confcom-system", mib=4, labels=component("quote-helper")))
        app = {"node": "n1", "namespace": "default", "container": "app"}
        api.pages["sgx-metrics-1"] = page(
            {
                "confcom_epc_mapped_bytes": [(app | {"pod": "greedy"}, 20 * MIB), (app | {"pod": "modest"}, 8 * MIB)],
                "confcom_epc_over_limit": [
                    (app | {"pod": "greedy", "kind": "over-limit"}, 1),
                    (app | {"pod": "modest", "kind": "over-limit"}, 0),
                ],
                "confcom_epc_node_mapped_bytes": [({"node": "n1"}, 28 * MIB)],
                "confcom_epc_node_requested_bytes": [({"node": "n1"}, 24 * MIB)],
                "confcom_epc_pods_known": [({"node": "n1"}, 1)],
                "confcom_epc_reclaim_seconds_total": [({"node": "n1"}, 2.5)],
            }
        )
        api.pages["sgx-quote-helper-1"] = page(
            {
                "confcom_quote_helper_quotes_total": [({"peer": f"pod {UID}"}, 7), ({"peer": "the helper itself"}, 2)],
                "confcom_quote_helper_enclave_quotes_total": [
                    (enclave(f"pod {UID}", "ab" * 32), 5),
                    (enclave(f"pod {UID}", "others", signer="", product="", svn="", debug="true"), 2),
                    (enclave("pod gone", "ee" * 32, debug="true", expected="false"), 9),
                ],
                "confcom_quote_helper_enclave_last_quote_timestamp_seconds": [
                    (enclave(f"pod {UID}", "ab" * 32), 1_700_000_000.5)
                ],
            }
        )
        yield api


def run(api: EpcApi, folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(root, ["top", "--kubeconfig", api.kubeconfig(folder), *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def lines(output: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for line in output.splitlines() if (words := line.split())}


def test_nodes_and_pods_with_requests_use_and_quotes(api: EpcApi, tmp_path: Path) -> None:
    found = lines(run(api, tmp_path, "--once"))
    assert found["n1"] == ["168", "MiB", "24", "MiB", "28", "MiB", "-", "2.5", "s", "7"]
    assert found["n2"] == ["64,000", "MiB", "0", "MiB", "-", "-", "-", "-"]
    assert found["default/greedy"] == ["n1", "10", "MiB", "20", "MiB", "-", "7", "over"]
    assert found["default/modest"] == ["n1", "10", "MiB", "8", "MiB", "-", "0"]
    assert "default/plain" not in found
    assert "default/done" not in found
    assert found["over:"] == ["default/greedy:", "app", "over-limit"]
    assert "not known" not in found


def test_json_has_bytes(api: EpcApi, tmp_path: Path) -> None:
    found = json.loads(run(api, tmp_path, "-o", "json"))
    (greedy,) = [pod for pod in found["pods"] if pod["name"] == "greedy"]
    assert greedy == {
        "namespace": "default", "name": "greedy", "node": "n1", "requested": 10 * MIB, "mapped": 20 * MIB,
        "in_use": None, "quotes": 7, "over": ["app over-limit"],
    }  # fmt: skip
    assert found["nodes"][0]["allocatable"] == 168 * MIB
    assert found["missing"] == []


def test_enclaves_by_pod_short_in_the_table_and_whole_in_json(api: EpcApi, tmp_path: Path) -> None:
    shown = run(api, tmp_path, "--enclaves").splitlines()
    assert shown[0].split() == ["POD", "NODE", "MRENCLAVE", "MRSIGNER", "PRODUCT", "SVN", "QUOTES", "LAST"]
    words = [line.split() for line in shown[1:]]
    assert words[0] == ["pod", "gone", "n1", "ee" * 8, "cd" * 8, "1", "2", "9", "-", "debug,", "signer"]
    assert words[1][:-1] == ["default/greedy", "n1", "ab" * 8, "cd" * 8, "1", "2", "5"]
    assert words[1][-1].endswith("d")  # days since 2023
    assert words[2] == ["default/greedy", "n1", "others", "-", "-", "-", "2", "-", "debug"]

    found = json.loads(run(api, tmp_path, "--enclaves", "-o", "json"))["enclaves"]
    assert found[1] == {
        "namespace": "default", "name": "greedy", "node": "n1", "mr_enclave": "ab" * 32, "mr_signer": "cd" * 32,
        "isv_prod_id": 1, "isv_svn": 2, "debug": False, "signer_expected": None, "quotes": 5, "last": 1_700_000_000.5,
    }  # fmt: skip
    # In one namespace only its own pods' enclaves are shown.
    assert "gone" not in run(api, tmp_path, "--enclaves", "-n", "default")


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [("greedy", {"greedy"}), ("default/*", {"greedy", "modest"}), ("n1", {"greedy", "modest", "helper"}), ("x", set())],
)
def test_a_filter_by_name_namespace_or_node(api: EpcApi, tmp_path: Path, pattern: str, shown: set[str]) -> None:
    found = json.loads(run(api, tmp_path, "-o", "json", "--filter", pattern))
    names = {pod["name"].removeprefix("sgx-quote-").removesuffix("-1") for pod in found["pods"]}
    assert names == shown
    assert len(found["nodes"]) == 2  # nodes stay


@pytest.mark.parametrize(
    ("order", "pods", "nodes"),
    [
        ("name", ["sgx-quote-helper-1", "greedy", "modest"], ["n1", "n2"]),
        ("mapped", ["greedy", "modest", "sgx-quote-helper-1"], ["n1", "n2"]),
        ("requested", ["greedy", "modest", "sgx-quote-helper-1"], ["n1", "n2"]),
        ("in-use", ["sgx-quote-helper-1", "greedy", "modest"], ["n1", "n2"]),  # not known of any: as they were
        ("quotes", ["greedy", "sgx-quote-helper-1", "modest"], ["n1", "n2"]),
    ],
)
def test_largest_first_and_unknown_last(
    api: EpcApi, tmp_path: Path, order: str, pods: list[str], nodes: list[str]
) -> None:
    found = json.loads(run(api, tmp_path, "-o", "json", "--sort", order))
    assert [pod["name"] for pod in found["pods"]] == pods
    assert [node["name"] for node in found["nodes"]] == nodes


def test_into_a_pipe_it_is_shown_once_even_with_watch(api: EpcApi, tmp_path: Path) -> None:
    assert run(api, tmp_path, "--watch") == run(api, tmp_path, "--once")


def test_one_namespace_shows_its_pods_and_whole_nodes(api: EpcApi, tmp_path: Path) -> None:
    found = lines(run(api, tmp_path, "--once", "-n", "confcom-system"))
    assert "default/greedy" not in found
    assert found["confcom-system/sgx-quote-helper-1"][:3] == ["n1", "4", "MiB"]
    assert found["n1"][2:4] == ["24", "MiB"]


@pytest.mark.parametrize(
    ("forbidden", "what", "column"),
    [
        ("/api/v1/nodes", "cannot list the nodes: /api/v1/nodes is forbidden", ["-", "24", "MiB", "28", "MiB"]),
        ("sgx-metrics-1/proxy", "cannot read the metrics of pod confcom-system/sgx-metrics-1", None),
        ("sgx-quote-helper-1/proxy", "sgx-quote-helper-1/proxy/metrics is forbidden", None),
    ],
)
def test_what_may_not_be_read_is_said_and_the_rest_shown(
    api: EpcApi, tmp_path: Path, forbidden: str, what: str, column: list[str] | None
) -> None:
    api.forbidden.add(forbidden)
    output = run(api, tmp_path, "--once")
    assert what in output
    assert lines(output)["default/greedy"][:3] == ["n1", "10", "MiB"]
    if column is not None:
        assert lines(output)["n1"][: len(column)] == column


def test_pods_that_do_not_answer_or_answer_nonsense(api: EpcApi, tmp_path: Path) -> None:
    api.pages["sgx-metrics-1"] = b"confcom_epc_mapped_bytes{ 7\n"
    del api.pages["sgx-quote-helper-1"]
    output = run(api, tmp_path, "--once")
    assert "cannot read 'confcom_epc_mapped_bytes{ 7'" in output
    assert "no answer from sgx-quote-helper-1" in output
    assert lines(output)["default/greedy"] == ["n1", "10", "MiB", "-", "-", "-"]


def test_an_exporter_without_the_api_says_nothing_of_pods(api: EpcApi, tmp_path: Path) -> None:
    api.pages["sgx-metrics-1"] = page(
        {"confcom_epc_pods_known": [({"node": "n1"}, 0)], "confcom_epc_node_mapped_bytes": [({"node": "n1"}, MIB)]}
    )
    output = run(api, tmp_path, "--once")
    assert "the exporter of node n1 does not know its pods" in output
    assert lines(output)["default/greedy"][:4] == ["n1", "10", "MiB", "-"]
    assert lines(output)["n1"][4:6] == ["1", "MiB"]


@pytest.mark.parametrize("beside", ["0", "8"], ids=["what another publisher left", "the part of quote helpers"])
def test_epc_that_is_claimed_is_known_from_the_exporter(api: EpcApi, tmp_path: Path, beside: str) -> None:
    api.nodes["n3"] = beside
    api.put(make_pod("claims", node="n3"))
    api.put(make_pod("sgx-metrics-3", namespace="confcom-system", node="n3", labels=component("metrics")))
    app = {"node": "n3", "namespace": "default", "pod": "claims", "container": "app"}
    api.pages["sgx-metrics-3"] = page(
        {
            "confcom_epc_pods_known": [({"node": "n3"}, 1)],
            "confcom_epc_requested_bytes": [(app, 3 * MIB)],
            "confcom_epc_node_requested_bytes": [({"node": "n3"}, 3 * MIB)],
            "confcom_epc_node_size_bytes": [
                ({"node": "n3", "numa_node": "0"}, 8 * MIB),
                ({"node": "n3", "numa_node": "1"}, 8 * MIB),
            ],
        }
    )
    found = lines(run(api, tmp_path, "--once"))
    assert found["n3"][:4] == ["16", "MiB", "3", "MiB"]
    assert found["default/claims"][:3] == ["n3", "3", "MiB"]


def test_without_exporters_it_says_how_to_get_them(api: EpcApi, tmp_path: Path) -> None:
    api.remove("sgx-metrics-1")
    assert "no metrics pods in confcom-system" in run(api, tmp_path, "--once")


def test_nothing_of_the_cluster_steers_the_terminal(api: EpcApi, tmp_path: Path) -> None:
    api.put(make_pod("evil", mib=1, node="n1\x1b[2J"))
    assert "\x1b" not in run(api, tmp_path, "--once")


def test_a_cluster_that_is_away_is_an_error(api: EpcApi, tmp_path: Path) -> None:
    kubeconfig = api.kubeconfig(tmp_path)
    api.down = True
    result = CliRunner().invoke(root, ["top", "--kubeconfig", kubeconfig, "--once"])
    assert isinstance(result.exception, ClusterError)
    assert "cannot list the pods" in result.exception.message


def test_it_lives_on_a_terminal_and_shows_rates(api: EpcApi, tmp_path: Path) -> None:
    kubeconfig = api.kubeconfig(tmp_path)
    main, side = pty.openpty()
    command = [sys.executable, "-m", "confcom", "top", "--kubeconfig", kubeconfig, "--interval", "0.5", "--watch"]
    environment = os.environ | {"COLUMNS": "160", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    seen = b""
    try:
        deadline = time.monotonic() + 60
        while b"/s)" not in seen and time.monotonic() < deadline:
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65536)
        assert b"default/greedy" in seen
        assert b"(0.0/s)" in seen
        # The API goes away, and the figures stay.
        api.down = True
        while b"old: cannot list" not in seen and time.monotonic() < deadline:
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65536)
        assert b"old: cannot list" in seen
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other side is closed when the program has ended
            while piece := os.read(main, 65536):
                seen += piece
        assert process.wait(60) == ExitCode.INTERRUPTED
        assert seen.rstrip().endswith((b"\x1b[?25h\x1b[?1049l", b"\x1b[?1049l\x1b[?25h"))  # cursor and screen are back
        assert b"Traceback" not in seen
    finally:
        process.kill()
        process.wait()
        os.close(main)
