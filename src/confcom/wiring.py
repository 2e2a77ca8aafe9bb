"""Names to platforms. The only module outside the tests that may import the simulator.

A simulated platform is never chosen silently: only by its name, or by a machine file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from confcom.appraisal.collateral import Collateral
from confcom.collateral.bundle import load_bundle, load_trust_roots
from confcom.errors import ConfigError, PlatformUnavailable
from confcom.pki.chain import TrustRoots
from confcom.platforms.intel.dcap import library_folder
from confcom.platforms.intel.platform import IntelWorkerPlatform
from confcom.platforms.interface import LocalEnclave, Platform, device_obstacles, obstacles_to_in_proc
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import HARDWARE, MachineFile, SimulatedMachine
from confcom.simulator.world import SimulatedUpstream, SimulatedWorld

if TYPE_CHECKING:
    from confcom.platforms.quoting import ModeDecision, QuoteSource
    from confcom.services.quote_helper.self_test import SelfTestKit

PlatformName = Literal["auto", "intel", "simulated"]

_MACHINE_ADVICE = (
    "A simulated platform needs the machine file that the enclaves use too: name it with --machine FILE, "
    "or make one first."
)
_INTEL_ADVICE = (
    "On a node with SGX, make its devices and Intel's libsgx-dcap-ql available to this process; "
    "without SGX hardware, choose --platform simulated with --machine FILE."
)


WORLD_SEED_SIZE = 32
"""Bytes of a random seed of a world."""


class Choice(NamedTuple):
    """A platform's name and why it is that one."""

    name: Literal["intel", "simulated"]
    reason: str


def choose_platform(name: PlatformName, *, machine: Path | None = None, host: Path = Path("/")) -> Choice:
    """Settle `auto`; the reason is one clause for a log or an error."""
    match name:
        case "intel":
            return Choice("intel", "it was asked for by name")
        case "simulated":
            return Choice("simulated", "it was asked for by name")
        case "auto" if machine is not None:
            return Choice("simulated", f"the machine file {machine} was given")
        case "auto":
            return Choice("intel", _why_intel(host))
        case _:
            raise ConfigError(f"unknown platform {name!r}", advice="Use auto, intel or simulated.")


def open_platform(
    name: PlatformName, *, machine: Path | None = None, host: Path = Path("/"), pck_memory: Path | None = None
) -> Platform:
    """The platform of that name; `PlatformUnavailable` names what is missing, `ConfigError` contradicting options.

    With `pck_memory`, a file, PCK certificates come to Intel's libraries from this process (`pck_endpoint`).
    """
    choice = choose_platform(name, machine=machine, host=host)
    return PLATFORMS[choice.name](machine, host, pck_memory)


def _open_intel(machine: Path | None, host: Path, pck_memory: Path | None) -> Platform:
    if machine is not None:
        advice = "Leave out --machine, or choose simulated."
        raise ConfigError("Intel's platform takes no machine file", advice=advice)
    if device_obstacles(host):
        missing = "; ".join(obstacles_to_in_proc(host))
        raise PlatformUnavailable(f"no SGX platform here: {missing}", advice=_INTEL_ADVICE)
    endpoint = None
    if pck_memory is not None:
        # Here, because it brings HTTP along, which `confcom quote` does without.
        from confcom.services.quote_helper.pck_endpoint import PckEndpoint

        endpoint = PckEndpoint.of_host(os.environ, pck_memory)
    platform = IntelWorkerPlatform(library_folder(host), surroundings=endpoint, devices=lambda: device_obstacles(host))
    platform.start()
    return platform


def _why_intel(host: Path) -> str:
    obstacles = obstacles_to_in_proc(host)
    if obstacles:
        return f"no simulated machine was given, although {'; '.join(obstacles)}"
    return "SGX devices and Intel's library are here, and no simulated machine was given"


def _open_simulated(machine: Path | None, host: Path, pck_memory: Path | None) -> Platform:
    del host, pck_memory
    if machine is None:
        raise ConfigError("a simulated platform needs a machine file", advice=_MACHINE_ADVICE)
    return SimulatedWorld.load(machine).platform


PLATFORMS: dict[str, Callable[[Path | None, Path, Path | None], Platform]] = {
    "intel": _open_intel,
    "simulated": _open_simulated,
}


# The simulated world, for the demonstration, examples and the command line.


simulated_world = SimulatedWorld.from_seed
"""A world in this process alone."""
simulated_upstream = SimulatedUpstream.load
"""The authority behind a machine file, as the upstream of a collateral service; its `trust_roots` are its own."""
declare_enclave = EnclaveDeclaration.from_names
"""An enclave known by names; the same names have the same measurements everywhere."""
read_machine_file = MachineFile.read
"""A machine file; `ConfigError` if it cannot be read, `FormatError` if it is malformed."""


def create_machine_file(path: Path, seed: bytes, now: datetime) -> None:
    """Write a new machine file, mode 0600."""
    SimulatedWorld.from_seed(seed, now=now).write_first(path)


def create_named_machine_file(path: Path, world: Path, name: str) -> None:
    """Write the machine file of that name in the world of another machine file; one that is there is replaced."""
    MachineFile.read(world).named(name).write(path, over=True)


def world_documents(machine_file: bytes | None, now: datetime) -> tuple[bytes, bytes]:
    """A world's machine file and its root in PEM; without a file given, of a new world that begins at `now`."""
    if machine_file is None:
        seed = secrets.token_bytes(WORLD_SEED_SIZE)
        machine_file = bytes(MachineFile(seed=seed, created=now.astimezone(UTC).replace(microsecond=0)))
    world = SimulatedWorld((MachineFile.parse(machine_file),))
    return machine_file, world.root_pem()


def describe_machine(data: bytes) -> str:
    """A machine file in a clause for people, without its secrets."""
    found = MachineFile.parse(data)
    reports = "takes reports of enclaves of SGX_MODE=SIM only"
    if found.report_scheme == HARDWARE.name:
        reports = "takes reports of enclaves of SGX_MODE=SIM too"
    return f"created {found.created:%Y-%m-%d}; {reports}"


def open_machine(path: Path) -> SimulatedMachine:
    """The machine of a machine file."""
    return MachineFile.read(path).machine()


def load_declaration(enclave: object) -> EnclaveDeclaration:
    """An enclave that a TOML or JSON file declares, or a signed enclave file; or a mapping as in such a file."""
    if isinstance(enclave, Path):
        return EnclaveDeclaration.load(enclave)
    return EnclaveDeclaration.of_document(enclave, "the declaration of an enclave")


def launch_enclave(machine: Path, declaration: Path | EnclaveDeclaration) -> LocalEnclave:
    """Start a simulated enclave on the machine of a machine file.

    `declaration` is a TOML or JSON file with its identity, or a signed enclave file. A file that cannot be read is a
    `ConfigError`, a malformed one a `FormatError`.
    """
    if isinstance(declaration, Path):
        declaration = load_declaration(declaration)
    return open_machine(machine).launch(declaration)


_NO_ENCLAVE_ADVICE = (
    'On SGX hardware, run the program under Gramine with sgx.remote_attestation = "dcap"; '
    "elsewhere, name a simulated machine: --machine FILE, machine=FILE in Python (`confcom simulate machine`)."
)


def own_quote_source(
    *, machine: Path | str | None = None, enclave: Path | str | None = None, socket: Path | str | None = None
) -> QuoteSource:
    """The quotes of the enclave of this process (Gramine), or of a simulated one on the machine of the file `machine`.

    `enclave` is a file with what the simulated enclave declares, or a signed enclave file. `socket` is the quote
    helper's, where it is not the usual one. `process_mode().decision` is then the mode and its reason.
    `PlatformUnavailable` where this process is in no enclave.
    """
    # Here, because they need packages that most platforms do without.
    from confcom.platforms.quoting import QuoteMode, process_mode

    decision = process_mode().decide("auto", os.environ)
    if decision.mode is not QuoteMode.GRAMINE and machine is None:
        raise PlatformUnavailable("this process is in no enclave and cannot attest itself", advice=_NO_ENCLAVE_ADVICE)
    source, _ = own_quotes(decision, machine=_path(machine), enclave=_path(enclave), socket=_path(socket))
    return source


def _path(name: Path | str | None) -> Path | None:
    return None if name is None else Path(name)


def own_quotes(
    decision: ModeDecision,
    *,
    machine: Path | None,
    enclave: Path | None = None,
    platform: PlatformName = "auto",
    socket: Path | None = None,
    host: Path = Path("/"),
) -> tuple[QuoteSource, LocalEnclave | None]:
    """The source of quotes of the enclave in which this process runs, or of a simulated one, which is returned too.

    Without `enclave` (its declaration, or a signed enclave file) a simulated machine runs a demo enclave. A process in
    no enclave is `PlatformUnavailable`.
    """
    # Here, because they need packages that most platforms do without.
    from confcom.platforms.aesm_client import DEFAULT_SOCKET
    from confcom.platforms.quoting import QuoteMode, open_quote_source

    if decision.mode is QuoteMode.GRAMINE:
        if machine or enclave:
            raise ConfigError(
                "Gramine runs this process in an enclave of its own, and a simulated one was named too",
                advice="Leave out --machine and --enclave.",
            )
        world = None
    else:
        world = _simulated_world(platform, machine, enclave)
    demo = declare_enclave("demo enclave", "demo signer")
    simulated = None if world is None else world.machine.launch(load_declaration(enclave) if enclave else demo)

    def present() -> LocalEnclave:
        if simulated is None:
            raise PlatformUnavailable("there is no enclave in this process to quote", advice=_NO_ENCLAVE_ADVICE)
        return simulated

    source = open_quote_source(
        decision,
        enclave=present,
        in_proc=lambda: world.platform if world else open_platform(platform, machine=machine, host=host),
        socket=socket or DEFAULT_SOCKET,
        host=host,
        simulated=simulated is not None,
    )
    return source, simulated


def _simulated_world(platform: PlatformName, machine: Path | None, enclave: Path | None) -> SimulatedWorld | None:
    """The world of the machine file, which is read once; None on hardware, where only the process is an enclave."""
    if choose_platform(platform, machine=machine).name == "simulated":
        if machine is None:
            raise ConfigError("a simulated platform needs a machine file", advice=_MACHINE_ADVICE)
        return SimulatedWorld.load(machine)
    if machine is not None or enclave is not None:
        raise ConfigError(
            "an enclave is declared, but no simulated machine runs it",
            advice="Name the machine with --machine FILE, and leave the platform to auto.",
        )
    return None


def export_simulated_collateral(
    path: Path,
    folder: Path,
    now: datetime,
    *,
    tcb_status: str = "UpToDate",
    advisory_ids: Sequence[str] = (),
    revoke_pck: bool = False,
) -> None:
    """Write the collateral of a machine file's platform as of `now`, with `root_ca.pem`, into a folder.

    The last three simulate later decisions of Intel: a TCB status with its advisories, a revoked PCK certificate.
    """
    world = SimulatedWorld.load(path)
    world.authority.renew(now)
    world.authority.set_status(tcb_status, advisory_ids)
    if revoke_pck:
        world.authority.revoke_pck(world.machine)
    world.export_collateral(folder)


# The quote helper's self-test.


def self_test_kit(
    choice: Choice,
    platform: Platform,
    *,
    machine: Path | None = None,
    collateral: str | None = None,
    collateral_ca: str | None = None,
    trust_root: str | None = None,
) -> SelfTestKit:
    """Enclave, collateral and roots for the self-test; by default a simulated platform is verified by its own world."""
    # Here, because the daemon needs packages that `confcom quote` does without.
    from confcom.services.quote_helper.self_test import SelfTestKit

    roots = None if trust_root is None else load_trust_roots(trust_root)
    if choice.name == "simulated" and machine is not None:
        world = SimulatedWorld.load(machine)
        enclave = world.machine.launch(EnclaveDeclaration.from_names("confcom self-test", "confcom"))
        source = _collateral(collateral, collateral_ca, roots or world.trust_roots) or (
            lambda _, now: world.publish(now)
        )
        return SelfTestKit(enclave, source, roots or world.trust_roots, simulated=True)
    trusted = roots or TrustRoots.intel()
    devices = platform.device_obstacles if isinstance(platform, IntelWorkerPlatform) else None
    judged_by = _collateral(collateral, collateral_ca, trusted)
    return SelfTestKit(None, judged_by, trusted, simulated=False, devices=devices)


def _collateral(name: str | None, ca: str | None, roots: TrustRoots) -> Callable[[bytes, datetime], Collateral] | None:
    if name is None:
        return None
    if "://" not in name:
        return lambda _, __: load_bundle(Path(name))
    # Here, because it brings HTTP along, which most platforms do without.
    from confcom.collateral.sources import RememberedCollateral, SourceOptions

    authorities = None if ca is None else Path(ca)
    options = SourceOptions(roots=roots, at=datetime.min.replace(tzinfo=UTC), ca_certificates=authorities)
    return RememberedCollateral(name, options)
