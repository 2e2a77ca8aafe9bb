"""A web service in an enclave. It gets its database's password by attestation, and asks another instance only after
that has proved to be the same program. README.md has the commands.

GET /stock/NAME answers with the number in its own database, plus that of its peer if it has one.
"""

from __future__ import annotations

import argparse
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import OpenerDirector

import psycopg

from confcom import (
    AllOf,
    ConfcomError,
    IsvProdId,
    MinIsvSvn,
    MrSigner,
    QuoteVerifier,
    TrustRoot,
    TrustRoots,
    exit_code,
    launch_enclave,
    load_bundle,
    open_platform,
    open_quote_source,
    process_mode,
    safe_defaults,
)
from confcom.atls import ClientContext, Issuer, ServerContext, https_opener
from confcom.attestation_client import AttestationClient
from confcom.secret_client import read_secret

QUERY = "SELECT number FROM stock WHERE name = %s"
MAX_ANSWER = 20


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="0.0.0.0:8443", metavar="HOST:PORT")
    parser.add_argument("--database", required=True, metavar="DSN", help="of PostgreSQL, without a password")
    parser.add_argument("--secrets", required=True, metavar="URL", help="Vault or OpenBao")
    parser.add_argument("--attestation", required=True, metavar="URL", help="the attestation service")
    parser.add_argument("--ca", type=Path, metavar="PEM", help="of the certificates of both")
    parser.add_argument("--peer", metavar="URL", help="another instance, https")
    parser.add_argument("--signer", metavar="HEX", help="MRSIGNER of that instance")
    parser.add_argument("--collateral", type=Path, metavar="FOLDER", help="to verify it with")
    parser.add_argument(
        "--machine", type=Path, metavar="FILE", help="simulated machine; on a simulated node its device"
    )
    parser.add_argument("--enclave", type=Path, metavar="FILE", help="what the simulated enclave declares")
    parser.add_argument("--socket", type=Path, default=Path("/var/run/aesmd/aesm.socket"), metavar="PATH")
    return parser.parse_args()


class Service(ThreadingHTTPServer):
    """Serves HTTPS; clients can verify which enclave has the key."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        quotes = open_quote_source(
            process_mode().decide("auto", os.environ),
            enclave=lambda: launch_enclave(options.machine, options.enclave),
            in_proc=lambda: open_platform("auto", machine=options.machine),
            socket=options.socket,
            simulated=options.machine is not None,
        )
        secret = read_secret(
            "secret/data/stock",
            server=options.secrets,
            role="stock",
            attestation=AttestationClient(options.attestation, ca=options.ca),
            quote=lambda data: quotes.quote(data).quote,
            ca=options.ca,
        )
        self.database, self.password = options.database, secret["data"]["password"]
        with self.open_database():
            print("attested: the database's password was released", flush=True)
        self.peer, self.opener = options.peer, opener(options) if options.peer else None
        host, _, port = options.listen.rpartition(":")
        super().__init__((host, int(port)), Handler)
        # The handshake is made by the thread of the connection, which a slow client may hold up.
        context = ServerContext(Issuer(quotes))
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def open_database(self) -> psycopg.Connection[tuple[int]]:
        """Connect as the user of the DSN."""
        return psycopg.connect(self.database, password=self.password, connect_timeout=10)


def opener(options: argparse.Namespace) -> OpenerDirector:
    """Connects to the same program of the same signer only."""
    roots = TrustRoots.intel()
    if options.machine is not None:
        roots = TrustRoots((TrustRoot.from_pem((options.collateral / "root_ca.pem").read_bytes()),))
    expected = MrSigner((bytes.fromhex(options.signer),)), IsvProdId(1), MinIsvSvn(1)
    policy = AllOf(*expected, safe_defaults(accept_simulated=options.machine is not None))
    return https_opener(ClientContext(policy, load_bundle(options.collateral), verifier=QuoteVerifier(roots)))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Service
    timeout = 10

    def do_GET(self) -> None:
        """Answer with the number; 502 where the peer does not answer or is not accepted."""
        with self.server.open_database() as database:
            found = database.execute(QUERY, [self.path.removeprefix("/stock/")]).fetchone()
        number, status = found[0] if found else 0, 200
        if self.server.opener is not None:
            try:
                with self.server.opener.open(self.server.peer + self.path, timeout=10) as answer:
                    number += int(answer.read(MAX_ANSWER))
            except (URLError, ValueError) as error:
                self.log_error("the peer: %s", error)
                status = 502
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{number}\n".encode() if status == 200 else b"the peer did not answer as expected\n")


def main() -> int:
    """Serve until the process is ended; the exit code is that of the `confcom` commands."""
    try:
        Service(arguments()).serve_forever()
    except ConfcomError as error:
        print(f"{error}\n  what to do: {error.advice()}", file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
