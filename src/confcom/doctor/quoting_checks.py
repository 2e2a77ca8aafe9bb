"""Checks of what quotes need: Intel's libraries and their settings, collateral, and the way to the quote helper."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from confcom.appraisal.collateral import verify_collateral
from confcom.collateral.bundle import load_bundle
from confcom.doctor.checks import Finding, Level, Role, Subject, host_mounts, worst
from confcom.errors import ConfcomError, FormatError, PlatformError
from confcom.formats.qcnl import KEYS, MAX_QCNL, QcnlFile, type_name
from confcom.pki.chain import TrustRoots
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.interface import LIBRARY_FOLDERS
from confcom.platforms.quoting import attestation_type
from confcom.protocols.aesm import VARIABLE

LIBRARIES = {
    "library.dcap-ql": (("libsgx_dcap_ql.so.1",), "libsgx-dcap-ql"),
    "library.qe3-logic": (("libsgx_qe3_logic.so",), "libsgx-qe3-logic"),
    "library.pce-logic": (("libsgx_pce_logic.so.1",), "libsgx-pce-logic"),
    "library.urts": (("libsgx_urts.so.2", "libsgx_urts.so"), "libsgx-urts"),
}
"""Check → (names of the library, Intel's package)."""
ENCLAVES = {
    "enclave.qe3": ("libsgx_qe3.signed.so", "library.qe3-logic", "libsgx-ae-qe3"),
    "enclave.id": ("libsgx_id_enclave.signed.so", "library.qe3-logic", "libsgx-ae-id-enclave"),
    "enclave.pce": ("libsgx_pce.signed.so", "library.pce-logic", "libsgx-ae-pce"),
}
"""Check → (file, also with `.1`; the library that loads it from its own folder; Intel's package)."""
PROVIDERS = ("libdcap_quoteprov.so.1", "libdcap_quoteprov.so")

CONFIG_VARIABLE = "QCNL_CONF_PATH"
DEFAULT_CONFIG = "/etc/sgx_default_qcnl.conf"
CACHE_VARIABLES = ("AZDCAP_CACHE", "XDG_CACHE_HOME", "HOME", "TMPDIR")
"""Where Intel's provider caches: below the first of these that is set, else below /tmp."""
DEFAULT_RETRIES = 6
MOST_RETRIES = 1
"""Each takes 10 s by default; clients wait 15."""
CONNECT_TIMEOUT = 3.0
"""Seconds."""

_LEGACY = re.compile(r"^[ \t]*PCCS_URL[ \t]*=", re.MULTILINE)
_URLS = ("pccs_url", "collateral_service", "local_pck_url")
_EXAMPLE = "https://HOST:PORT/sgx/certification/v4/"
_SHOWN = 100
"""Characters of a value that are shown."""


def quoting_findings(subject: Subject) -> Iterator[Finding]:
    """What QE and PCE in this process would need."""
    found: dict[str, str] = {}
    for identifier, (names, package) in LIBRARIES.items():
        path = _find(subject, names)
        if path is None:
            advice = f"Install Intel's package {package}, or name its folder in LD_LIBRARY_PATH."
            yield subject.missing(identifier, f"no {names[0]}", advice, needed=subject.quotes_itself)
        else:
            found[identifier] = path
            yield Finding(identifier, Level.OK, path)
    for identifier, (file, loader, package) in ENCLAVES.items():
        if loader in found:
            yield _enclave(subject, identifier, file, found[loader], package)
    yield from _provider(subject)


def _find(subject: Subject, names: tuple[str, ...]) -> str | None:
    named = [folder for folder in subject.environ.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
    for folder in (*named, *(f"/{folder}" for folder in LIBRARY_FOLDERS)):
        for name in names:
            path = f"{folder.rstrip('/')}/{name}"
            if _exists(subject, path):
                return path
    return None


def _exists(subject: Subject, path: str) -> bool:
    return subject.host.resolve(path) is not None


def _enclave(subject: Subject, identifier: str, file: str, library: str, package: str) -> Finding:
    true = subject.host.resolve(library) or library
    folders = dict.fromkeys(str(PurePosixPath(path).parent) for path in (library, true))
    for folder in folders:
        for name in (f"{file}.1", file):
            if _exists(subject, f"{folder}/{name}"):
                return Finding(identifier, Level.OK, f"{folder}/{name}")
    return subject.missing(
        identifier,
        f"no {file}.1 beside {library}",
        f"Install Intel's package {package}; the file must be in the folder of the library that loads it.",
        needed=subject.quotes_itself,
    )


def _provider(subject: Subject) -> Iterator[Finding]:
    path = _find(subject, PROVIDERS)
    if path is None:
        found = f"no {PROVIDERS[0]}"
        if subject.quotes_itself:
            yield Finding(
                "qpl.library",
                Level.WARNING,
                found,
                "Quotes will carry the encrypted PPID instead of the PCK certificate, and most verifiers refuse that. "
                "Install libsgx-dcap-default-qpl, on Azure az-dcap-client.",
            )
        else:
            yield subject.missing("qpl.library", found, "", needed=False)
        return
    yield Finding("qpl.library", Level.OK, path)
    if subject.quotes_itself:
        yield _settings(subject)
        yield _cache(subject)


def service_findings(subject: Subject) -> Iterator[Finding]:
    """Whether the collateral service that the provider is to ask can be reached; asks the network."""
    if not subject.quotes_itself:
        return
    with suppress(ValueError):
        url = urlsplit(_settings_file(subject).value("pccs_url") or "")
        if url.hostname:
            yield _service(url.hostname, url.port or (80 if url.scheme == "http" else 443))


def _service(host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be a host's name
        return Finding(
            "qpl.service",
            Level.WARNING,
            f"{host}:{port} cannot be reached: {getattr(error, 'strerror', None) or error}",
            "A new attestation key cannot be certified without it: start it (`confcom collateral serve`), correct "
            "pccs_url, or let this process through (DNS, network policy).",
        )
    return Finding("qpl.service", Level.OK, f"{host}:{port} takes connections")


def _settings_path(subject: Subject) -> str:
    return subject.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG


def _settings_file(subject: Subject) -> QcnlFile:
    return QcnlFile.parse(subject.host.read_at(_settings_path(subject), MAX_QCNL + 1, 0) or b"")


def _settings(subject: Subject) -> Finding:
    path = _settings_path(subject)
    reason = subject.host.why_unreadable(path)
    if reason:
        return Finding(
            "qpl.settings",
            Level.WARNING,
            f"{path} cannot be read: {reason}",
            f"Intel's default provider needs it: set pccs_url there, or name another file with {CONFIG_VARIABLE}. "
            "Azure's az-dcap-client does without.",
        )
    try:
        file = _settings_file(subject)
    except FormatError as error:
        if _LEGACY.search(subject.host.read(path) or ""):
            found = f"{path} has the form of DCAP before 1.10"
            return Finding(
                "qpl.settings", Level.WARNING, found, "Update libsgx-dcap-default-qpl, and write it as JSON."
            )
        advice = "Correct the JSON at that place: the library reads nothing of the file as it is."
        return Finding("qpl.settings", Level.PROBLEM, f"{path}: {error.message}", advice)
    remarks = list(_remarks(subject, file))
    said = [text for _, text, _ in remarks]
    if file.value("pccs_url"):
        said.insert(0, f"pccs_url {file.value('pccs_url')}")
    elif not any(setting.key == "pccs_url" for setting in file.settings):
        said.insert(0, "pccs_url is not set")
    found = f"{path}: {'; '.join(said)}"
    advice = " ".join(dict.fromkeys(advice for _, _, advice in remarks))
    return Finding("qpl.settings", worst(level for level, _, _ in remarks), found, advice)


_Remark = tuple[Level, str, str]


def _remarks(subject: Subject, file: QcnlFile) -> Iterator[_Remark]:
    """What the library will not do as it is written, in the order of the file; then what it does and should not."""
    lines: dict[str, int] = {}
    for setting in file.settings:
        line, key = f"line {setting.line}", setting.key
        if key in lines:
            yield Level.WARNING, f"{line}: {key} is on line {lines[key]} too, and that one counts", f"Remove one {key}."
            continue
        lines[key] = setting.line
        if not setting.is_known:
            close = [known for known in KEYS if known.casefold() == key.casefold()] or get_close_matches(key, KEYS, 1)
            advice = f"The library knows no {key!r}" + (f": write {close[0]}." if close else ".")
            yield Level.WARNING, f"{line}: {key!r} is passed over", advice
        elif not setting.has_its_type:
            wanted = type_name(KEYS[key][0]())
            level = Level.PROBLEM if key == "pccs_url" else Level.WARNING
            found = f"{line}: {key} is {type_name(setting.value)} ({_shown(setting.value)}), so it is passed over"
            yield level, found, f"Write {key} as {wanted}."
        elif key in _URLS and (fault := _url_fault(setting.value)):
            yield Level.PROBLEM, f"{line}: {key} {_shown(setting.value)} {fault}", f"Write {key} as {_EXAMPLE}."
    if not file.value("pccs_url") and not file.value("local_pck_url"):
        yield Level.PROBLEM, "so https://localhost:8081 is asked", "Set pccs_url to the collateral service."
    if file.value("use_secure_cert") is False:
        yield (
            Level.WARNING,
            f"line {lines['use_secure_cert']}: use_secure_cert is false",
            ("The service's TLS certificate is not checked: use_secure_cert is true in production."),
        )
    retries = file.value("retry_times")
    if subject.role is not Role.QUOTE_HELPER and (DEFAULT_RETRIES if retries is None else retries) > MOST_RETRIES:
        found = f"retry_times is not set, so {DEFAULT_RETRIES}"
        if retries is not None:
            found = f"line {lines['retry_times']}: retry_times is {retries}"
        yield (
            Level.WARNING,
            found,
            ("An outage of the service blocks quotes for a minute; clients wait 15 s: set retry_times to 0 or 1."),
        )


def _url_fault(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is no URL: {error}"
    if parts.scheme not in ("http", "https") or not host:
        return "has no https://HOST"
    return "" if url.endswith("/") else "does not end with a slash, and the library appends to it"


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _cache(subject: Subject) -> Finding:
    named = next((name for name in CACHE_VARIABLES if subject.environ.get(name)), None)
    folder = "/tmp" if named is None else subject.environ[named]  # noqa: S108 - where Intel's library looks last
    origin = "by default" if named is None else f"by {named}"
    true = subject.host.resolve(folder)
    if true is not None and os.access(subject.host.root / true.lstrip("/"), os.W_OK | os.X_OK):
        return Finding("qpl.cache", Level.OK, f"{folder} ({origin})")
    return Finding(
        "qpl.cache",
        Level.WARNING,
        f"{folder} ({origin}) cannot be written",
        "The PCK certificate is then fetched again for every process: give it a writable folder (in a pod with a "
        "read-only root an emptyDir) and name that in AZDCAP_CACHE.",
    )


_FETCH = "Fetch fresh collateral (docs/howto/get-collateral.md)."


def collateral_finding(path: Path | None, roots: TrustRoots, now: datetime) -> Finding:
    """Whether the collateral of a bundle is genuine and fresh; the store has a command of its own."""
    if path is None:
        return Finding("collateral", Level.OK, "none was named (--collateral); only verifiers need it")
    try:
        verified = verify_collateral(load_bundle(path), roots=roots)
    except ConfcomError as error:
        said = str(error)
        found = said if str(path) in said else f"{path}: {said}"
        return Finding("collateral", Level.PROBLEM, found, error.advice())
    simulated = ", SIMULATED" if verified.simulated else ""
    found = f"{path}: first to expire {verified.earliest_expiration:%Y-%m-%dT%H:%M:%SZ}{simulated}"
    if verified.stale(now):
        return Finding("collateral", Level.PROBLEM, f"{found}, out of date at {now:%Y-%m-%dT%H:%M:%SZ}", _FETCH)
    return Finding("collateral", Level.OK, found)


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
    value = subject.environ.get(VARIABLE)
    if value is None:
        variable = f"{VARIABLE} is not set"
    else:
        variable = f"{VARIABLE} is set to {value!r}; only its presence counts"
    yield Finding("mode.variable", Level.OK, variable)
    yield _gramine(subject)
    fake = _find(subject, ("libsgx_quote_ex_sim.so",))
    if fake is not None:
        yield Finding(
            "mode.simulation-library", Level.WARNING, f"{fake}: a program that is linked with it makes fake quotes",
            "Link with -lsgx_quote_ex, or preload it: LD_PRELOAD=libsgx_quote_ex.so.1. Then the quote helper is asked.",
        )  # fmt: skip
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
    """Whether an AESM service can be reached; for the quote helper, whether it can listen there."""
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
        advice = f"Any user could put another socket there: chmod 0755 {folder}"
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
            "Gramine prefers it to the quote helper, and any process in this network namespace can bind it: end that "
            "program.",
        )


def _is_abstract(fields: Sequence[str]) -> bool:
    """Whether a line of /proc/net/unix is of the abstract socket, and of one that listens (flag 0x10000)."""
    return len(fields) > 7 and fields[-1].startswith(ABSTRACT) and fields[3][-5:-4] == "1"
