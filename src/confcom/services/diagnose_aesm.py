"""Questions about the way to the quote helper: the mode, the socket, who may connect, whether something answers."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from confcom.errors import PlatformError
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.gramine import attestation_type
from confcom.platforms.quoting import AESM_VARIABLE
from confcom.services.diagnose_node import host_mounts
from confcom.services.diagnosis import Finding, Level, Role, Subject

DEFAULT_SOCKET = "/var/run/aesmd/aesm.socket"
ABSTRACT = "@sgx_aesm_socket_base"
"""Where AESM services listened before 2017, as /proc/net/unix shows it; Gramine still looks there first."""
ANSWER_TIMEOUT = 3.0
"""Seconds."""

_START = (
    "Start the quote helper on this node. A pod gets the folder /var/run/aesmd by the annotation "
    "confcom.dev/quote-mode: out-of-proc or the limit sgx.confcom.dev/quote-helper: 1; who mounts it "
    "mounts the folder, not the socket."
)


def mode_findings(subject: Subject) -> Iterator[Finding]:
    """How an application of this environment gets quotes."""
    value = subject.environ.get(AESM_VARIABLE)
    if value is None:
        variable = f"{AESM_VARIABLE} is not set"
    else:
        variable = f"{AESM_VARIABLE} is set to {value!r}; only its presence counts"
    yield Finding("mode.variable", Level.OK, variable)
    yield _gramine(subject)
    yield Finding("mode.application", Level.OK, str(subject.decision))


def _gramine(subject: Subject) -> Finding:
    kind = attestation_type(subject.host.root)
    if kind is None:
        return Finding("mode.gramine", Level.OK, "no /dev/attestation: this process does not run under Gramine")
    if kind != "dcap":
        advice = 'Set sgx.remote_attestation = "dcap" in the manifest, and sign it again.'
        return Finding("mode.gramine", Level.WARNING, f"Gramine's attestation type is {kind!r}", advice)
    return Finding("mode.gramine", Level.OK, "Gramine attests with dcap")


def aesm_findings(subject: Subject, path: str = DEFAULT_SOCKET) -> Iterator[Finding]:
    """Whether an AESM service can be reached; for the quote helper, whether it can stand there."""
    if subject.role is Role.QUOTE_HELPER:
        yield _folder(subject, str(Path(path).parent))
    true = subject.host.resolve(path)
    if true is None:
        yield subject.missing("aesm.socket", f"there is no {path}", _START, needed=subject.asks_helper)
    else:
        socket = subject.host.root / true.lstrip("/")
        yield _socket(subject, path, socket)
        if socket.is_socket():
            yield _answer(subject, socket)
    yield from _traps(subject, path)


def _folder(subject: Subject, folder: str) -> Finding:
    true = subject.host.resolve(folder)
    if true is None:
        found = f"there is no folder {folder}; the helper makes it, if it may"
        return Finding("aesm.folder", Level.WARNING, found, "In a pod, mount the host's folder of that name there.")
    place = subject.host.root / true.lstrip("/")
    status, uid = place.stat(), os.geteuid()
    found = f"{folder}: user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}; this process is user {uid}"
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        advice = f"Anybody could put a socket of theirs there: chmod 0755 {folder}"
        return Finding("aesm.folder", Level.PROBLEM, found, advice)
    if not os.access(place, os.W_OK | os.X_OK):
        advice = (
            "The kubelet makes a hostPath folder as root: let an init container that runs as root do "
            f"`chown {uid} {folder}`."
        )
        return Finding("aesm.folder", Level.PROBLEM, found, advice)
    return Finding("aesm.folder", Level.OK, found)


def _socket(subject: Subject, path: str, socket: Path) -> Finding:
    try:
        status, folder = socket.lstat(), socket.parent.stat()
    except OSError as error:
        found = f"{path} cannot be looked at: {error.strerror}"
        return subject.missing("aesm.socket", found, "Give this process search permission on its folders.",
                               needed=subject.asks_helper)  # fmt: skip
    if not stat.S_ISSOCK(status.st_mode):
        advice = _START
        if stat.S_ISDIR(status.st_mode):
            advice = f"A container engine makes a folder where the source of a mount is missing: rmdir {path}. {_START}"
        found = f"{path} is {subject.host.kind(path)}, not a socket"
        return subject.missing("aesm.socket", found, advice, needed=subject.asks_helper)
    modes = f"mode {stat.S_IMODE(status.st_mode):04o}, folder {stat.S_IMODE(folder.st_mode):04o}"
    if not status.st_mode & stat.S_IWOTH or not folder.st_mode & stat.S_IXOTH:
        advice = "Other users cannot connect: the socket needs mode 0666, its folder 0755."
        return Finding("aesm.socket", Level.WARNING, f"{path}: {modes}", advice)
    return Finding("aesm.socket", Level.OK, f"{path}: {modes}")


def _answer(subject: Subject, socket: Path) -> Finding:
    try:
        count = len(AesmPlatform(socket, ANSWER_TIMEOUT, simulated=False).key_ids())
    except PlatformError as error:
        return subject.missing("aesm.answer", error.message, error.advice(), needed=subject.asks_helper)
    name = _who_listens(subject, socket)
    found = f"a service answers{f' ({name})' if name else ''}; attestation keys: {count}"
    if subject.role is Role.QUOTE_HELPER and name.startswith("aesm_service"):
        advice = "Intel's service has the socket: take it over with --replace, or `systemctl disable --now aesmd`."
        return Finding("aesm.answer", Level.WARNING, found, advice)
    return Finding("aesm.answer", Level.OK, found)


def _who_listens(subject: Subject, path: Path) -> str:
    """Name and number of the process, empty where it is in another container."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, suppress(OSError):
        client.settimeout(ANSWER_TIMEOUT)
        client.connect(str(path))
        pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        name = (subject.host.read(f"/proc/{pid}/comm") or "").strip()
        return f"{name}, process {pid}" if name else ""
    return ""


def _traps(subject: Subject, path: str) -> Iterator[Finding]:
    mounted = {os.path.normpath(point) for point in host_mounts(subject.host)}
    if {path, path.removeprefix("/var")} & mounted:
        yield Finding(
            "aesm.mount",
            Level.WARNING,
            f"{path} itself is mounted",
            "When the helper restarts, this stays the dead socket of before: mount its folder instead.",
        )
    listening = (line.split() for line in (subject.host.read("/proc/net/unix") or "").splitlines())
    if any(_is_abstract(fields) for fields in listening) and subject.role is Role.APPLICATION:
        yield Finding(
            "aesm.abstract",
            Level.WARNING,
            f"something listens on the abstract socket {ABSTRACT}",
            "Gramine prefers it to the quote helper, and anybody in this network namespace can bind it: end that "
            "program.",
        )


def _is_abstract(fields: Sequence[str]) -> bool:
    """Whether a line of /proc/net/unix is of the abstract socket, and of one that listens (flag 0x10000)."""
    return len(fields) > 7 and fields[-1].startswith(ABSTRACT) and fields[3][-5:-4] == "1"
