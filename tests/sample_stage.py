"""The program of `examples/remote_attestation` as real processes, for the tests that start it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from confcom.wiring import create_machine_file, declare_enclave, export_simulated_collateral

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EXAMPLE = EXAMPLES / "remote_attestation"
NOW = datetime.now(UTC)  # noqa: TID251 - the sample judges as of the present
SIGNER = declare_enclave("", "Contoso").mr_signer.hex()


@dataclass
class Stage:
    """A folder with a simulated machine and its collateral, and the processes that stand on it."""

    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def prepare(self) -> None:
        """Make the machine and its collateral."""
        create_machine_file(self.machine, b"seed of the sample's tests", NOW)
        export_simulated_collateral(self.machine, self.folder / "collateral", NOW)

    def end(self) -> None:
        """End whatever still runs."""
        for process in self.processes:
            process.kill()
            process.communicate()

    @property
    def machine(self) -> Path:
        return self.folder / "machine.json"

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "SGX_AESM_ADDR"} | variables
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def peer(self, name: str, where: str, *options: str | Path, **variables: str) -> subprocess.Popen[str]:
        """One side with the sample's usual options; later ones replace them."""
        enclave = EXAMPLE / f"enclave_{name.lower()}.toml"
        usual = ["--machine", self.machine, "--enclave", enclave]
        usual += ["--collateral", "collateral", "--trust-root", "collateral/root_ca.pem"]
        usual += ["--policy", EXAMPLE / "policy.toml", "--timeout", "60", "--name", name, where, "unix:meet"]
        return self.start(EXAMPLE / "peer.py", *usual, *options, **variables)

    def declare(self, name: str, **fields: object) -> Path:
        path = self.folder / f"{name}.toml"
        values = {"enclave": name, "signer": "Contoso", "isv_prod_id": 1, "isv_svn": 2} | fields
        path.write_text("".join(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
                                for key, value in values.items()))  # fmt: skip
        return path


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def finish(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return Ended(process.returncode, out, err)


def both(stage: Stage, *options: str | Path, **variables: str) -> tuple[Ended, Ended]:
    """The two sides of the sample with the same further options, to their ends."""
    a = stage.peer("A", "--listen", *options, **variables)
    b = stage.peer("B", "--connect", *options, **variables)
    return finish(a), finish(b)
