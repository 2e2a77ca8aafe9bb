"""Questions about Intel's software in this process: libraries, enclave files, quote provider library, its settings."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from confcom.platforms.sgx_host import LIBRARY_FOLDERS
from confcom.services.diagnosis import Finding, Level, Subject, worst

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

_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)


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
    text = subject.host.read(_settings_path(subject)) if subject.quotes_itself else None
    with suppress(msgspec.MsgspecError, ValueError):
        url = urlsplit(str(_parse_settings(text or "").get("pccs_url", "")))
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


def _parse_settings(text: str) -> dict[str, Any]:
    return msgspec.json.decode(_COMMENT.sub(lambda match: match[1] or "", text), type=dict[str, Any])


def _settings(subject: Subject) -> Finding:
    path = _settings_path(subject)
    text = subject.host.read(path)
    if text is None:
        return Finding(
            "qpl.settings",
            Level.WARNING,
            f"{path} cannot be read",
            f"Intel's default provider needs it: set pccs_url there, or name another file with {CONFIG_VARIABLE}. "
            "Azure's az-dcap-client does without.",
        )
    try:
        settings = _parse_settings(text)
    except msgspec.MsgspecError as error:
        old = "PCCS_URL=" in text
        reason = "has the form of DCAP before 1.10" if old else f"is not JSON: {error}"
        advice = "Write it as JSON, as the present Intel packages do." if not old else "Update libsgx-dcap-default-qpl."
        return Finding("qpl.settings", Level.WARNING if old else Level.PROBLEM, f"{path} {reason}", advice)
    remarks = list(_remarks(settings))
    url = settings.get("pccs_url", "no pccs_url")
    advice = " ".join(text for _, text in remarks)
    return Finding("qpl.settings", worst(level for level, _ in remarks), f"{path}: {url}", advice)


def _remarks(settings: dict[str, Any]) -> Iterator[tuple[Level, str]]:
    if not settings.get("pccs_url"):
        yield Level.PROBLEM, "Set pccs_url to the collateral service."
    if settings.get("use_secure_cert") is False:
        yield Level.WARNING, "use_secure_cert is false, so its TLS certificate is not checked: true in production."
    retries = settings.get("retry_times", DEFAULT_RETRIES)
    if isinstance(retries, int) and retries > MOST_RETRIES:
        yield (
            Level.WARNING,
            f"retry_times is {retries}, which can block quotes for a minute while clients wait 15 s: set it to 0 or 1.",
        )


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
