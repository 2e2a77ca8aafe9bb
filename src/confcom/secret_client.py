"""Reads a secret from Vault or OpenBao as the enclave that its policy names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from confcom.attestation_client import (
    TIMEOUT,
    AttestationClient,
    AttestationRefused,
    AttestationUnavailable,
    ask,
)
from confcom.errors import ConfigError
from confcom.formats.arguments import parse_http_url
from confcom.http_client import verifying_context

__all__ = ["read_secret"]

_ANSWER = msgspec.json.Decoder(dict[str, Any])


def read_secret(
    path: str,
    *,
    server: str,
    role: str,
    attestation: AttestationClient,
    quote: Callable[[bytes], bytes],
    ca: Path | None = None,
    mount: str = "jwt",
) -> dict[str, Any]:
    """The `data` of the secret at `path` (of KV version 2: `secret/data/NAME`, and the values are in its own `data`).

    The enclave itself has to call this: token and secret are in the memory of the caller, and TLS ends there.

    `server` is the https URL of the server, and `ca` has the authorities of its certificate. `role` is one of its JWT
    method, mounted at `auth/<mount>`, and the audience of the token. `quote` gives a quote over 64 bytes. Each
    of the four answers must be whole within 15 seconds.

    Raises:
        AttestationRefused: the attestation service refused the evidence, or the server the login or the secret.
        AttestationUnavailable: one of them cannot be reached.
        ConfigError: the URL is not https, or the file of authorities cannot be used.
    """
    if parse_http_url(server, "a server of secrets").scheme != "https":
        raise ConfigError(f"secrets are read over https, found {server!r}", advice="Name the server's https URL.")
    base = f"{server.rstrip('/')}/v1"
    token = attestation.login_token(role, quote)
    with httpx2.Client(timeout=TIMEOUT, verify=verifying_context(ca), trust_env=False) as client:
        body = msgspec.json.encode({"role": role, "jwt": token})
        login = _ask(client, "POST", f"{base}/auth/{mount}/login", body=body)
        auth = login.get("auth")
        held = auth.get("client_token") if isinstance(auth, dict) else None
        if not isinstance(held, str) or not (held.isascii() and held.isprintable()):
            raise AttestationUnavailable(f"{server}: the answer to the login has no client_token")
        data = _ask(client, "GET", f"{base}/{path.strip('/')}", token=held).get("data")
    if not isinstance(data, dict):
        raise AttestationUnavailable(f"{server}: the answer for {path} has no data")
    return data


def _ask(client: httpx2.Client, method: str, url: str, *, body: bytes = b"", token: str = "") -> dict[str, Any]:
    headers = {"X-Vault-Token": token} if token else {"Content-Type": "application/json"}
    status, content = ask(client, method, url, body, headers)
    try:
        answer = _ANSWER.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        answer = {}
    if status == httpx2.codes.OK:
        return answer
    reasons = answer.get("errors")
    said = "; ".join(map(str, reasons)) if isinstance(reasons, list) and reasons else "no reason"
    raise AttestationRefused(f"{url} answered {status}: {said[:500]}", "", {})
