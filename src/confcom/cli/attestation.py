"""`confcom attestation`: the service that judges evidence and signs tokens."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from confcom.cli.daemons import daemon, needing, run_until_stopped
from confcom.cli.inputs import now, parse_time, trust_roots

if TYPE_CHECKING:
    from confcom.services.attestation.attestation_config import AttestationServiceConfig


@click.group()
def attestation() -> None:
    """Judge evidence and sign tokens, by the API of Azure Attestation."""


@daemon(
    "attestation-service",
    "confcom.services.attestation.attestation_config:AttestationServiceConfig",
    extras="services,cli",
    name="serve",
)
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: 127.0.0.1:8443]")
@click.option("--tls-certificate", metavar="PEM", help="Certificate chain; reloaded when it changes.")
@click.option("--tls-key", metavar="PEM", help="Its key.")
@click.option("--insecure-http", is_flag=True, default=None, help="Serve without TLS.")
@click.option("--url", metavar="URL", help="URL by which clients come: issuer of tokens.  [default: from --listen]")
@click.option("--store", metavar="PATH", help="Policies and audit.  [default: /var/lib/confcom/attestation.sqlite]")
@click.option("--keys", metavar="DIR", help="Signing keys.  [default: /var/lib/confcom/attestation-keys]")
@click.option("--collateral", metavar="PATH-OR-URL", help="As of `confcom verify`.  [default: intel]")
@click.option("--collateral-ca", metavar="PEM", help="CAs that the collateral service's TLS certificate may be of.")
@click.option("--trust-root", "trust_roots", metavar="PEM", multiple=True, help="Trust this root instead of Intel's.")
@click.option("--policy", metavar="FILE", help="Policy file of `confcom verify`, applied first.")
@click.option(
    "--trust-model",
    type=click.Choice(["open", "isolated", "shared"]),
    help="Who may set policies: administrators, those with a known signature, or no one.  [default: open]",
)
@click.option("--administrators", metavar="TOML", help="Who may read and set policies, and how they are known.")
@click.option("--policy-signer", "policy_signers", metavar="PEM", multiple=True, help="First signers of policies.")
def serve(config: AttestationServiceConfig) -> None:
    """Serve attestation: clients of Azure Attestation work unchanged with this URL, clients of RATS get EAR."""
    from confcom.services.attestation import attestation_service as service

    roots = trust_roots(config.trust_roots)
    note = ", SIMULATED" if service.simulated_world(roots) else ""
    run_until_stopped(
        partial(
            service.serve,
            config,
            roots=roots,
            clock=now,
            started=lambda url: click.echo(f"attestation service: ready on {url}{note}"),
        )
    )


attestation.add_command(serve)


@attestation.command()
@click.option(
    "--store",
    metavar="PATH",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/confcom/attestation.sqlite"),
    show_default=True,
    help="The store of the service, which may be running.",
)
@click.option("--kind", metavar="TYPE", help="SgxEnclave, OpenEnclave or TdxVm.")
@click.option("--verdict", type=click.Choice(["accepted", "denied", "refused"]), help="What the service decided.")
@click.option("--caller", metavar="ADDRESS", help="Who asked.")
@click.option("--policy-hash", metavar="HASH", help="As in the token: base64url.")
@click.option("--evidence-hash", metavar="HEX", help="SHA-256 of the evidence as it was sent.")
@click.option("--since", metavar="RFC3339", help="Records from this time on.")
@click.option("--until", metavar="RFC3339", help="Records from before this time.")
def audit(store: Path, kind: str | None, since: str | None, until: str | None, **equal: str | None) -> None:
    """Print the records of appraisals as lines of JSON, the newest first."""
    with needing("the audit record", "tokens,cli"):
        import msgspec

        from confcom.services.attestation.attestation_store import AttestationStore, RecordFilter
        from confcom.tokens.azure import AttestationType

    if kind is not None and kind not in list(AttestationType):
        raise click.BadParameter(f"{kind!r} is none of {', '.join(AttestationType)}", param_hint="--kind")
    wanted = RecordFilter(
        kind=None if kind is None else AttestationType(kind),
        since=None if since is None else parse_time(since, "--since"),
        until=None if until is None else parse_time(until, "--until"),
        **equal,
    )
    with closing(AttestationStore.at(store, migrate=False)) as opened:
        for row in opened.export(wanted):
            click.echo(msgspec.json.encode(row))
