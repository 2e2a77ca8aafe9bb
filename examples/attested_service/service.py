"""A web service in an enclave. It gets its database's password by attestation, and asks another instance only after
that has proved to be the same program. README.md has the commands.

GET /stock/NAME answers with the number in its own database, plus that of its peer if it has one.
"""

from __future__ import annotations

import argparse
import sys
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import OpenerDirector

import psycopg

from confcom import (
    ConfcomError,
    ExitCode,
    QuoteVerifier,
    TrustRoots,
    exit_code,
    load_bundle,
    load_policy,
    load_trust_roots,
    own_quote_source,
)
from confcom.atls import ClientContext, Issuer, ServerContext, https_opener
from confcom.attestation_client import AttestationClient
from confcom.secret_client import read_secret

QUERY = "SELECT number FROM stock WHERE name = %s"
MAX_ANSWER = 20


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=address, default="0.0.0.0:8443", metavar="HOST:PORT")
    parser.add_argument("--database", required=True, metavar="DSN", help="of PostgreSQL, without a password")
    parser.add_argument("--secrets", required=True, metavar="URL", help="Vault or OpenBao")
    parser.add_argument("--attestation", required=True, metavar="URL", help="the attestation service")
    parser.add_argument("--ca", type=Path, metavar="PEM", help="of the certificates of both")
    parser.add_argument("--peer", metavar="URL", help="another instance, https")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="what to accept as that instance")
    parser.add_argument("--collateral", type=Path, metavar="FOLDER", help="to verify it with")
    parser.add_argument("--trust-root", type=Path, metavar="PEM", help="trust this root in place of Intel's")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="simulated machine; on a node the device")
    parser.add_argument("--enclave", type=Path, metavar="FILE", help="what the simulated enclave declares")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="of the quote helper, if not the usual one")
    options = parser.parse_args()
    if options.peer and not (options.policy and options.collateral):
        parser.error("--peer needs --policy and --collateral: an instance that is not verified is not asked")
    return options


def address(text: str) -> tuple[str, int]:
    """Host and port."""
    host, port = text.rsplit(":", 1)
    return host, int(port)


class Service(ThreadingHTTPServer):
    """Serves HTTPS; clients can verify which enclave has the key."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        quotes = own_quote_source(machine=options.machine, enclave=options.enclave, socket=options.socket)
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
        super().__init__(options.listen, Handler)
        # The handshake is made by the thread of the connection, which a slow client may hold up.
        context = ServerContext(Issuer(quotes))
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def open_database(self) -> psycopg.Connection[tuple[int]]:
        """Connect as the user of the DSN."""
        return psycopg.connect(self.database, password=self.password, connect_timeout=10)


def opener(options: argparse.Namespace) -> OpenerDirector:
    """Connects to what the policy accepts, and to nothing else."""
    roots = load_trust_roots(options.trust_root) if options.trust_root else TrustRoots.intel()
    # Naming another root than Intel's is what accepts a simulated platform.
    file, simulated = load_policy(options.policy), options.trust_root is not None
    collateral, verifier = load_bundle(options.collateral), QuoteVerifier(roots)
    policy = file.policy(accept_simulated=simulated)
    return https_opener(ClientContext(policy, collateral, verifier=verifier, grace=file.grace))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Service
    timeout = 10

    def do_GET(self) -> None:
        """Answer with the number; 502 where the peer does not answer or is not accepted, 503 without the database."""
        status = 200
        try:
            with self.server.open_database() as database:
                found = database.execute(QUERY, [self.path.removeprefix("/stock/")]).fetchone()
            number = found[0] if found else 0
            if self.server.opener is not None:
                with self.server.opener.open(self.server.peer + self.path, timeout=10) as theirs:
                    number += int(theirs.read(MAX_ANSWER))
            answer = str(number)
        except psycopg.Error as error:
            self.log_error("the database: %s", error)
            status, answer = 503, "the database does not answer"
        except (OSError, HTTPException, ValueError) as error:
            self.log_error("the peer: %s", error)
            status, answer = 502, "the peer did not answer as expected"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{answer}\n".encode())


def main() -> int:
    """Serve until the process is ended; the exit code is that of the `confcom` commands."""
    try:
        Service(arguments()).serve_forever()
    except ConfcomError as error:
        print(f"{error}\n  what to do: {error.advice()}", file=sys.stderr)
        return exit_code(error)
    except (OSError, OverflowError, psycopg.Error) as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return ExitCode.UNEXPECTED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
