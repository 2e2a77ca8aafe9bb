"""`confcom attestation`: the service that judges evidence and signs tokens."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from confcom.cli.collateral_options import trust_roots
from confcom.services.attestation import attestation_service as service
from confcom.services.attestation.attestation_config import AttestationServiceConfig
from confcom.services.runtime.process import configure_logging, load, render, stop_on_signals


@click.group()
def attestation() -> None:
    """Judge evidence and sign tokens, by the API of Azure Attestation."""


@attestation.command()
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
    help="Who may set policies: administrators, those with a known signature, or nobody.  [default: open]",
)
@click.option("--policy-signer", "policy_signers", metavar="PEM", multiple=True, help="First signers of policies.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with further settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force as JSON, and stop.")
def serve(config_file: Path | None, print_config: bool, **flags: Any) -> None:  # noqa: ANN401 - see config
    """Serve attestation: clients of Azure Attestation work unchanged with this URL, clients of RATS get EAR.

    Settings come from flags, from CONFCOM_ATTESTATION_SERVICE_… in the environment, and from a file, in this order.
    """
    config = load(
        AttestationServiceConfig,
        service="attestation-service",
        file=config_file,
        environment=os.environ,
        flags={name: value or None if isinstance(value, tuple) else value for name, value in flags.items()},
    )
    if print_config:
        click.echo(render(config))
        return
    configure_logging()
    asyncio.run(_run(config))


async def _run(config: AttestationServiceConfig) -> None:
    roots = trust_roots(config.trust_roots)
    note = ", SIMULATED" if service.simulated_world(roots) else ""
    await service.serve(
        config,
        roots=roots,
        clock=lambda: datetime.now(UTC),  # noqa: TID251 - the command line is where the clock is read
        stop=stop_on_signals(),
        started=lambda url: click.echo(f"attestation service: ready on {url}{note}"),
    )
