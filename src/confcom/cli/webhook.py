"""`confcom webhook`: the admission webhook of a cluster."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from confcom.errors import ConfigError
from confcom.services.runtime.process import configure_logging, load, render, stop_on_signals
from confcom.services.webhook.webhook_config import WebhookConfig

if TYPE_CHECKING:
    from types import ModuleType


@click.command("webhook")
@click.option("--listen", metavar="HOST:PORT", help="Where the API server asks, over HTTPS.  [default: [::]:8443]")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are.  [default: [::]:9464]")
@click.option("--namespace", metavar="NAME", help="Of the Service.  [default: confcom-system]")
@click.option("--service", metavar="NAME", help="The Service that leads here.  [default: sgx-webhook]")
@click.option("--hosts", metavar="NAME,…", help="Further names and addresses of the certificate.")
@click.option("--ca", metavar="DIR", help="tls.crt and tls.key of its CA.  [default: /etc/confcom/webhook-ca]")
@click.option("--client-ca", metavar="FILE", help="Authority (PEM) of the API server's client certificate.")
@click.option("--provision-grants", metavar="NS/ACCOUNT,…", help="Who may hold the provisioning device.")
@click.option("--oversized", type=click.Choice(["refuse", "warn"]), help="Pods that want more EPC than any node has.")
@click.option("--quote-helper/--no-quote-helper", default=None, help="Whether the quote helper is enabled.")
@click.option("--wiring", type=click.Choice(["plugin", "host-path"]), help="What brings its folder into containers.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials; else the pod's service account.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with further settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force as JSON, and stop.")
@click.option("--debug", is_flag=True, help="Log more.")
def webhook(config_file: Path | None, print_config: bool, debug: bool, **flags: Any) -> None:  # noqa: ANN401 - the settings, by name
    """Complete pods that use SGX when they are made, and refuse those that cannot work.

    It issues its certificate by a CA that the webhook configurations trust. Settings come from flags, from
    CONFCOM_WEBHOOK_… in the environment, and from a file, in this order.
    """
    config = load(WebhookConfig, service="webhook", file=config_file, environment=os.environ, flags=flags)
    config.check()
    if print_config:
        click.echo(render(config))
        return
    service = _service()
    configure_logging(verbose=debug)
    asyncio.run(_run(service, config))


def _service() -> ModuleType:
    try:
        from confcom.services.webhook import webhook as service
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the webhook needs the package {error.name!r}", advice="Install confcom[services,kube]."
        ) from error
    return service


async def _run(service: ModuleType, config: WebhookConfig) -> None:
    await service.serve(
        config,
        clock=lambda: datetime.now(UTC),  # noqa: TID251 - the command line is where the clock is read
        stop=stop_on_signals(),
        started=lambda url: click.echo(f"webhook: ready on {url}"),
    )
