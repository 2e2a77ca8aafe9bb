from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import msgspec
import pytest
import structlog

from confcom import input_file
from confcom.errors import ClusterError, ConfcomError, ConfigError
from confcom.services.attestation.attestation_service import AttestationServiceConfig
from confcom.services.certificate_signer.certificate_signer import CertificateSignerConfig
from confcom.services.collateral.collateral_service import CollateralServiceConfig
from confcom.services.device_plugin.plugin import DevicePluginConfig
from confcom.services.metrics.exporter import MetricsConfig
from confcom.services.metrics_api.metrics_api import MetricsApiConfig
from confcom.services.quote_helper.helper import QuoteHelperConfig
from confcom.services.runtime import process
from confcom.services.runtime.process import background, configure_logging, load, render, run_until
from confcom.services.webhook.webhook import WebhookConfig

GUARD = 60.0
"""Seconds after which a test hangs."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: str = "default"
    limit: Annotated[int, msgspec.Meta(ge=1)] = 10
    share: float = 0.5
    replace: bool = False
    roots: tuple[str, ...] = ()


def config(tmp_path: Path, *, file: str = "", environment: dict[str, str] | None = None, **flags: object) -> Config:
    path = tmp_path / "helper.toml"
    path.write_text(file)
    return load(Config, service="quote-helper", file=path, environment=environment or {}, flags=flags)[0]


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    environment = {"CONFCOM_QUOTE_HELPER_LIMIT": "30", "CONFCOM_QUOTE_HELPER_SHARE": "0.3", "CONFCOM_OTHER": "?"}

    loaded = config(tmp_path, file="limit = 20\nshare = 0.2\nreplace = true", environment=environment, limit=40)

    assert loaded == Config(socket="default", limit=40, share=0.3, replace=True)


@pytest.mark.parametrize(("text", "found"), [("a, b,", ("a", "b")), ("a", ("a",)), ("", ())])
def test_a_list_in_the_environment_has_commas(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    assert config(tmp_path, environment={"CONFCOM_QUOTE_HELPER_ROOTS": text}).roots == found


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, field.name)
        for kind in (
            AttestationServiceConfig, CertificateSignerConfig, CollateralServiceConfig, DevicePluginConfig,
            MetricsApiConfig, MetricsConfig, QuoteHelperConfig, WebhookConfig,
        )
        for field in msgspec.structs.fields(kind) if type(field.default) in (int, float)
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["inf", "nan", "1e12", "1e308", f"1{'0' * 30}"])
def test_a_number_beyond_all_use_is_refused_at_start(
    tmp_path: Path, kind: type[msgspec.Struct], field: str, value: str
) -> None:
    """Later it would fail wherever it is added to a date or kept: records would stay for ever, a stop never end."""
    file = tmp_path / "settings.toml"
    file.write_text(f"{field} = {value}\n")
    with pytest.raises(ConfigError, match=f"{field}: (Expected|Number out of range)"):
        load(kind, service="any", file=file, environment={}, flags={})


def test_settings_may_come_through_a_pipe_and_do_not_block_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "helper.toml"
    os.mkfifo(pipe)

    def loaded() -> Config:
        return load(Config, service="quote-helper", file=pipe, environment={}, flags={})[0]

    def write() -> None:
        with pipe.open("w") as stream:
            for piece in ("limit ", "= 20\n"):
                stream.write(piece)
                stream.flush()

    monkeypatch.setattr(input_file, "PATIENCE", GUARD)
    writer = threading.Thread(target=write)
    writer.start()
    assert loaded().limit == 20
    writer.join(GUARD)
    monkeypatch.setattr(input_file, "PATIENCE", 0.05)
    with pytest.raises(ConfigError, match=r"helper\.toml: it is a pipe, and gave nothing within 0\.05 s"):
        loaded()


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    assert config(tmp_path, file="limit = 20", limit=None).limit == 20


@pytest.mark.parametrize(
    ("file", "environment", "flags", "where"),
    [
        ("limti = 20", {}, {}, r"helper\.toml: .*limti"),
        ("limit = 0", {}, {}, r"helper\.toml: limit: Expected"),
        ("limit = '20'", {}, {}, r"helper\.toml: limit: Expected"),
        ("limit = ", {}, {}, r"helper\.toml is not TOML"),
        ("", {"CONFCOM_QUOTE_HELPER_LIMIT": "many"}, {}, r"^CONFCOM_QUOTE_HELPER_LIMIT: Expected"),
        ("", {}, {"limit": 0}, r"^limit: Expected"),
    ],
)
def test_a_mistake_is_reported_where_it_was_made(
    tmp_path: Path, file: str, environment: dict[str, str], flags: dict[str, object], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        config(tmp_path, file=file, environment=environment, **flags)


def test_a_field_is_known_by_the_source_that_counts(tmp_path: Path) -> None:
    file = tmp_path / "helper.toml"
    file.write_text("limit = 20\nshare = 0.2\nsocket = 'here'")
    environment = {"CONFCOM_QUOTE_HELPER_LIMIT": "30", "CONFCOM_QUOTE_HELPER_SHARE": "0.3"}
    _, place = load(
        Config, service="quote-helper", file=file, environment=environment, flags={"limit": 4}, option="--{}".format
    )
    found = [place(field) for field in ("limit", "share", "socket", "replace")]
    assert found == ["--limit", "CONFCOM_QUOTE_HELPER_SHARE", f"{file}: socket", "--replace"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load(Config, service="x", file=tmp_path / "nowhere", environment={}, flags={})


def test_the_printed_configuration_is_json_that_loads_again() -> None:
    printed = json.loads(render(QuoteHelperConfig(socket="/elsewhere")))

    assert msgspec.convert(printed, QuoteHelperConfig) == QuoteHelperConfig(socket="/elsewhere")


def test_the_defaults_keep_the_promises_of_the_protocol() -> None:
    defaults = QuoteHelperConfig()

    assert defaults.socket == "/var/run/aesmd/aesm.socket"
    assert defaults.backlog >= 128
    assert defaults.answer_timeout < 14
    assert (defaults.max_request, defaults.read_timeout) == (65536, 5.0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = " + b"[" * 50_000, "is not TOML"),
        (b"a = " + b"7" * 50_000, "is not TOML"),
        (b"\xff", "is not TOML"),
        (b"# " + b"x" * 70_000, "has more than 65536 bytes"),
    ],
)
def test_a_hostile_file_is_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load(QuoteHelperConfig, service="quote-helper", file=file, environment={}, flags={})


async def test_tasks_run_until_the_daemon_is_stopped() -> None:
    stop, ended = asyncio.Event(), []

    async def serve(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    running = asyncio.create_task(run_until(stop, serve("a"), serve("b")))
    await asyncio.sleep(0)
    stop.set()
    await running
    assert sorted(ended) == ["a", "b"]


async def test_a_task_that_fails_or_ends_ends_the_daemon_and_says_so() -> None:
    ended = []

    async def serve() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("the other")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ConfigError("it cannot go on")

    async def give_up() -> None:
        await asyncio.sleep(0)

    with pytest.raises(ConfigError, match="cannot go on"):
        await run_until(asyncio.Event(), serve(), fail())
    with pytest.raises(RuntimeError, match="give_up ended by itself"):
        await run_until(asyncio.Event(), serve(), give_up())
    assert ended == ["the other"] * 2


@pytest.mark.parametrize("pretty", [True, False])
def test_logs_of_mistakes_hold_no_local_variables(pretty: bool, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The variables of a request's frames hold its headers, and with them tokens."""

    def fail(authorization: str) -> None:
        raise ValueError(f"{len(authorization)} characters")

    kept = structlog.get_config()
    try:
        configure_logging(pretty=pretty)
        try:
            fail("Bearer " + "secret")
        except ValueError:
            structlog.get_logger().exception("mistake")
    finally:
        structlog.configure(**kept)
    written = capfdbinary.readouterr().err
    assert b"13 characters" in written
    assert b"test_process.py" in written
    assert b"Bearer secret" not in written


async def test_pauses_between_failures_double_and_begin_again_after_a_call_that_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    lasted, now = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 31.0, 0.0], 0.0

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def call() -> None:
        nonlocal now
        now += lasted[len(pauses)]
        raise ClusterError("away")

    def failed(error: ConfcomError) -> None:
        if len(pauses) == len(lasted) - 1:
            raise error

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: now))
    with pytest.raises(ClusterError):
        await process.repeat(call, failed, pause=5.0, longest=30.0)

    assert pauses == [1, 2, 4, 8, 16, 30, 1]


async def test_a_task_that_fails_is_logged_at_once_and_runs_again() -> None:
    runs, well = 0, asyncio.Event()

    async def fails_thrice() -> None:
        nonlocal runs
        runs += 1
        if runs <= 3:
            raise ValueError(f"failure {runs}")
        well.set()
        await asyncio.Event().wait()

    with structlog.testing.capture_logs() as logged:
        async with background("watch", fails_thrice):
            await asyncio.wait_for(well.wait(), 60)
            assert [(line["event"], line["task"], line["restart_in"]) for line in logged] == [
                ("process.task", "watch", 0.0)
            ] * 3
    assert runs == 4


async def test_a_task_that_returns_is_not_run_again_and_one_that_hangs_ends_with_the_block() -> None:
    runs = 0

    async def returns() -> None:
        nonlocal runs
        runs += 1

    async with background("once", returns), background("hangs", asyncio.Event().wait):  # type: ignore[arg-type]
        for _ in range(5):
            await asyncio.sleep(0)
    assert runs == 1


STOPS_SLOWLY = """
import asyncio
from confcom.services.runtime.process import SAME_REQUEST, stop_on_signals

async def main():
    stop = stop_on_signals()
    print("ready", flush=True)
    await stop.wait()
    print("stops", flush=True)
    HOW

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGTERM, "await asyncio.Event().wait()"),
        (signal.SIGINT, "await asyncio.sleep(2 * SAME_REQUEST); import time; time.sleep(600)"),
    ],
)
def test_a_further_signal_ends_a_daemon_that_stops_slowly(number: int, how: str) -> None:
    program = [sys.executable, "-c", STOPS_SLOWLY.replace("HOW", how)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        daemon.send_signal(number)
        assert daemon.stdout.readline() == "stops\n"
        deadline = time.monotonic() + GUARD
        while daemon.poll() is None:
            assert time.monotonic() < deadline, "it goes on"
            daemon.send_signal(number)
            time.sleep(0.1)
    assert daemon.returncode == -number


HANGS_UP = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); await asyncio.sleep(0.1); print('goes on')"


@pytest.mark.parametrize(("first", "start"), [(signal.SIGHUP, []), (signal.SIGTERM, ["nohup"])])
def test_a_lost_terminal_stops_a_daemon_in_order(first: int, start: list[str]) -> None:
    """It ends the process by default: answers in flight are lost, and a socket stays at its path."""
    how = f"await asyncio.sleep(2 * SAME_REQUEST); {HANGS_UP}"
    before = "" if first is signal.SIGHUP else f"    {HANGS_UP}; assert not stop.is_set()\n"
    text = STOPS_SLOWLY.replace("HOW", how).replace('    print("ready"', f'{before}    print("ready"')
    with subprocess.Popen(
        [*start, sys.executable, "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        lines = [daemon.stdout.readline() for _ in range(2 if start else 1)]
        assert lines[-1] == "ready\n"
        daemon.send_signal(first)
        assert daemon.communicate(timeout=GUARD)[0] == "stops\ngoes on\n"
    assert daemon.returncode == 0


STARTS = """
import os, time
from confcom.services.runtime.process import configure_logging, restart_when_killed
configure_logging()
restart_when_killed()
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("start", [[], ["nohup"]])
def test_a_lost_terminal_ends_a_daemon_that_still_starts(start: list[str]) -> None:
    """The process in front forked the next one, without a terminal."""
    with subprocess.Popen(
        [*start, sys.executable, "-c", STARTS], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as front:
        assert front.stdout is not None
        first = int(front.stdout.readline())
        front.send_signal(signal.SIGHUP)
        if start:
            os.kill(first, signal.SIGKILL)
            assert int(front.stdout.readline()) != first
            front.terminate()
        assert front.communicate(timeout=GUARD)[0] == ""
    assert front.returncode == 128 + (signal.SIGTERM if start else signal.SIGHUP)


IN_FRONT = """
import os, signal
numbers = {signal.SIGINT, signal.SIGTERM}
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
from confcom.services.runtime.process import restart_when_killed
restart_when_killed()
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print("ready", flush=True)
first = signal.sigwait(numbers)
os.kill(os.getppid(), signal.SIGTERM)
print(first, signal.sigwait(numbers), sorted(signal.sigpending()), flush=True)
"""


def test_ctrl_c_reaches_the_process_behind_another_once() -> None:
    """The terminal asks both: what the first passed on would be the second request, which ends at once."""
    ours, theirs = pty.openpty()
    start = "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); exec(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", start, IN_FRONT], stdin=theirs, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as front:
        assert front.stdout is not None
        assert front.stdout.readline() == "ready\n"
        os.write(ours, b"\x03")
        assert front.stdout.readline() == f"{signal.SIGINT:d} {signal.SIGTERM:d} []\n"
    os.close(ours)
    os.close(theirs)
