"""One of two enclaves that attest each other and then exchange encrypted messages.

README.md has the commands, and what is said in which order. Both sides make a key for this conversation alone, and
each quote is over both keys: a recorded quote does not fit, and only the quoted enclaves can read the messages.
"""

import argparse
import asyncio
import hashlib
import sys
from asyncio import StreamReader, StreamWriter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import confcom

PROTOCOL = b"confcom sample 2"
LIMIT = 64 * 1024  # bytes of a quote, and of an encrypted message


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Attest a peer, be attested by it, and exchange encrypted messages.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--listen", type=address, metavar="ADDRESS", help="be called at unix:PATH or HOST:PORT")
    where.add_argument("--connect", type=address, metavar="ADDRESS", help="call the peer at unix:PATH or HOST:PORT")
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="which peer to accept")
    parser.add_argument("--collateral", type=Path, required=True, metavar="FOLDER", help="to verify its quote with")
    parser.add_argument("--trust-root", type=Path, metavar="PEM", help="trust this root in place of Intel's")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="simulated machine")
    parser.add_argument("--enclave", type=Path, metavar="FILE", help="what its enclave declares")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="of the quote helper, if not the usual one")
    parser.add_argument("--name", default="peer", help="of this side, in its output")
    parser.add_argument("--timeout", type=float, default=20, metavar="SECONDS", help="for all of it; default 20")
    return parser.parse_args()


def address(text: str) -> tuple[str] | tuple[str, int]:
    """A path, or host and port."""
    if text.startswith("unix:"):
        return (text.removeprefix("unix:"),)
    host, port = text.rsplit(":", 1)
    return host, int(port)


class Peer:
    """Makes quotes of this side, and accepts those of the expected peer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.name, self.listen, self.connect = options.name, options.listen, options.connect
        self.quotes = confcom.own_quote_source(machine=options.machine, enclave=options.enclave, socket=options.socket)
        print(f"{self.name}: {confcom.process_mode().decision}", flush=True)
        roots = confcom.load_trust_roots(options.trust_root) if options.trust_root else confcom.TrustRoots.intel()
        self.verifier, self.collateral = confcom.QuoteVerifier(roots), confcom.load_bundle(options.collateral)
        policy = confcom.load_policy(options.policy)
        # Naming another root than Intel's is what accepts a simulated platform.
        self.expected, self.grace = policy.policy(accept_simulated=options.trust_root is not None), policy.grace

    async def converse(self) -> None:
        """Meet the peer, attest each other, exchange messages; the first thing that is wrong ends it."""
        role, other = (b"called", b"caller") if self.listen else (b"caller", b"called")
        reader, writer = await meet(self.listen, self.connect)
        key = X25519PrivateKey.generate()
        mine = PROTOCOL + key.public_key().public_bytes_raw()
        writer.write(mine)
        theirs = await reader.readexactly(len(mine))
        if not theirs.startswith(PROTOCOL):
            raise confcom.ProtocolError("the peer speaks another protocol")
        said = mine + theirs if role == b"caller" else theirs + mine
        for turn in (b"caller", b"called"):  # the called side shows no quote before it has accepted the caller
            report_data = hashlib.sha256(said + turn).digest() + bytes(32)
            if turn == role:
                send(writer, self.quotes.quote(report_data).quote)
                print(f"{self.name}: sent a quote over the public keys of both", flush=True)
            else:
                self.accept(await receive(reader), report_data)
        try:
            shared = key.exchange(X25519PublicKey.from_public_bytes(theirs[len(PROTOCOL) :]))
            # One key for each direction and for one message, so the nonce may be zero.
            ours, its = (ChaCha20Poly1305(HKDF(SHA256(), 32, None, said + one).derive(shared)) for one in (role, other))
            send(writer, ours.encrypt(bytes(12), f"hello from {self.name}".encode(), None))
            message = its.decrypt(bytes(12), await receive(reader), None)
        except (ValueError, InvalidTag) as error:
            raise confcom.VerificationError("the peer's message does not decrypt") from error
        print(f"{self.name}: received, encrypted: {message.decode(errors='replace')!a}", flush=True)

    def accept(self, quote: bytes, report_data: bytes) -> None:
        """Accept the peer by its quote for this conversation; `ConfcomError` says why not."""
        policy = confcom.AllOf(self.expected, confcom.ReportData(report_data))
        now = datetime.now(UTC)  # noqa: TID251 - a program may read the clock; the library is told the time
        result = confcom.judge(quote, self.collateral, verifier=self.verifier, policy=policy, now=now, grace=self.grace)
        print(f"{self.name}: accepted the peer: {result.require()}", flush=True)


async def meet(listen: tuple[Any, ...] | None, connect: tuple[Any, ...]) -> tuple[StreamReader, StreamWriter]:
    """Streams to the peer, which may come later."""
    while not listen:
        try:
            return await (asyncio.open_connection if connect[1:] else asyncio.open_unix_connection)(*connect)
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.05)
    came: asyncio.Queue[tuple[StreamReader, StreamWriter]] = asyncio.Queue()
    serve = asyncio.start_server if listen[1:] else asyncio.start_unix_server
    server = await serve(lambda *streams: came.put_nowait(streams), *listen)
    streams = await came.get()
    server.close()  # to everybody else
    return streams


def send(writer: StreamWriter, payload: bytes) -> None:
    """Send it behind its length, four bytes."""
    writer.write(len(payload).to_bytes(4, "big") + payload)


async def receive(reader: StreamReader) -> bytes:
    """What the peer sent, within the limit."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > LIMIT:
        raise confcom.ProtocolError(f"the peer announced {length} bytes, the limit is {LIMIT}")
    return await reader.readexactly(length)


def main() -> int:
    """Run one side; the exit code is that of the `confcom` commands."""
    options = arguments()
    try:
        asyncio.run(asyncio.wait_for(Peer(options).converse(), options.timeout))
    except confcom.ConfcomError as error:
        print(f"{options.name}: {error.code}: {error}\n  what to do: {error.advice()}", file=sys.stderr)
        return confcom.exit_code(error)
    except (EOFError, OSError, OverflowError) as error:
        where = ":".join(map(str, options.listen or options.connect))
        reason = "the peer ended it" if isinstance(error, EOFError) else str(error) or "it took too long"
        print(f"{options.name}: no conversation at {where}: {reason}", file=sys.stderr)
        return confcom.ExitCode.PLATFORM
    except KeyboardInterrupt:
        return confcom.ExitCode.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
