"""Settings of the quote helper; the defaults are those for production."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from confcom.protocols.aesm import MAX_REQUEST

Signer = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{64}$")]
"""An MRSIGNER in hex."""


class QuoteHelperConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the quote helper; the defaults are those for production."""

    socket: Annotated[str, msgspec.Meta(pattern="[^/.]")] = "/var/run/aesmd/aesm.socket"
    """Where clients connect: Intel's and Fortanix's know no other path."""
    platform: Literal["auto", "intel", "simulated"] = "auto"
    """Who makes the quotes."""
    simulated_machine: str | None = None
    """File of the simulated machine; the simulated platform needs one."""
    replace: bool = False
    """Take the path over from a service that still answers there, once this one has proved itself."""
    when_replaced: Literal["leave", "wait"] = "leave"
    """What to do when a successor has taken the path: end, or wait for the signal and come back if it dies.

    `wait` is for supervisors that start again whatever ends, as the kubelet does."""
    when_killed: Literal["end", "restart"] = "end"
    """What to do when a signal kills the serving process (SIGKILL, a crash): end, or start it again at once.

    `restart` is for containers, where the kubelet would wait longer each time."""
    backlog: Annotated[int, msgspec.Meta(ge=128, le=65535)] = 256
    """Connections that the kernel holds for us; beyond them clients wait, or fail if they do not wait. In a flood
    beside other peers it is 8, so that good clients take turns with the flood instead of waiting behind it."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time; fewer when the process may not open as many files."""
    max_connections_per_peer: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Connections of one pod (or user) at a time; requests on further ones get BUSY."""
    peer_rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Requests per second that one pod (or user) may make of the platform; further ones get BUSY. 0: no limit,
    because peers take turns anyway."""
    peer_burst: Annotated[int, msgspec.Meta(ge=1)] = 100
    """Requests that a peer may make at once before its rate counts."""
    expected_signers: tuple[Signer, ...] = ()
    """MRSIGNERs of the enclaves that are expected here. Others get quotes too, and are counted in a metric of their
    own. Empty: any."""
    host_root: str = "/"
    """Where the host's `proc` is, to learn the pod of a process."""
    fd_reserve: Annotated[int, msgspec.Meta(ge=16)] = 64
    """File descriptors that connections leave to the platform and its collateral."""
    max_request: Annotated[int, msgspec.Meta(ge=4096, le=131072)] = MAX_REQUEST
    """Longest request in bytes; one that announces more is closed at once."""
    read_timeout: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Seconds from the connection to its whole request, and again for the answer to be taken."""
    answer_timeout: Annotated[float, msgspec.Meta(gt=0, lt=14)] = 13.0
    """Seconds for the platform; then the client gets BUSY, before its own 15 s are over."""
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 512
    """Requests that may wait for the platform. Beyond them, the peer with most waiting requests gets BUSY."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=0)] = 14.0
    """Seconds that requests under way get when the helper stops."""
    http: str = ""
    """Where /healthz, /readyz and /metrics are: HOST:PORT, [ADDRESS]:PORT or unix:PATH. Empty: nowhere."""
    https: str = ""
    """Where /metrics is over TLS too, for the metrics API. Empty: nowhere."""
    https_ca: str = "/etc/confcom/exporters-ca"
    """Folder with tls.crt and tls.key of the CA that issues its certificate."""
    collateral: str | None = None
    """Folder or collateral.json that verifies this platform's quotes, read again for every self-test; or the URL of a
    collateral service, asked once an hour. The simulated platform needs none."""
    collateral_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of that service may be of. By default public ones."""
    trust_root: str | None = None
    """PEM file with the root that those quotes must chain to. By default Intel's, or the simulated world's own."""
    self_test_interval: Annotated[float, msgspec.Meta(ge=1)] = 60.0
    """Seconds between self-tests, while `http` is on or where the QE has to report on itself for them; /readyz asks for
    another when the last is older than 5 s."""
    proof_timeout: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    """Seconds in which a helper that is to take over must have proved itself."""
