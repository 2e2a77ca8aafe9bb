"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
STREAM = click.Path(path_type=Path, allow_dash=True)

STORE_VARIABLE = "CONFCOM_COLLATERAL_STORE"
NO_MACHINE_ADVICE = "Make one with `confcom simulate machine -o FILE`, and name it with --simulated-machine FILE."


def default_store() -> Path:
    """The user's own collateral store."""
    return Path.home() / ".local" / "share" / "confcom" / "collateral.sqlite"


def json_option(command: _Function) -> _Function:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def store_option(command: _Function) -> _Function:
    """`--store PATH`."""
    return click.option(
        "--store",
        metavar="PATH",
        type=FILE,
        default=default_store,
        envvar=STORE_VARIABLE,
        help=f"The collateral store. Default: ${STORE_VARIABLE}, else ~/.local/share/confcom/collateral.sqlite.",
    )(command)


def trust_root_option(command: _Function) -> _Function:
    """`--trust-root PEM`."""
    return click.option(
        "--trust-root",
        metavar="PEM",
        multiple=True,
        help="Trust this root instead of Intel's (a simulated platform). Repeatable; the word 'intel' adds Intel's.",
    )(command)


def kubeconfig_options(command: _Function) -> _Function:
    """`--kubeconfig` and `--context`."""
    context = click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: its current one]")
    file = click.option("--kubeconfig", metavar="FILE", help="Credentials.  [default: $KUBECONFIG, ~/.kube/config]")
    return file(context(command))


def identity_options(command: _Function) -> _Function:
    """`--mr-enclave`, `--mr-signer`, `--isv-prod-id` and `--min-isv-svn`."""
    number = click.IntRange(0, 0xFFFF)
    for option in (
        click.option("--min-isv-svn", metavar="N", type=number, help="The lowest security version."),
        click.option("--isv-prod-id", metavar="N", type=number, help="The signer's product id."),
        click.option("--mr-signer", metavar="HEX", multiple=True, help="Accept this signer. Repeatable."),
        click.option("--mr-enclave", metavar="HEX", multiple=True, help="Accept this build. Repeatable."),
    ):
        command = option(command)
    return command
