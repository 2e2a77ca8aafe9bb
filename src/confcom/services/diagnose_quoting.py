"""Questions about Intel's software in this process: libraries, enclave files, quote provider library, its settings."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from confcom.errors import FormatError
from confcom.formats.qcnl import KEYS, MAX_QCNL, QcnlFile, type_name
from confcom.platforms.sgx_host import LIBRARY_FOLDERS
from confcom.services.diagnosis import Finding, Level, Role, Subject, worst

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
    except OSError as error:
        return Finding(
            "qpl.service",
            Level.WARNING,
            f"{host}:{port} cannot be reached: {error.strerror or error}",
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
        told = f"retry_times is not set, so {DEFAULT_RETRIES}"
        if retries is not None:
            told = f"line {lines['retry_times']}: retry_times is {retries}"
        yield (
            Level.WARNING,
            told,
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
    if true is not None and _may_write(subject, true):
        return Finding("qpl.cache", Level.OK, f"{folder} ({origin})")
    return Finding(
        "qpl.cache",
        Level.WARNING,
        f"{folder} ({origin}) cannot be written",
        "The PCK certificate is then fetched again for every process: give it a writable folder (in a pod with a "
        "read-only root an emptyDir) and name that in AZDCAP_CACHE.",
    )


def _may_write(subject: Subject, folder: str) -> bool:
    return os.access(subject.host.root / folder.lstrip("/"), os.W_OK | os.X_OK)
