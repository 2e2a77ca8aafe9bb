"""Questions about the node: processor, devices and whether this process may open them, /dev, enclave memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

from confcom.devices.epc_sections import MIB, find_epc
from confcom.devices.host import DeviceFile, Host
from confcom.devices.sgx_driver import ENCLAVE_PATHS, PROVISION_PATHS, find_cpu_flags, find_driver
from confcom.platforms.sgx_host import device_obstacle
from confcom.services.diagnosis import Finding, Level, Subject

QUOTING_EPC = MIB
"""Bytes of EPC that QE and PCE take together."""

_ENABLE = (
    "Enable SGX and flexible launch control in the BIOS, or choose a virtual machine with SGX (Azure: DCsv2, DCsv3, "
    "DCdsv3); the kernel is Linux 5.11 or later with CONFIG_X86_SGX."
)
_GRANT = {
    "enclave": "In a pod, ask for EPC (resources.limits: sgx.intel.com/epc), so that the device plugin grants it.",
    "provision": "In a pod, ask for sgx.intel.com/provision: 1; or use the quote helper (SGX_AESM_ADDR=1), which takes "
    "no such right.",
}


def node_findings(subject: Subject) -> Iterator[Finding]:
    """In the order in which things depend on each other."""
    yield from _cpu(subject)
    yield _device(subject, "enclave", ENCLAVE_PATHS, needed=subject.opens_enclaves)
    yield _device(subject, "provision", PROVISION_PATHS, needed=subject.quotes_itself)
    yield _dev_exec(subject)
    yield _epc(subject)


def _cpu(subject: Subject) -> Iterator[Finding]:
    flags = find_cpu_flags(subject.host)
    if flags is None:
        yield Finding("cpu.sgx", Level.WARNING, "/proc/cpuinfo cannot be read", "Mount /proc.")
        return
    if not flags.sgx:
        if find_driver(subject.host).enclave is not None:
            found = "no flag sgx in /proc/cpuinfo, but there is a device: the kernel is older than 5.11"
            yield Finding("cpu.sgx", Level.OK, found)
        else:
            yield subject.missing("cpu.sgx", "no flag sgx in /proc/cpuinfo", _ENABLE, needed=subject.opens_enclaves)
        return
    yield Finding("cpu.sgx", Level.OK, "the processor has SGX")
    if flags.launch_control:
        yield Finding("cpu.launch-control", Level.OK, "flexible launch control is on")
    else:
        found = "no flag sgx_lc in /proc/cpuinfo: the BIOS has locked launch control"
        yield subject.missing("cpu.launch-control", found, _ENABLE, needed=subject.opens_enclaves)


def _device(subject: Subject, what: str, paths: tuple[str, ...], *, needed: bool) -> Finding:
    identifier = f"device.{what}"
    host = subject.host
    found = next((file for path in paths if (file := host.device(path)) is not None), None)
    if found is None:
        why = find_driver(host).missing if what == "enclave" else ""
        return subject.missing(
            identifier, why or f"neither {paths[0]} nor {paths[1]} is a device", _GRANT[what], needed=needed
        )
    description = _describe(host, found)
    obstacle = device_obstacle(host.root, (found.path.lstrip("/"),))
    if obstacle:
        return subject.missing(identifier, f"{obstacle}; {description}", _access_advice(host, found), needed=needed)
    return Finding(identifier, Level.OK, f"{description}; this process may open it")


def _describe(host: Host, file: DeviceFile) -> str:
    kind = "a stand-in, " if file.is_stand_in else ""
    owner, group = _name(host, "passwd", file.uid), _name(host, "group", file.gid)
    return f"{file.path}: {kind}mode {file.mode:04o}, {owner}:{group}"


def _access_advice(host: Host, file: DeviceFile) -> str:
    group = _name(host, "group", file.gid)
    ours = ", ".join(str(number) for number in sorted({os.getegid(), *os.getgroups()}))
    if not file.mode & 0o060 or file.gid == 0:
        return (
            "Its group may not open it: install Intel's udev rules (they come with Intel's AESM and DCAP packages). "
            f"This process has uid {os.geteuid()} and groups {ours}."
        )
    return (
        f"This process has uid {os.geteuid()} and groups {ours}. Add it to group {group}: on a node "
        f"`usermod -aG {group} USER`, in a pod `securityContext.supplementalGroups: [{file.gid}]`. If it is in that "
        "group already, the container was not granted the device."
    )


def _name(host: Host, database: str, number: int) -> str:
    """A user's or group's name in the host's own files, with its number."""
    for line in (host.read(f"/etc/{database}") or "").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(number):
            return fields[0]
    return str(number)


def _dev_exec(subject: Subject) -> Finding:
    mounts = host_mounts(subject.host)
    over = [mount for mount in ("/", "/dev", *ENCLAVE_PATHS) if mount in mounts]
    if not over:
        return Finding("dev.exec", Level.WARNING, "/proc/self/mounts cannot be read", "Mount /proc.")
    if "noexec" in mounts[over[-1]]:
        advice = "Enclaves cannot be mapped from there: remount it (`mount -o remount,exec /dev`)."
        return subject.missing("dev.exec", f"{over[-1]} is mounted noexec", advice, needed=subject.opens_enclaves)
    return Finding("dev.exec", Level.OK, f"{over[-1]} is mounted without noexec")


def host_mounts(host: Host) -> dict[str, tuple[str, ...]]:
    """Mount point → options, as this process sees them; the last mount of a point counts."""
    found: dict[str, tuple[str, ...]] = {}
    for line in (host.read("/proc/self/mounts") or host.read("/proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4:
            found[fields[1]] = tuple(fields[3].split(","))
    return found


def _epc(subject: Subject) -> Finding:
    epc = find_epc(subject.host)
    if epc.source == "none":
        advice = "Before Linux 5.17 the kernel does not tell; as root, `modprobe cpuid` makes it readable."
        return Finding("epc.size", Level.WARNING, f"unknown: {epc.missing}", advice)
    nodes = f" on {len(epc.sections)} NUMA nodes" if len(epc.sections) > 1 else ""
    found = f"{epc.size / MIB:g} MiB{nodes} ({epc.source})"
    if epc.size < QUOTING_EPC:
        return subject.missing("epc.size", found, f"Enlarge it in the BIOS. {_ENABLE}", needed=subject.opens_enclaves)
    return Finding("epc.size", Level.OK, found)
