"""A quote helper of its own process, and clients in C that ask it as real clients do: a new connection per request."""

from __future__ import annotations

import array
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import cpu_seconds
from benchmarks.simulated import simulated_world
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.formats.sgx import Report
from confcom.protocols import aesm as m
from confcom.protocols.aesm import ClientConnection, DcapRequest
from confcom.simulator.declaration import EnclaveDeclaration


@dataclass(frozen=True, slots=True)
class Asked:
    """One kind of request: its frame, and the size of the shortest answer that is no refusal."""

    frame: bytes
    least: int


@dataclass(frozen=True, slots=True)
class Load:
    """What clients saw: seconds per answered request, sorted, and how many were not answered."""

    seconds: float
    latencies: list[float]
    failed: int

    @property
    def per_second(self) -> float:
        """Answered requests per second."""
        return len(self.latencies) / self.seconds

    def at(self, share: float) -> float:
        """The latency below which that share lies."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Stage:
    """A machine, its requests, and the program that sends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "aesm.socket"
        self.machine = folder / "machine.json"
        self.world = simulated_world()
        self.world.write_first(self.machine)
        self._program = self.build("aesm_load")

    def build(self, program: str) -> Path:
        """Compile a C program of this folder."""
        compiler = shutil.which("cc")
        if compiler is None:
            sys.exit("bench: a C compiler (cc) is needed")
        path = self.folder / program
        source = Path(__file__).with_name(f"{program}.c")
        subprocess.run([compiler, "-O2", "-pthread", "-o", path, source], check=True)
        return path

    def start(
        self, *options: str, files: int | None = None, settings: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a helper and wait until it serves."""
        environment = {f"CONFCOM_QUOTE_HELPER_{name.upper()}": value for name, value in (settings or {}).items()}
        command = [sys.executable, "-m", "confcom", "quote-helper", "--socket", str(self.path)]
        command += ["--platform", "simulated", "--machine", str(self.machine), *options]
        if files is not None:
            command = ["prlimit", f"--nofile={files}:{files}", *command]
        with (self.folder / "helper.log").open("ab") as log:
            helper = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment
            )
        assert helper.stdout is not None
        if "ready" not in helper.stdout.readline():
            sys.exit("bench: the quote helper did not start")
        return helper

    def requests(self) -> dict[str, Asked]:
        """One request of each kind as it goes over the wire."""
        target = self.world.platform.init_quote().target_info
        enclave = self.world.machine.launch(EnclaveDeclaration.from_names("bench", "bench"))
        report, size = bytes(enclave.create_report(target, bytes(64))), self.world.platform.quote_size()
        key = bytes(ECDSA_P256_KEY_ID)
        return {
            "quotes": asked(m.GetQuoteExRequest(report=report, att_key_id=key, buf_size=size), size),
            "quotes with QE report": asked(
                m.GetQuoteExRequest(
                    report=report, att_key_id=key, buf_size=size, qe_report_info=bytes(16) + bytes(target) + bytes(432)
                ),
                size + 960,
            ),
            "key initialisations": asked(m.InitQuoteExRequest(b_pub_key_id=True, att_key_id=key, buf_size=32), 512),
            "quote sizes": asked(m.GetQuoteSizeExRequest(att_key_id=key), 11),
            "numbers of keys": asked(m.GetSupportedAttKeyIdNumRequest(), 11),
        }

    def quote_seconds(self) -> float:
        """Processor seconds of a quote by the platform itself, of a report as it arrives: its bytes, read anew."""
        platform = self.world.platform
        enclave = self.world.machine.launch(EnclaveDeclaration.from_names("bench", "bench"))
        report = bytes(enclave.create_report(platform.init_quote().target_info, bytes(64)))
        return cpu_seconds(lambda: platform.quote(Report.parse(report)))

    def begin(self, asked: Asked, threads: int, seconds: float) -> subprocess.Popen[bytes]:
        """Let clients ask; `end` gives what they saw."""
        frame = self.folder / "frame"
        frame.write_bytes(asked.frame)
        command = [str(self._program), str(self.path), str(threads), str(seconds), str(frame), str(asked.least)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self, clients: subprocess.Popen[bytes]) -> Load:
        """Wait for the clients' own end."""
        output, told = clients.communicate()
        latencies = sorted(value / 1e9 for value in array.array("I", output))
        answered, failed, nanoseconds = map(int, told.split())
        assert answered == len(latencies)
        return Load(nanoseconds / 1e9, latencies, failed)

    def is_answered(self, asked: Asked) -> bool:
        """Whether one request gets its answer."""
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.path))
                client.sendall(asked.frame)
                while piece := client.recv(1 << 16):
                    answer += piece
        except OSError:
            return False
        return len(answer) >= asked.least

    def load(self, asked: Asked, threads: int, seconds: float) -> Load:
        """Ask for so many seconds."""
        return self.end(self.begin(asked, threads, seconds))


def asked(request: DcapRequest, least: int) -> Asked:
    """A request as it goes over the wire; `least` is the size of the shortest answer that is no refusal."""
    return Asked(ClientConnection().send(request), least)


def children(pid: int) -> list[int]:
    """The processes that a helper started, from any of its threads."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def used_seconds(pid: int) -> float:
    """Processor seconds of a helper and its workers so far: unlike rates, the same on a machine with other work."""
    return sum(processor_seconds(process) for process in (pid, *children(pid)))


def processor_seconds(pid: int) -> float:
    """User and system time of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """How many files a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def stop(helper: subprocess.Popen[str]) -> None:
    """End a helper."""
    helper.send_signal(signal.SIGTERM)
    helper.wait(30)
