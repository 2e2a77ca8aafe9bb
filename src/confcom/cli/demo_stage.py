"""The processes and files of the demonstration: a simulated machine, the real quote helper, the sample's two peers.

Everything that is started here ends here, however the demonstration ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confcom.errors import ConfigError, PlatformUnavailable
from confcom.protocols.aesm import VARIABLE

SAMPLES = ("remote_attestation/peer.py", "local_attestation/neighbours.py")
MAX_SOCKET_PATH = 60
"""Bytes of a temporary folder's name that leave enough for a socket in it; the kernel takes 107 in all."""
START_TIMEOUT = 120.0
"""Seconds for the helper to be ready; on an idle machine it takes one. Limits are there against hanging."""
PEER_TIMEOUT = 120.0
"""Seconds for one meeting of the peers; on an idle machine it takes one."""
LOG_TIMEOUT = 30.0
"""Seconds for a line of the helper's log, which may be later than the answer that it is about."""
PREFIX = "confcom-demo-"
"""The temporary folders' names begin with it."""
ABANDONED = 60.0
"""Seconds without a change after which an unlocked folder counts as left behind."""
END_TIMEOUT = 3.0
"""Seconds for a process to end when it is asked to."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class PeerOutcome:
    """What one peer did."""

    name: str
    pid: int
    code: int
    out: str
    err: str

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple((self.out + self.err).splitlines())


@dataclass
class Stage:
    """Where the demonstration runs: `folder` holds what may be kept, `run` the sockets and logs."""

    folder: Path
    run: Path
    examples: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    """Ends of pipes; the processes end when they are closed."""

    @property
    def machine(self) -> Path:
        return self.folder / "machine.json"

    @property
    def collateral(self) -> Path:
        return self.folder / "collateral"

    @property
    def root(self) -> Path:
        """The simulated root's certificate."""
        return self.collateral / "root_ca.pem"

    @property
    def socket(self) -> Path:
        """The quote helper's socket."""
        return self.run / "aesm.socket"

    def start(
        self, *arguments: str | Path, out_of_proc: bool = False, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start Python as a process of its own, with SGX_AESM_ADDR as asked; standard error goes to `log` or a pipe."""
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        environment |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8", **({VARIABLE: "1"} if out_of_proc else {})}
        ends, held = os.pipe()
        self.held.append(held)
        with contextlib.nullcontext(subprocess.PIPE) if log is None else log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                [sys.executable, *map(str, arguments)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                # So that only this process gets Ctrl-C, and ends the others in order.
                start_new_session=True,
                pass_fds=(ends,),
            )
        # The kernel sends the child SIGTERM when the other end is closed: when this process exits, or is killed.
        fcntl.fcntl(ends, fcntl.F_SETOWN, process.pid)
        fcntl.fcntl(ends, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(ends, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.close(ends)
        self.processes.append(process)
        return process

    def start_helper(self) -> int:
        """Start `confcom quote-helper`, wait until it is ready, and give its process id."""
        log = self.run / "helper.log"
        command = ("-P", "-m", "confcom", "quote-helper", "--socket", self.socket, "--machine", self.machine)
        process = self.start(*command, log=log)
        output = process.stdout
        if output is None or not select.select([output], [], [], START_TIMEOUT)[0] or not output.readline():
            said = log.read_text("utf-8", "replace")[-2000:].strip() or "no output"
            raise PlatformUnavailable(f"the quote helper did not start: {said}")
        return process.pid

    def quotes_served(self) -> list[int]:
        """Process ids that the helper made a quote for, from its log."""
        served = []
        for line in (self.run / "helper.log").read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("kind") == "GetQuoteEx" and event.get("code") == 0:
                    served.append(int(event["pid"]))
        return served

    def wait_for_quotes(self, count: int) -> list[int]:
        """`quotes_served` once there are that many, or what there is after `LOG_TIMEOUT`."""
        deadline = time.monotonic() + LOG_TIMEOUT
        while len(served := self.quotes_served()) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return served

    def meet(self, *, out_of_proc: bool = False) -> tuple[PeerOutcome, PeerOutcome]:
        """Run two peers of examples/remote_attestation as two processes, and wait until they end."""
        sample = self.examples / "remote_attestation"
        usual = ["--machine", "machine.json", "--socket", str(self.socket), "--collateral", "collateral"]
        usual += ["--trust-root", str(self.root), "--policy", str(sample / "policy.toml")]
        usual += ["--timeout", str(PEER_TIMEOUT / 2)]
        running = {}
        for name, where, enclave in (("A", "--listen", "enclave_a.toml"), ("B", "--connect", "enclave_b.toml")):
            own = ["--name", name, where, f"unix:{self.run / 'meet'}", "--enclave", str(sample / enclave)]
            running[name] = self.start(sample / "peer.py", *usual, *own, out_of_proc=out_of_proc)
        a, b = (_finish(name, process) for name, process in running.items())
        return a, b

    def attest_locally(self, signer: str) -> PeerOutcome:
        """Run examples/local_attestation, two enclaves in one process."""
        enclaves = (self.examples / "remote_attestation" / name for name in ("enclave_a.toml", "enclave_b.toml"))
        program = self.examples / "local_attestation" / "neighbours.py"
        return _finish("", self.start(program, "--machine", "machine.json", "--signer", signer, *enclaves))

    def end(self) -> None:
        """Terminate every process, the last one first; kill those that do not end in time."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for held in self.held:
            os.close(held)


@contextlib.contextmanager
def open_stage(keep: Path | None) -> Iterator[Stage]:
    """A stage; its processes end and its folder is removed with the block, except the folder `keep`."""
    examples = find_examples()
    kept = _kept(keep) if keep is not None else None
    # Under a long TMPDIR there is no place for a socket's name.
    long = len(os.fsencode(tempfile.gettempdir())) > MAX_SOCKET_PATH
    temporary = Path("/tmp" if long else tempfile.gettempdir())  # noqa: S108
    _remove_remains(temporary)
    run = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temporary))
    lock = os.open(run, os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    stage = Stage(folder=kept or run, run=run, examples=examples)
    try:
        yield stage
    finally:
        # A second Ctrl-C must not interrupt the cleaning up; this takes seconds at most.
        with _on_signals(signal.SIG_IGN):
            stage.end()
            shutil.rmtree(stage.run, ignore_errors=True)
            os.close(lock)


def _remove_remains(temporary: Path) -> None:
    """Remove the folders of demonstrations that were killed: of this user, not locked, and unchanged for a while."""
    for folder in temporary.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                status = os.fstat(descriptor)
                if status.st_uid == os.geteuid() and time.time() - status.st_mtime > ABANDONED:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that it cleans up."""

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    with _on_signals(interrupt):
        yield


@contextlib.contextmanager
def _on_signals(handler: Any) -> Iterator[None]:  # noqa: ANN401 - as the module signal has them
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def find_examples() -> Path:
    """The folder of the examples: beside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_examples", package.parent.parent / "examples"):
        if all((folder / name).is_file() for name in SAMPLES):
            return folder
    raise ConfigError(
        f"the examples that the demonstration runs ({' and '.join(SAMPLES)}) are not part of this installation",
        advice="Run the demonstration from a checkout, or install a complete wheel.",
    )


def _kept(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot use the folder {folder}: {error.strerror}") from error
    if not empty:
        raise ConfigError(f"the folder {folder} is not empty", advice="Name a new folder with --keep.")
    return folder.resolve()


def _finish(name: str, process: subprocess.Popen[bytes]) -> PeerOutcome:
    try:
        out, err = process.communicate(timeout=PEER_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += f"{name or 'neighbours'}: it had not ended after {PEER_TIMEOUT:g} s".encode()
    return PeerOutcome(
        name, process.pid, process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
    )
