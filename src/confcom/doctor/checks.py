"""Checks of this process and its host: each with what was found, and what to do.

What is missing is a problem only for a process that needs it: an application that uses the quote helper needs neither
provisioning nor Intel's libraries, and one under Gramine not even a device of its own. Here are the checks of the node:
simulated or real, processor, devices and whether this process may open them, EPC.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from confcom.devices.host import DeviceFile, Host
from confcom.devices.sgx_node import (
    CPUID,
    ENCLAVE_PATHS,
    LEGACY_PATH,
    MIB,
    PROVISION_PATHS,
    EpcSections,
    find_cpu_flags,
    find_driver,
    find_epc,
)
from confcom.errors import ConfcomError
from confcom.platforms.interface import device_obstacle
from confcom.platforms.quoting import ModeDecision, QuoteMode, choose_mode


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Role(StrEnum):
    """What the process is, or would be."""

    APPLICATION = "application"
    QUOTE_HELPER = "quote-helper"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, by its stable id; `advice` is empty when all is well."""

    id: str
    level: Level
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For machines."""
        return {"id": self.id, "status": self.level.value, "found": self.found, "advice": self.advice}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a process of this role and environment on this host."""

    host: Host
    environ: Mapping[str, str]
    role: Role
    decision: ModeDecision
    simulated: bool = False
    """Whether QE and PCE are those of a simulated machine, which needs nothing of the node."""

    @classmethod
    def of(cls, host: Host, environ: Mapping[str, str], role: Role, *, simulated: bool = False) -> Subject:
        """With the mode that an application of this environment would take."""
        return cls(host, environ, role, choose_mode("auto", environ, host.root), simulated)

    @property
    def quotes_itself(self) -> bool:
        """Whether it runs Intel's QE and PCE: needs provisioning, Intel's libraries and enclaves."""
        return not self.simulated and not self.asks_helper

    @property
    def opens_enclaves(self) -> bool:
        """Whether it needs the enclave device; Gramine's loader has opened it already."""
        return not self.simulated and (self.quotes_itself or self.decision.mode is QuoteMode.OUT_OF_PROC)

    @property
    def asks_helper(self) -> bool:
        """Whether it needs a quote helper."""
        return self.role is Role.APPLICATION and self.decision.mode is not QuoteMode.IN_PROC

    def missing(self, identifier: str, found: str, advice: str, *, needed: bool) -> Finding:
        """A problem for a process that needs it, and a remark for others."""
        if needed:
            return Finding(identifier, Level.PROBLEM, found, advice)
        return Finding(identifier, Level.OK, f"{found} (not needed: {self.why_not_needed})")

    @property
    def why_not_needed(self) -> str:
        """One clause."""
        if self.simulated:
            return "the platform is simulated"
        if self.role is Role.QUOTE_HELPER:
            return "this is the quote helper"
        return f"this application's mode is {self.decision.mode.value}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings: the worst first, those of one level in the order in which things depend on each other."""

    subject: Subject
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, subject: Subject, findings: Iterable[Finding]) -> Diagnosis:
        """From findings in the order in which things depend on each other."""
        return cls(subject, tuple(sorted(findings, key=lambda found: -list(Level).index(found.level))))

    @property
    def headline(self) -> str:
        """One line: how many problems and warnings, of what process, and the first of them."""
        counts = [
            f"{count} {level.value}{'' if count == 1 else 's'}"
            for level in (Level.PROBLEM, Level.WARNING)
            if (count := sum(finding.level is level for finding in self.findings))
        ]
        summary = f"{' and '.join(counts) or 'no problems'} for {self._subject}"
        first = next((finding for finding in self.findings if finding.level is not Level.OK), None)
        return summary if first is None else f"{summary}; first {first.id}: {first.found}"

    @property
    def _subject(self) -> str:
        where = "on a SIMULATED platform" if self.subject.simulated else "here"
        if self.subject.role is Role.QUOTE_HELPER:
            return f"a quote helper {where}"
        return f"an application {where}, its mode {self.subject.decision.mode.value}"

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What must change before it works."""
        return tuple(finding for finding in self.findings if finding.level is Level.PROBLEM)

    def as_dict(self) -> dict[str, Any]:
        """For machines: `ok`, `headline`, `role`, `mode`, `simulated`, `checks`."""
        return {
            "ok": not self.problems,
            "headline": self.headline,
            "simulated": self.subject.simulated,
            "role": self.subject.role.value,
            "mode": self.subject.decision.mode.value,
            "checks": [finding.as_dict() for finding in self.findings],
        }


def worst(levels: Iterable[Level]) -> Level:
    """The worst of some levels; ok if there is none."""
    return max(levels, key=list(Level).index, default=Level.OK)


# Checks of the node.

QUOTING_EPC = MIB
"""Bytes of EPC that QE and PCE take together."""

_ENABLE = (
    "Enable SGX and flexible launch control in the BIOS, or choose a virtual machine with SGX (Azure: DCsv2, DCsv3, "
    "DCdsv3); the kernel is Linux 5.11 or later with CONFIG_X86_SGX."
)
_FIRST_DRIVER = (5, 11)
"""Linux with the driver, and with the flags in /proc/cpuinfo."""
_RELEASE = "/proc/sys/kernel/osrelease"
_MACHINE_MARK = '"confcom simulated machine"'
_MAX_MACHINE = 64 * 1024
_GRANT = {
    "enclave": "On the node, use a kernel with CONFIG_X86_SGX; in a pod, ask for EPC (resources.limits: "
    "sgx.intel.com/epc), so that the device plugin grants it.",
    "provision": "In a pod, ask for sgx.intel.com/provision: 1; or use the quote helper (SGX_AESM_ADDR=1), which takes "
    "no such right.",
}
_GRANT_BY_PLUGIN = "in a pod, ask for it in resources.limits; elsewhere, name it with --device."


def simulated_platform(host: Host, environ: Mapping[str, str], role: Role, named: Path | None = None) -> Finding | None:
    """The simulated machine that this process would use: named, in the helper's settings, or the node's; else None.

    A simulated node holds its machine in the place of the enclave device.
    """
    setting = environ.get("CONFCOM_QUOTE_HELPER_SIMULATED_MACHINE") if role is Role.QUOTE_HELPER else None
    where = Host() if named is not None else host
    given = named or setting
    places = [str(Path(given).absolute())] if given else list(ENCLAVE_PATHS)
    path = next((place for place in places if given or _MACHINE_MARK in (where.read(place) or "")), None)
    if path is None:
        return None
    # Here, because it brings the simulator along.
    from confcom.wiring import describe_machine

    reason = where.why_unreadable(path)
    if reason:
        advice = "Make one with `confcom simulate machine -o FILE`, and let this process read it."
        return Finding("platform.simulated", Level.PROBLEM, f"the machine file {path} cannot be read: {reason}", advice)
    try:
        found = describe_machine(where.read_at(path, _MAX_MACHINE, 0) or b"")
    except ConfcomError as error:
        return Finding("platform.simulated", Level.PROBLEM, f"{path} is no machine file: {error}", error.advice())
    return Finding("platform.simulated", Level.OK, f"SIMULATED machine {path}, {found}")


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
        release = kernel_release(subject.host)
        found = "no flag sgx in /proc/cpuinfo"
        if _is_before(release, _FIRST_DRIVER):
            found += f"; kernel {release} is older than 5.11, the first that shows it"
        if find_driver(subject.host).enclave is not None:
            yield Finding("cpu.sgx", Level.OK, f"{found}; but there is a device")
        else:
            yield subject.missing("cpu.sgx", found, _ENABLE, needed=subject.opens_enclaves)
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
        return subject.missing(identifier, _no_device(host, what, paths), _no_device_advice(host, what), needed=needed)
    description = _describe(host, found)
    obstacle = device_obstacle(host.root, (found.path.lstrip("/"),))
    if obstacle:
        return subject.missing(identifier, f"{obstacle}; {description}", _access_advice(host, found), needed=needed)
    return Finding(identifier, Level.OK, f"{description}; this process may open it")


def _no_device(host: Host, what: str, paths: tuple[str, ...]) -> str:
    there = [f"{path} is {host.kind(path)}, not a device" for path in paths if host.kind(path) != "not there"]
    if there:
        return "; ".join(there)
    return find_driver(host).missing if what == "enclave" else f"neither {paths[0]} nor {paths[1]} is a device"


def _no_device_advice(host: Host, what: str) -> str:
    if any(host.kind(path) == "a folder" for path in (ENCLAVE_PATHS[0], PROVISION_PATHS[0])):
        return "A container engine makes a folder where the source of a mount is missing: remove it, and that mount."
    if host.device(LEGACY_PATH) is not None:
        return "Use the driver of Linux 5.11 or later, or Intel's DCAP driver, on a processor with launch control."
    release = kernel_release(host)
    if _is_before(release, _FIRST_DRIVER):
        return f"Kernel {release} has no SGX driver: use Linux 5.11 or later, or install Intel's DCAP driver."
    return _GRANT[what]


def kernel_release(host: Host) -> str:
    """The release of the running kernel, empty where it cannot be read."""
    return (host.read(_RELEASE) or "").strip()


def _is_before(release: str, version: tuple[int, int]) -> bool:
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", release)
    return found is not None and (int(found[1]), int(found[2])) < version


def _describe(host: Host, file: DeviceFile) -> str:
    kind = "a stand-in, " if file.is_stand_in else ""
    owner, group = _name(host, "passwd", file.uid), _name(host, "group", file.gid)
    return f"{file.path}: {kind}mode {file.mode:04o}, {owner}:{group}"


def _access_advice(host: Host, file: DeviceFile) -> str:
    group, uid = _name(host, "group", file.gid), os.geteuid()
    groups = {os.getegid(), *os.getgroups()}
    who = f"This process has uid {uid} and groups {', '.join(str(number) for number in sorted(groups))}."
    by_group = file.mode & 0o060 == 0o060
    allowed = uid == 0 or file.mode & 0o006 == 0o006 or (uid == file.uid and file.mode & 0o600 == 0o600)
    if allowed or (by_group and file.gid in groups):
        return f"{who} Owner and mode allow it, so the container was not granted the device: {_GRANT_BY_PLUGIN}"
    if not by_group or file.gid == 0:
        return (
            f"{who} Its group may not open it: install Intel's udev rules (they come with Intel's AESM and DCAP "
            "packages)."
        )
    return (
        f"{who} Add it to group {group}: on a node `usermod -aG {group} USER`, in a pod "
        f"`securityContext.supplementalGroups: [{file.gid}]`."
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
    enclave = find_driver(subject.host).enclave
    device = ENCLAVE_PATHS[0] if enclave is None else enclave.file.path
    over = [point for point in mounts if point == "/" or device == point or device.startswith(f"{point}/")]
    if not over:
        return Finding("dev.exec", Level.WARNING, "/proc/self/mounts cannot be read", "Mount /proc.")
    point = max(over, key=len)
    if "noexec" in mounts[point]:
        advice = f"Enclaves cannot be mapped from there: remount it (`mount -o remount,exec {point}`)."
        return subject.missing("dev.exec", f"{point} is mounted noexec", advice, needed=subject.opens_enclaves)
    return Finding("dev.exec", Level.OK, f"{point} is mounted without noexec")


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
        if not subject.opens_enclaves:
            return subject.missing("epc.size", f"unknown: {epc.missing}", "", needed=False)
        release = kernel_release(subject.host)
        since = f"The kernel ({release or 'of an unknown release'}) shows it since Linux 5.17"
        advice = f"{since}; before it, as root, `modprobe cpuid` makes {CPUID} readable."
        return Finding("epc.size", Level.WARNING, f"unknown: {epc.missing}", advice)
    found = _amount(epc)
    if epc.size < QUOTING_EPC:
        return subject.missing("epc.size", found, f"Enlarge it in the BIOS. {_ENABLE}", needed=subject.opens_enclaves)
    return Finding("epc.size", Level.OK, found)


def _amount(epc: EpcSections) -> str:
    """How much there is, and where: CPUID lists sections of memory, sysfs NUMA nodes."""
    size = f"{epc.size // MIB} MiB" if epc.size % MIB == 0 else f"{epc.size} bytes"
    count = len(epc.sections)
    if epc.source == "cpuid":
        return f"{size} in {count} section{'' if count == 1 else 's'} (cpuid)"
    if epc.numa_nodes == 1:
        return f"{size} (sysfs)"
    which = f"{count}" if count == epc.numa_nodes else f"{count} of {epc.numa_nodes}"
    return f"{size} on {which} NUMA nodes (sysfs)"
