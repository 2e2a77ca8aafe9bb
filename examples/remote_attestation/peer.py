"""One of two enclaves that attest each other over a socket and then exchange an encrypted message.

Start one with --listen and one with --connect; README.md beside this file has the commands. What is said on the wire
is in handshake.py, what counts as proof in evidence.py, how bytes travel in connection.py.
"""

from __future__ import annotations

import argparse
import io
import os
import secrets
import sys
from pathlib import Path

from connection import Connection, Frame, accept, connect, listen
from evidence import AcceptedPeer, Attestation, ExpectedPeer, LocalAttestation, RemoteAttestation
from handshake import NO_TARGET, NONCE_SIZE, Handshake, Hello, Kind, Role, SecureChannel, split_evidence

from confcom import (
    ConfcomError,
    ConfigError,
    FormatError,
    LocalEnclave,
    PolicyError,
    TcbStatus,
    TrustRoot,
    TrustRoots,
    VerificationError,
    exit_code,
    launch_enclave,
    load_bundle,
    open_platform,
    open_quote_source,
    process_mode,
)
from confcom.errors import ReportRejected

HERE = Path(__file__).resolve().parent
JUDGEMENTS = (FormatError, VerificationError, PolicyError, ReportRejected)
"""Errors that say something about the peer's evidence; all others say that something did not work."""

AESM_SOCKET = Path("/var/run/aesmd/aesm.socket")
MAX_ROOT = 64 * 1024
"""Bytes of a root certificate's file."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--listen", metavar="ADDRESS", help="wait for the peer at unix:PATH or HOST:PORT")
    where.add_argument("--connect", metavar="ADDRESS", help="go to the peer at unix:PATH or HOST:PORT")
    parser.add_argument("--name", default="peer", help="what to call this side in its output")
    us = parser.add_argument_group("this side")
    us.add_argument("--machine", type=Path, metavar="FILE", help="simulated machine (`confcom simulate machine`)")
    us.add_argument("--enclave", type=Path, metavar="FILE", default=HERE / "enclave_a.toml", help="declared enclave")
    us.add_argument("--socket", type=Path, metavar="PATH", default=AESM_SOCKET, help="the quote helper's socket")
    them = parser.add_argument_group("the peer to accept")
    them.add_argument("--signer", required=True, metavar="HEX", help="MRSIGNER, 64 hex digits")
    them.add_argument("--product", required=True, type=int, metavar="N", help="ISVPRODID")
    them.add_argument("--min-svn", required=True, type=int, metavar="N", help="lowest ISVSVN")
    them.add_argument("--collateral", metavar="FOLDER", type=Path, help="Intel's (or the simulation's) endorsements")
    them.add_argument("--trust-root", metavar="PEM", type=Path, help="trust this root instead of Intel's")
    them.add_argument("--accept-tcb", metavar="STATUS,…", default="UpToDate", help="default: UpToDate")
    parser.add_argument("--local", action="store_true", help="both enclaves are on one machine: reports, no quotes")
    parser.add_argument("--message", default="hello", help="what to tell the peer, encrypted")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for each wait; default 10")
    return parser.parse_args()


class Peer:
    """Our side of the conversation."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._expected = expected_peer(options)
        self._enclave: LocalEnclave | None = None
        if options.machine is not None:
            self._enclave = launch_enclave(options.machine, options.enclave)
            self.say(f"enclave {options.enclave.name} on the SIMULATED machine {options.machine.name}")
        self._kind = Kind.LOCAL if options.local else Kind.REMOTE
        self._remote = None if options.local else self._open_remote()

    def say(self, line: str) -> None:
        """Print a line; what comes from the peer is escaped, as it may try to steer the terminal."""
        shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        print(f"{self._options.name}: {shown}", flush=True)

    def run(self) -> None:
        """Meet the peer and talk."""
        address, timeout = self._options.listen or self._options.connect, self._options.timeout
        if self._options.connect:
            with connect(address, timeout) as stream:
                self._converse(Connection(stream, timeout), Role.INITIATOR)
            return
        with listen(address, timeout) as listener:
            self.say(f"waiting at {address}")
            with accept(listener) as stream:
                self._converse(Connection(stream, timeout), Role.RESPONDER)

    def _converse(self, connection: Connection, role: Role) -> None:
        try:
            channel = self._attest(connection, role)
            self._exchange_messages(connection, role, channel)
        except ConfcomError as error:
            connection.refuse(error.code)
            raise

    def _attest(self, connection: Connection, role: Role) -> SecureChannel:
        target = self._enclave.target_info if self._enclave and self._kind is Kind.LOCAL else NO_TARGET
        handshake = Handshake(Hello(role, self._kind, secrets.token_bytes(NONCE_SIZE), target))
        if role is Role.INITIATOR:
            connection.send(Frame.HELLO, bytes(handshake.mine))
            theirs = handshake.hear_hello(connection.receive(Frame.HELLO))
        else:
            theirs = handshake.hear_hello(connection.receive(Frame.HELLO))
            connection.send(Frame.HELLO, bytes(handshake.mine))
        attestation = self._remote or self._open_local(theirs)
        if role is Role.INITIATOR:
            self._send_evidence(connection, handshake, attestation)
            peer_key = self._judge_peer(connection, handshake, attestation)
        else:
            # The one who was called does not say who it is before it knows who calls.
            peer_key = self._judge_peer(connection, handshake, attestation)
            self._send_evidence(connection, handshake, attestation)
        return handshake.keys(peer_key)

    def _send_evidence(self, connection: Connection, handshake: Handshake, attestation: Attestation) -> None:
        evidence = attestation.make(handshake.report_data())
        connection.send(Frame.EVIDENCE, handshake.evidence_payload(evidence))
        what = "a report for the peer" if self._kind is Kind.LOCAL else "a quote"
        self.say(f"sent {what} over its nonce and our public key, {len(evidence)} bytes")

    def _judge_peer(self, connection: Connection, handshake: Handshake, attestation: Attestation) -> bytes:
        payload = connection.receive(Frame.EVIDENCE)
        peer_key, evidence = split_evidence(payload)
        accepted = attestation.judge(evidence, handshake.peer_report_data(peer_key))
        handshake.hear_evidence(payload)
        self.say(f"accepted the peer: {describe(accepted)}")
        return peer_key

    def _exchange_messages(self, connection: Connection, role: Role, channel: SecureChannel) -> None:
        ours = channel.seal(self._options.message.encode())
        if role is Role.INITIATOR:
            connection.send(Frame.MESSAGE, ours)
        message = channel.open(connection.receive(Frame.MESSAGE))
        if role is Role.RESPONDER:
            connection.send(Frame.MESSAGE, ours)
        self.say(f"received, encrypted: {message.decode(errors='replace')!r}")

    def _open_local(self, theirs: Hello) -> Attestation:
        if self._enclave is None:
            raise ConfigError("local attestation needs an enclave here", advice="Name a simulated one with --machine.")
        return LocalAttestation(self._enclave, self._expected, theirs.target_info)

    def _open_remote(self) -> Attestation:
        options = self._options
        decision = process_mode().decide("auto", os.environ)
        self.say(str(decision))
        source = open_quote_source(
            decision,
            enclave=self._own_enclave,
            in_proc=lambda: open_platform("auto", machine=options.machine),
            socket=options.socket,
            simulated=options.machine is not None,
        )
        if options.collateral is None:
            raise ConfigError("a quote cannot be verified without collateral", advice="Name it with --collateral.")
        return RemoteAttestation(
            source,
            self._expected,
            roots=trust_roots(options.trust_root),
            collateral=load_bundle(options.collateral),
            accept_tcb=tcb_statuses(options.accept_tcb),
        )

    def _own_enclave(self) -> LocalEnclave:
        if self._enclave is None:
            raise ConfigError(
                "this process is in no enclave",
                advice="On SGX hardware, run it under Gramine; elsewhere, name a simulated machine with --machine.",
            )
        return self._enclave


def describe(peer: AcceptedPeer) -> str:
    """One line about a peer: who it is, and what proves it."""
    body = peer.body
    debug = "debug ON" if body.attributes.debug else "debug off"
    enclave, signer = f"{body.mr_enclave.hex()[:16]}...", f"{body.mr_signer.hex()[:16]}..."
    return (
        f"enclave {enclave} of signer {signer}, product {body.isv_prod_id}, "
        f"security version {body.isv_svn}, {debug}; {peer.proof}"
    )


def expected_peer(options: argparse.Namespace) -> ExpectedPeer:
    """What the command line says about the peer."""
    try:
        signer = bytes.fromhex(options.signer)
    except ValueError:
        signer = b""
    if len(signer) != 32:
        raise ConfigError("--signer is no MRSIGNER", advice="Give its 64 hex digits.")
    return ExpectedPeer(signer, options.product, options.min_svn)


def trust_roots(path: Path | None) -> TrustRoots:
    """Intel's root, or the one of that file in its place."""
    if path is None:
        return TrustRoots.intel()
    try:
        with path.open("rb") as file:
            return TrustRoots((TrustRoot.from_pem(file.read(MAX_ROOT)),))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def tcb_statuses(names: str) -> frozenset[TcbStatus]:
    """The TCB statuses of a list with commas."""
    try:
        return frozenset(TcbStatus(name.strip()) for name in names.split(","))
    except ValueError as error:
        raise ConfigError(f"--accept-tcb: {error}", advice=f"Known are {', '.join(TcbStatus)}.") from error


def main() -> int:
    """Run one side; the exit code is that of the `confcom` commands."""
    options = arguments()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a peer may write in letters that our terminal lacks
    try:
        Peer(options).run()
    except ConfcomError as error:
        word = "REFUSED" if isinstance(error, JUDGEMENTS) else "failed"
        print(f"{options.name}: {word} ({error.code}): {error}", file=sys.stderr)
        print(f"  what to do: {error.advice()}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print(f"{options.name}: interrupted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
