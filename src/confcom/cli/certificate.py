"""`confcom certificate`: get a certificate from the certificate signer into files, for a simulated enclave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from confcom.cli.daemons import needing
from confcom.cli.options import FILE, Number, complain, note, now, parse_duration, write_file
from confcom.errors import ConfcomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from confcom.platforms.pod_certificate import PodCertificate

USAGES = {"server": "server auth", "client": "client auth"}
FIRST_RETRY, RETRY_MAX = 5.0, 300.0
"""Seconds between two attempts to renew; they double."""
SHORTEST = 10.0
"""Seconds between two certificates, however short they live or wrong a clock is: a pod has an allowance of requests."""
UMASK = 0o027
"""The key is for its owner and for the pod's group."""


@click.command()
@click.option("--machine", metavar="FILE", type=FILE, required=True, help="The simulated machine of the enclave.")
@click.option("--enclave", metavar="FILE", type=FILE, help="Its declaration, or a signed file.  [default: a demo's]")
@click.option("-o", "--output", "folder", metavar="DIR", type=FILE, required=True, help="Where the files are written.")
@click.option("--usage", "usages", type=click.Choice([*USAGES]), multiple=True, help="Repeatable.  [default: both]")
@click.option("--lifetime", metavar="DURATION", help="Such as 1h; the signer may allow less.  [default: the signer's]")
@click.option(
    "--timeout", metavar="SECONDS", type=Number(1, 3600), default=120.0, show_default=True,
    help="How long to wait for a certificate.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep running, and renew it after two thirds of its life.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials; else the pod's service account.")
def certificate(
    machine: Path,
    enclave: Path | None,
    folder: Path,
    usages: tuple[str, ...],
    lifetime: str | None,
    timeout: float,
    keep: bool,
    kubeconfig: str | None,
) -> None:
    """Get a certificate for this pod's service account: tls.crt, tls.key and ca.crt in DIR.

    For simulated enclaves only: the key is in a file, so a server that uses it is in no enclave. A real enclave calls
    confcom.request_certificate itself, and keeps the key in its memory.
    """
    import asyncio

    with needing("the command certificate", "cli,kube"):
        from confcom.platforms.pod_certificate import request_certificate
        from confcom.wiring import own_quote_source

    quotes = own_quote_source(machine=machine, enclave=enclave)
    life = None if lifetime is None else parse_duration(lifetime, "--lifetime")
    os.umask(UMASK)

    def renew() -> PodCertificate:
        found = request_certificate(
            quotes,
            usages=[USAGES[usage] for usage in usages or USAGES],
            lifetime=life,
            timeout=timeout,
            kubeconfig=kubeconfig,
        )
        for name, content in (("ca.crt", found.authorities), ("tls.key", found.key), ("tls.crt", found.certificate)):
            write_file(folder / name, content, name)
        note(f"certificate in {folder}, SIMULATED; to be renewed at {found.renew_at:%Y-%m-%dT%H:%M:%SZ}")
        return found

    first = renew()
    if keep:
        asyncio.run(_keep_renewed(first, renew))


async def _keep_renewed(found: PodCertificate, renew: Callable[[], PodCertificate]) -> None:
    """Renew a certificate in time, and try again after failures, until a signal ends the process."""
    import asyncio

    with needing("the option --keep", "cli,node"):
        from confcom.services.runtime.process import stop_on_signals, wait_for

    def left() -> float:
        return max((found.renew_at - now()).total_seconds(), SHORTEST)

    stop, pause = stop_on_signals(), FIRST_RETRY
    wait = left()
    while not await wait_for(stop, min(wait, RETRY_MAX)):
        if wait > RETRY_MAX:  # in steps, because the machine may have slept, or its clock was set
            wait = left()
            continue
        try:
            found = await asyncio.to_thread(renew)
            wait, pause = left(), FIRST_RETRY
        except ConfcomError as error:
            complain(error)
            wait, pause = pause, min(2 * pause, RETRY_MAX)
