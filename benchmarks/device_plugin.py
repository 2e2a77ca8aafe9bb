"""The device plugin at every node size, and through a thousand kubelet restarts and lost streams.

The kubelet is the tests' emulator, in this process; the plugin is a process of its own on the same machine. Nodes above
the unit limit are also run with one device per MiB where that ends in reasonable time, to show what is avoided. The
plugin looks at a host whose devices are real nodes where this process may make them, else at a simulated one.
`python -m benchmarks.device_plugin --restarts 1000` sets the number of restarts.
"""

from __future__ import annotations

import argparse
import importlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.measure import Row, percentile, show, spread
from benchmarks.simulated import simulated_world
from confcom.devices.sgx_node import DEFAULT_UNIT_LIMIT, declare_node, parse_epc_sizes

TESTS = Path(__file__).resolve().parent.parent / "tests"
EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
ENCLAVE = "sgx.intel.com/enclave"
SIZES = (168, 16 * 1024, 64 * 1024, 128 * 1024, 256 * 1024, 512 * 1024)
EXEC_STRING_LIMIT = 131_072
"""Bytes of one environment variable that Linux passes on, its name included."""
STATUS_ENTRY = 37
"""Bytes of JSON beside the id, for each device in a pod's status (docs/explanation/epc.md)."""


def rows(restarts: int = 40) -> Iterator[Row]:
    """Nodes of every size, then restarts."""
    emulator, api = from_tests("kubelet_emulator"), from_tests("node_api")
    for mib in SIZES:
        for publisher in ("auto", "devices"):
            if publisher == "auto" or DEFAULT_UNIT_LIMIT < mib <= 128 * 1024:
                yield _size(emulator, api, mib, publisher)
    yield from _endure(emulator, restarts)


def _size(emulator: ModuleType, api: ModuleType, mib: int, publisher: str) -> Row:
    devices = publisher == "devices" or mib <= DEFAULT_UNIT_LIMIT
    resource, count = (EPC, mib) if devices else (ENCLAVE, 110)
    with tempfile.TemporaryDirectory() as name, api.NodeApi("node") as node:
        folder = Path(name)
        kubelet = emulator.KubeletEmulator(folder)
        kubelet.start()
        extra = ["--publisher", publisher, "--node-name", "node", "--kubeconfig", node.kubeconfig(folder)]
        begin = time.perf_counter()
        with _plugin(folder, kubelet, f"{mib}Mi", extra) as plugin:
            kubelet.wait_allocatable(resource, count, 60.0)
            if not devices:
                node.wait(lambda: node.amount(EPC) is not None, 30.0)
            ready = time.perf_counter() - begin
            size = kubelet.endpoints[resource].sizes[-1]
            small = _timed(lambda: kubelet.admit("a/small", resource, 10 if devices else 1))
            half = _timed(lambda: kubelet.admit("a/half", resource, mib // 2 if devices else 1))
            resident = _resident(plugin.pid)
            ids = kubelet.pods["a/half"][resource]
        kubelet.stop()
    status = sum(STATUS_ENTRY + len(unit) for unit in ids)
    how = "devices" if devices else "node status"
    note = (
        f"list of {size:,} bytes, {resident:.1f} MiB resident; allocation of 10 MiB {small:.1f} ms, of half the node "
        f"{half:.1f} ms with {status:,} bytes in the pod's status; with ids in a variable, {_variable(mib)}"
    )
    return Row(f"{_human(mib)} as {how}: ready", ready, "s", note=note)


def _variable(mib: int) -> str:
    """What one device per MiB with all ids in an environment variable comes to."""
    size = len("SGX_VISIBLE_DEVICES=") + len(",".join(map(str, range(mib // 2))))
    listing = sum(13 + len(str(number)) for number in range(mib))
    if listing > 4 * 1024 * 1024:
        return f"list of {listing:,} bytes: refused by the kubelet"
    return f"half the node: {size:,} bytes" + (", exec fails" if size > EXEC_STRING_LIMIT else "")


def _endure(emulator: ModuleType, restarts: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kubelet = emulator.KubeletEmulator(folder)
        kubelet.start()
        settings = folder / "fast.toml"
        settings.write_text("watch_interval = 0.02\nretry_initial = 0.005\nretry_max = 0.02\n")
        with _plugin(folder, kubelet, "168Mi", ["--config", str(settings)]) as plugin:
            kubelet.wait_allocatable(EPC, 168, 30.0)
            kubelet.admit("a/app", EPC, 100)
            held = list(kubelet.pods["a/app"][EPC])
            for act in (lambda: kubelet.restart(), lambda: _lose(kubelet)):
                act()
                kubelet.wait_allocatable(EPC, 168, 30.0)
            before = (_descriptors(plugin.pid), _resident(plugin.pid))
            restarted = [_again(kubelet, kubelet.restart) for _ in range(restarts)]
            lost = [_again(kubelet, lambda: _lose(kubelet)) for _ in range(restarts)]
            after = (_descriptors(plugin.pid), _resident(plugin.pid))
            kept = kubelet.pods["a/app"][EPC] == held and set(held) <= kubelet.resources[EPC].healthy
            calls = kubelet.allocate_calls
        kubelet.stop()
    for what, seconds in (("kubelet restarts", restarted), ("lost streams", lost)):
        note = f"all of {len(seconds)}; {spread(seconds)}; watched every 20 ms"
        yield Row(f"registered again after {what}, p50", percentile(seconds, 0.5) * 1e3, "ms", note=note)
    note = f"{calls} Allocate calls, open files {before[0]} → {after[0]}, {before[1]:.1f} → {after[1]:.1f} MiB resident"
    yield Row("allocations lost meanwhile", 0 if kept else len(held), "", note=note)


def _again(kubelet: Any, act: Callable[[], object]) -> float:  # noqa: ANN401 - the emulator is loaded at run time
    act()
    begin = time.perf_counter()
    kubelet.wait_allocatable(EPC, 168, 30.0)
    return time.perf_counter() - begin


def _lose(kubelet: Any) -> None:  # noqa: ANN401 - the emulator is loaded at run time
    endpoint = kubelet.endpoints[EPC]
    kubelet.lose_stream(EPC)
    kubelet.wait(lambda: not endpoint.alive)


@contextmanager
def _plugin(folder: Path, kubelet: Any, epc: str, extra: list[str]) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401
    command = [sys.executable, "-m", "confcom", "device-plugin", *_host(folder, epc)]
    command += ["--plugin-dir", str(kubelet.plugin_dir), *extra]
    with (folder / "log").open("wb") as log:
        plugin = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        yield plugin
    except AssertionError:
        print((folder / "log").read_text()[-2000:], file=sys.stderr)
        raise
    finally:
        plugin.terminate()
        plugin.wait(20)


def _host(folder: Path, epc: str) -> list[str]:
    """Options for a host with that much EPC."""
    root = folder / "node"
    declare_node(root, parse_epc_sizes(epc), b"")
    try:
        for number, path in enumerate((root / "dev/sgx_enclave", root / "dev/sgx_provision")):
            path.unlink()
            os.mknod(path, stat.S_IFCHR | 0o660, os.makedev(10, 125 + number))
    except PermissionError:
        machine = folder / "machine.json"
        simulated_world().write_first(machine)
        return ["--machine", str(machine), "--simulated-epc", epc, "--simulated-node", str(root)]
    return ["--platform", "intel", "--host-root", str(root)]


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000


def _resident(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _human(mib: int) -> str:
    return f"{mib} MiB" if mib < 1024 else f"{mib // 1024} GiB"


def from_tests(name: str) -> ModuleType:
    """A module of the tests, which are no package and find each other by their folder."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--restarts", type=int, default=40)
    show(rows(parser.parse_args().restarts))
