"""A whole simulated world from one seed: an authority, machines that it certified, and a platform on each."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from confcom.appraisal.collateral import Collateral
from confcom.collateral.bundle import save_bundle
from confcom.errors import ConfigError
from confcom.pki.roots import TrustRoot, TrustRoots
from confcom.simulator.authority import SimulatedAuthority
from confcom.simulator.documents import SimulatedTcbInfo
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.machine_file import MachineFile
from confcom.simulator.pcs import SimulatedPcs
from confcom.simulator.platform import SimulatedPlatform

ROOT_FILE = "root_ca.pem"


class SimulatedWorld:
    """Authority, machines and platforms of one seed. `machine` and `platform` are the first of them.

    Worlds of one seed and creation time are the same world, byte for byte, in whatever process; changes to the
    authority's state stay in the process that made them.
    """

    def __init__(self, files: tuple[MachineFile, ...]) -> None:
        self._files = files
        self.authority = SimulatedAuthority(files[0].seed, files[0].created)
        self.machines: tuple[SimulatedMachine, ...] = tuple(file.machine() for file in files)
        self.platforms = tuple(SimulatedPlatform(machine, self.authority) for machine in self.machines)
        self.pcs = SimulatedPcs(self.authority)

    @classmethod
    def from_seed(cls, seed: bytes, *, now: datetime, machines: int = 1, report_scheme: str = "hardware") -> Self:
        """A world created at `now`, with that many equal servers."""
        if machines < 1:
            raise ConfigError("a simulated world has at least one machine")
        if now.tzinfo is None:
            raise ConfigError("the time of a simulated world needs a time zone")
        created = now.astimezone(UTC).replace(microsecond=0)
        return cls(
            tuple(
                MachineFile(seed=seed, created=created, index=index, report_scheme=report_scheme)
                for index in range(machines)
            )
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """The world of one machine file, with that machine alone."""
        return cls((MachineFile.read(path),))

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write one machine file per machine, as it was created, into a folder (made if need be); give their paths."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
        paths = tuple(folder / f"machine-{file.index}.json" for file in self._files)
        for path, file in zip(paths, self._files, strict=True):
            file.write(path)
        return paths

    def write_first(self, path: Path) -> None:
        """Write the first machine, as it was created, to this very path."""
        self._files[0].write(path)

    @property
    def machine(self) -> SimulatedMachine:
        """The first machine."""
        return self.machines[0]

    @property
    def platform(self) -> SimulatedPlatform:
        """The platform of the first machine."""
        return self.platforms[0]

    @property
    def tcb_info(self) -> SimulatedTcbInfo:
        """The TCB info of the first machine, to read and to change."""
        return self.authority.tcb_info(self.machine.fmspc)

    @property
    def trust_roots(self) -> TrustRoots:
        """The root of this world alone: a verifier that is given it marks what it accepts as simulated."""
        return TrustRoots((TrustRoot.from_pem(self.root_pem(), name="simulated"),))

    def root_pem(self) -> bytes:
        """The root certificate in PEM."""
        return self.authority.root_certificate().public_bytes(Encoding.PEM)

    def root_der(self) -> bytes:
        """The root certificate in DER."""
        return self.authority.root_certificate().public_bytes(Encoding.DER)

    def publish(self, now: datetime | None = None) -> Collateral:
        """Collateral for the first machine as things stand; with a time, all of it issued anew first."""
        if now is not None:
            self.authority.renew(now)
        return self.authority.collateral_for(self.machine)

    def export_collateral(self, folder: Path, now: datetime | None = None) -> None:
        """Write collateral as `publish` gives it, one file per part, and `root_ca.pem` beside it."""
        save_bundle(self.publish(now), folder)
        try:
            (folder / ROOT_FILE).write_bytes(self.root_pem())
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
