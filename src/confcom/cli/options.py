"""Options that several commands share, and the variables that commands read.

A tool reads the variables that are named here. A daemon reads `CONFCOM_<DAEMON>_<SETTING>` for each of its settings.
What Kubernetes sets for a Service that is called `confcom-…` is neither: it is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from confcom.errors import ConfigError

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _NamedPath(click.Path):
    """A path that is not empty: an empty one, from an unset shell variable, would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


FILE = _NamedPath(path_type=Path)
STREAM = _NamedPath(path_type=Path, allow_dash=True)

STORE_VARIABLE = "CONFCOM_COLLATERAL_STORE"
COLLATERAL_VARIABLE = "CONFCOM_COLLATERAL"
POLICY_VARIABLE = "CONFCOM_POLICY"
KEY_VARIABLE = "CONFCOM_PCS_KEY"
_ALL = "CONFCOM_"
_TOOLS = (STORE_VARIABLE, COLLATERAL_VARIABLE, POLICY_VARIABLE, KEY_VARIABLE)
DAEMONS = (
    "attestation-service", "certificate-signer", "collateral-service", "device-plugin", "metrics", "metrics-api",
    "quote-helper", "webhook",
)  # fmt: skip
_OF_TESTS = (
    "CONFCOM_VECTORS", "CONFCOM_INTEROP", "CONFCOM_E2E_", "CONFCOM_PCCS_ADMIN", "CONFCOM_AZURE_CLIENT", "CONFCOM_TEST_",
)  # fmt: skip
_SERVICE_LINK = re.compile(
    r"CONFCOM_[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables of Services (Kubernetes, "Service environment variables")."""
_JSON = "confcom.json"
NO_MACHINE_ADVICE = "Make one with `confcom simulate machine -o FILE`, and name it with --machine FILE."


def default_store() -> Path:
    """The user's own collateral store; a `ConfigError` for a user without a home, as many containers have."""
    try:
        return Path.home() / ".local" / "share" / "confcom" / "collateral.sqlite"
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder for a collateral store",
            advice=f"Name a store ({STORE_VARIABLE}, or an option of the command), or set HOME.",
        ) from error


def option_of(parameter: str) -> str:
    """The option that sets a parameter of the running command, such as `--trust-root`; else the parameter's name."""
    parameters = click.get_current_context().command.params
    return next((each.opts[0] for each in parameters if each.name == parameter), parameter)


@contextmanager
def given_by(place: Callable[[str], str]) -> Iterator[None]:
    """Within the block, an error about a setting names the place where it was given."""
    try:
        yield
    except ConfigError as error:
        if not error.setting:
            raise
        raise error.given_by(place(error.setting)) from error


def json_option(command: _Function) -> _Function:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def output_options(command: _Function) -> _Function:
    """`-o json` and its short form `--json`; the command gets `as_json`."""
    form = click.option(
        "-o",
        "--output",
        "as_json",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        callback=lambda context, _, value: value == "json" or context.meta.get(_JSON, False),
        help="Form of the result.",
    )
    short = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=lambda context, _, value: context.meta.__setitem__(_JSON, value),
        help="The same as -o json.",
    )
    return form(short(command))


def store_option(command: _Function) -> _Function:
    """`--store PATH-OR-URL`."""
    return click.option(
        "--store",
        metavar="PATH-OR-URL",
        default=lambda: str(default_store()),
        envvar=STORE_VARIABLE,
        help="The collateral store: a path, or postgresql://USER@HOST/DATABASE. "
        f"Default: ${STORE_VARIABLE}, else ~/.local/share/confcom/collateral.sqlite.",
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


def prefix_of(daemon: str) -> str:
    """What the variables of a daemon begin with."""
    return f"{_ALL}{daemon.upper().replace('-', '_')}_"


def check_variables(environment: Collection[str], daemon: str = "", settings: Collection[str] = ()) -> None:
    """Refuse the first misspelt variable with a `ConfigError`.

    With `daemon`, its variables must name one of its settings. Those of other daemons are not looked at.
    """
    own = prefix_of(daemon)
    known = [*_TOOLS, *(f"{own}{name.upper()}" for name in settings)]
    prefixes = [prefix_of(name) for name in DAEMONS]
    for name in sorted(environment):
        if not name.startswith(_ALL) or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        prefix = max((one for one in prefixes if name.startswith(one)), key=len, default="")
        if prefix == own or not (prefix or name.startswith(_OF_TESTS)):
            import difflib  # here: settings are nearly always right

            advice = "Unset it."
            words = {one.removeprefix(_ALL): one for one in (*known, *prefixes) if one != prefix}
            for close in difflib.get_close_matches(name.removeprefix(_ALL), words, n=1):
                advice = f"Did you mean {words[close]}{'…' * close.endswith('_')}? Otherwise unset it."
            owner = f"the {daemon}" if prefix else "confcom"
            raise ConfigError(f"the environment has {name}, which is no setting of {owner}", advice=advice)
