"""`confcom device-plugin` as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kubelet_emulator import KubeletEmulator, wait_until
from running_plugin import EPC

CONFCOM = [sys.executable, "-m", "confcom"]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.json"
    subprocess.run([*CONFCOM, "simulate", "machine", "-o", str(path)], check=True, capture_output=True)
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CONFCOM, "device-plugin", *arguments], capture_output=True, text=True, check=False)


def test_it_serves_survives_restarts_without_a_leak_and_ends_on_sigterm(
    tmp_path: Path, kubelet: KubeletEmulator, machine: Path
) -> None:
    config = tmp_path / "plugin.toml"
    config.write_text("watch_interval = 0.01\nretry_initial = 0.01\nretry_max = 0.02\n")
    command = [*CONFCOM, "device-plugin", "--machine", str(machine), "--simulated-epc", "64Mi,64Mi"]
    command += ["--simulated-node", str(tmp_path / "node"), "--plugin-dir", str(kubelet.plugin_dir)]
    with subprocess.Popen(
        [*command, "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as plugin:
        assert plugin.stdout is not None
        assert plugin.stderr is not None
        assert plugin.stdout.readline() == (
            f"device plugin: ready, {EPC} = 128 (128 MiB of EPC), as devices, SIMULATED node\n"
        )
        kubelet.wait_allocatable(EPC, 128)
        answer = kubelet.admit("default/app", EPC, 10)
        # What the container is given is the machine that its enclaves stand on.
        assert Path(answer.mounts[0].host_path).read_bytes() == machine.read_bytes()

        def descriptors() -> int:
            return len(list(Path(f"/proc/{plugin.pid}/fd").iterdir()))

        before = descriptors()
        for number in range(30):
            if number % 3:
                kubelet.restart()
            else:
                lost = kubelet.endpoints[EPC]
                kubelet.lose_stream(EPC)
                kubelet.wait(lambda lost=lost: not lost.alive)
            kubelet.wait_allocatable(EPC, 128)
        wait_until(lambda: descriptors() <= before)
        plugin.send_signal(signal.SIGTERM)
        log = [json.loads(line) for line in plugin.stderr.read().splitlines()]
        assert plugin.wait(60) == 0
    assert not (kubelet.plugin_dir / "confcom-epc.sock").exists()
    plan = log[0]
    assert (plan["event"], plan["publisher"], plan["true_mib"]) == ("epc.plan", "devices", 128)
    granted = [line for line in log if line["event"] == "devices.granted"]
    assert len(granted) == 1
    assert granted[0]["units"] == 10
    # Never an id.
    assert not any(unit in line for line in map(json.dumps, granted) for unit in kubelet.pods["default/app"][EPC])


def test_print_config_shows_what_is_in_force() -> None:
    done = run("--print-config", "--reserve-mib", "4", "--overcommit", "1.5")
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert (shown["reserve_mib"], shown["overcommit"], shown["provision_limit"]) == (4, 1.5, 0)
    assert shown["plugin_dir"] == "/var/lib/kubelet/device-plugins"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--platform", "simulated"), 2, "a simulated node needs a machine file"),
        (("--platform", "intel", "--machine", "m.json"), 2, "takes no machine file"),
        (("--resource", "sgx.intel.com/epc"), 2, "counts bytes"),
        (("--provision-limit", "1"), 2, "--provision-namespaces: names no namespace"),
        (("--host-root", "/nonexistent"), 7, "this node offers no SGX"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "what to do:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_machine_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    done = run("--machine", str(tmp_path / "m.json"), "--simulated-node", str(tmp_path / "node"))
    assert done.returncode == 3
    assert not (tmp_path / "node").exists()


def test_the_configuration_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFCOM_DEVICE_PLUGIN_RESERVE_MIB", "7")
    monkeypatch.setenv("CONFCOM_DEVICE_PLUGIN_NODE_NAME", "worker-1")
    shown = json.loads(run("--print-config").stdout)
    assert (shown["reserve_mib"], shown["node_name"]) == (7, "worker-1")
