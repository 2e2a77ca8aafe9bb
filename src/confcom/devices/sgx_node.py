"""What a node offers for SGX, found in one look, and how a container gets the driver's devices.

The in-kernel driver and DCAP 1.41 have /dev/sgx_enclave; DCAP 1.33 has /dev/sgx/enclave; udev links one to the other. A
container gets both paths, each made from the one true device: a runtime can pass neither directories nor symlinks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from confcom.devices.epc import EpcSections, find_epc
from confcom.devices.host import DeviceFile, Host
from confcom.errors import PlatformUnavailable
from confcom.protocols.kubelet import ContainerAllocateResponse

ENCLAVE_PATHS = ("/dev/sgx_enclave", "/dev/sgx/enclave")
PROVISION_PATHS = ("/dev/sgx_provision", "/dev/sgx/provision")
LEGACY_PATH = "/dev/isgx"
DeviceKind: TypeAlias = Literal["enclave", "provision"]

_FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DriverDevice:
    """One device of the driver: `file` is the true one, `aliases` every path under which programs look for it."""

    file: DeviceFile
    aliases: tuple[str, ...]

    def describe(self) -> str:
        """Path, number, mode and owner, for a log."""
        number = "stand-in" if self.file.number is None else "{}:{}".format(*self.file.number)
        return f"{self.file.path} ({number}, mode {self.file.mode:04o}, uid {self.file.uid}, gid {self.file.gid})"


@dataclass(frozen=True, slots=True)
class SgxDriver:
    """What of the driver is there. `missing` says why enclaves cannot run, or is empty."""

    enclave: DriverDevice | None
    provision: DriverDevice | None
    kind: Literal["in-kernel", "dcap", "none"]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class CpuFlags:
    """Flags of the first processor in /proc/cpuinfo: each is set when CPU, BIOS and kernel allow the feature."""

    sgx: bool
    launch_control: bool


def find_driver(host: Host) -> SgxDriver:
    """Look for the devices of every known driver."""
    enclave, enclave_path = _find(host, ENCLAVE_PATHS)
    provision, _ = _find(host, PROVISION_PATHS)
    if enclave is None:
        return SgxDriver(None, provision, "none", _why_no_driver(host))
    return SgxDriver(enclave, provision, "in-kernel" if enclave_path == ENCLAVE_PATHS[0] else "dcap")


def find_cpu_flags(host: Host) -> CpuFlags | None:
    """None where /proc/cpuinfo cannot be read."""
    text = host.read("/proc/cpuinfo")
    match = None if text is None else _FLAGS.search(text)
    if match is None:
        return None
    flags = match[1].split()
    return CpuFlags("sgx" in flags, "sgx_lc" in flags)


def _find(host: Host, paths: tuple[str, ...]) -> tuple[DriverDevice | None, str]:
    for path in paths:
        found = host.device(path)
        if found is not None:
            # udev's link may lead either way; the name of the true device is that of its driver.
            return DriverDevice(found, paths), found.path
    return None, ""


def _why_no_driver(host: Host) -> str:
    absent = f"neither {ENCLAVE_PATHS[0]} nor {ENCLAVE_PATHS[1]} is a device"
    if host.device(LEGACY_PATH) is not None:
        return f"{absent}; {LEGACY_PATH} belongs to a driver without launch control, which is not served"
    flags = find_cpu_flags(host)
    if flags is None:
        return absent
    if not flags.sgx:
        return f"{absent}; the processor has no SGX, or the BIOS or the hypervisor keeps it off"
    if not flags.launch_control:
        return f"{absent}; the BIOS has locked launch control, so the kernel's driver stays off"
    return f"{absent}; the processor has SGX, but no driver is loaded (Linux 5.11 with CONFIG_X86_SGX, or DCAP's)"


@dataclass(frozen=True, slots=True)
class SgxNode:
    """EPC and driver of one host at one moment."""

    epc: EpcSections
    driver: SgxDriver

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Each reason why this node cannot run enclaves, as a clause; empty when it can."""
        return tuple(clause for clause in (self.driver.missing, self.epc.missing) if clause)

    def why_missing(self, kind: DeviceKind) -> str:
        """Why a device of the driver cannot be had now; empty when it can."""
        if kind == "enclave" or self.driver.provision is not None:
            return self.driver.missing if kind == "enclave" else ""
        return self.driver.missing or f"neither {PROVISION_PATHS[0]} nor {PROVISION_PATHS[1]} is a device"

    def device(self, kind: DeviceKind) -> DriverDevice:
        """A device of the driver; `PlatformUnavailable` when it is not there now."""
        found = self.driver.enclave if kind == "enclave" else self.driver.provision
        if found is None:
            raise PlatformUnavailable(f"no {kind} device: {self.why_missing(kind)}")
        return found


def find_sgx(host: Host) -> SgxNode:
    """Look at the host. It costs a few reads, so that it can be done every few seconds."""
    return SgxNode(find_epc(host), find_driver(host))


def allocation(
    host: Host, *devices: DriverDevice, environment: Mapping[str, str] | None = None
) -> ContainerAllocateResponse:
    """What a container gets: each device under all its names, and variables.

    A stand-in is no device: it comes as a file, read-only.
    """
    found = ContainerAllocateResponse(envs=environment)
    for device in devices:
        path = host.outside(device.file.path)
        for alias in device.aliases:
            if device.file.is_stand_in:
                found.mounts.add(host_path=path, container_path=alias, read_only=True)
            else:
                found.devices.add(host_path=path, container_path=alias, permissions="rw")
    return found
