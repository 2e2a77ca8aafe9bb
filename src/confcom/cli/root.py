"""The command group: commands in their order, imported when they are called, with advice for lines of `az`."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import click

from confcom.cli.options import QUIET, check_variables, complain, print_json
from confcom.errors import ConfcomError, ConfigError, ExitCode, OutputError, exit_code
from confcom.input_file import opened


def spoken(command: click.Command) -> click.Command:
    """Give a command, and those below it, the options that every command has: `-v` and `-q`."""
    names = {name for parameter in command.params for name in parameter.opts}
    if "--verbose" not in names:
        command.params.append(_option("-v", "--verbose", "Print the traceback of an error."))
    if "--quiet" not in names:
        command.params.append(_option("-q", "--quiet", "Print results and errors only.", _be_quiet))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            spoken(below)
    return command


def _option(short: str, name: str, text: str, callback: Callable[..., None] | None = None) -> click.Option:
    return click.Option([short, name], is_flag=True, expose_value=False, help=text, callback=callback)


def _be_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[QUIET] = True


CommandTable = Mapping[str, tuple[str, str, str]]
"""Name to module, attribute, and one line of help, which stands here so that `--help` imports no command."""


class AzGroup(click.Group):
    """Translates lines of `az aks` for the user: refuses them, and advises the same line as it is written here."""

    AZ_COMMANDS: ClassVar[Mapping[str, str]] = {"enable-addons": "enable", "disable-addons": "disable"}
    """Of `az aks` to `confcom addon`, which take the same options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of their declaration."""
        del ctx
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word; a line of az is a `ConfigError` that advises ours."""
        words, names = args, self.list_commands(ctx)
        while words[:1] in (["az"], ["aks"]):
            words = words[1:]
        if words and words[0] in self.AZ_COMMANDS:
            group = ["addon"] if "addon" in names else []
            words = [*group, self.AZ_COMMANDS[words[0]], *words[1:]]
        if words is args:
            try:
                return super().resolve_command(ctx, args)
            except click.NoSuchCommand:  # click itself suggests only commands that are imported
                raise click.NoSuchCommand(args[0], possibilities=names, ctx=ctx) from None
        known = bool(words) and words[0] in names
        line = shlex.join([*ctx.command_path.split(), *(words if known else ["addon", "--help"])])
        raise ConfigError(f"{args[0]!r} is a word of az, not of confcom", advice=f"Type: {line}")


class LazyGroup(AzGroup):
    """Imports each command of its table when it is called."""

    table: ClassVar[CommandTable]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in self.table:
            return None
        module, attribute, _ = self.table[cmd_name]
        return spoken(getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][2]) for name in self.list_commands(ctx)])


COMMANDS: CommandTable = {
    "demo": ("confcom.cli.simulate", "demo", "Show the whole system on this machine, on the simulated platform."),
    "verify": ("confcom.cli.verify", "verify", "Verify and appraise a quote."),
    "inspect": ("confcom.cli.inspect", "inspect", "Decode a file (quote, certificate, collateral, …) and explain it."),
    "policy": ("confcom.cli.policy", "policy", "Write policies: what a relying party accepts."),
    "quote": ("confcom.cli.quote", "quote", "Get a quote on this machine."),
    "addon": ("confcom.cli.addon", "addon", "Enable, update and disable the add-on of a Kubernetes cluster."),
    "device-plugin": ("confcom.cli.daemons", "device_plugin", "Make this node's EPC a schedulable resource."),
    "quote-helper": ("confcom.cli.daemons", "quote_helper", "Serve quotes to every enclave of this node (AESM)."),
    "metrics": ("confcom.cli.daemons", "metrics", "Show and report what this node's containers use of EPC."),
    "metrics-api": ("confcom.cli.daemons", "metrics_api", "Answer HPA with what pods use of EPC and make of quotes."),
    "top": ("confcom.cli.pods", "top", "Show EPC and quotes per node and pod of a cluster."),
    "why": ("confcom.cli.pods", "why", "Explain a pod: why it waits, its EPC, its quotes, and what to do."),
    "webhook": ("confcom.cli.daemons", "webhook", "Complete or refuse pods that use SGX, when they are created."),
    "check-pods": ("confcom.cli.check_pods", "check_pods", "Show what the webhook would change or refuse."),
    "collateral": ("confcom.cli.collateral", "collateral", "Fill, inspect and carry the collateral store."),
    "attestation": ("confcom.cli.attestation", "attestation", "Judge evidence and sign tokens (Azure's API, EAR)."),
    "certificate": ("confcom.cli.certificate", "certificate", "Get a certificate for an attested pod, and renew it."),
    "certificate-signer": ("confcom.cli.daemons", "certificate_signer", "Sign certificates of attested pods."),
    "token": ("confcom.cli.token", "token", "Look at attestation tokens, and verify them."),
    "doctor": ("confcom.cli.doctor", "doctor", "Find out why something does not work here, and what to do."),
    "simulate": ("confcom.cli.simulate", "simulate", "Make simulated machines and export their collateral."),
}

_VERBOSE = "confcom.verbose"

RENAMED = {
    "--simulated-machine": "--machine",
    "--ca-certificates": "--collateral-ca",
    "--upstream-ca": "--collateral-ca",
}
"""Options that had another name up to version 0.1; the old one works until 1.0, with a remark."""


class _Root(LazyGroup):
    """The commands of the table."""

    table = COMMANDS


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    """The version; with `--verbose`, which is eager and so was seen before, also what it was built from."""
    if not value or context.resilient_parsing:
        return
    if context.meta.get(_VERBOSE):
        from confcom.cli.build_info import build_info

        click.echo(build_info())
    else:
        from importlib.metadata import version

        click.echo(f"confcom, version {version('confcom')}")
    context.exit()


def _be_verbose(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_VERBOSE] = value


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    *("-V", "--version"),
    is_flag=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version; with -v also the commit it was built from, and the versions of what it uses.",
)
@click.option(
    *("-v", "--verbose"),
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_be_verbose,
    help="Print the traceback of an error.",
)
def root() -> None:
    """Confidential computing on Kubernetes nodes with Intel SGX.

    Exit codes: 0 ok (verify: accepted) · 1 unexpected · 2 usage or configuration · 3 malformed input · 4 not
    authentic · 5 refused by policy or TCB · 6 collateral missing, stale, unsound or unreachable · 7 platform ·
    130 interrupted.
    """
    check_variables(os.environ)


spoken(root)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; nothing escapes as a traceback unless --verbose asks for it.

    Where JSON was asked for, an error that leaves no result is printed as JSON too.
    """
    verbose = not {"-v", "--verbose"}.isdisjoint(arguments)
    opened.clear()
    try:
        code: Any = root.main(args=_renamed(arguments), prog_name="confcom", standalone_mode=False)
        sys.stdout.flush()
        return int(code) if isinstance(code, int) else ExitCode.OK
    except ConfcomError as error:
        _trace(verbose)
        failure, code = error, exit_code(error)
    except click.exceptions.Abort as abort:  # an interrupt, or no answer to a question
        interrupted = isinstance(abort.__cause__ or abort.__context__, KeyboardInterrupt)
        complain("interrupted" if interrupted else "aborted: nothing was changed")
        return ExitCode.INTERRUPTED if interrupted else ExitCode.UNEXPECTED
    except click.ClickException as error:
        error.show()
        _print_failure(arguments, ConfigError(error.format_message()))
        return ExitCode.USAGE
    except ModuleNotFoundError as error:
        _trace(verbose)
        advice = "install confcom[cli] for tools, confcom[node,services,kube] for what runs on a cluster"
        failure, code = ConfigError(f"this command needs the package {error.name!r}", advice=advice), ExitCode.USAGE
    except Exception as error:  # noqa: BLE001 - the outermost handler: users see a sentence, not a traceback
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps what comes while a class is made
            complain("interrupted")
            return ExitCode.INTERRUPTED
        _trace(verbose)
        advice = "run again with --verbose and report what it prints"
        failure, code = ConfcomError(f"unexpected {type(error).__name__}: {error}", advice=advice), ExitCode.UNEXPECTED
    complain(failure, _advice(arguments, failure))
    _print_failure(arguments, failure)
    return int(code)


def _advice(arguments: list[str], error: ConfcomError) -> str:
    words = " ".join(_command(arguments)[0])
    return error.advice().replace("confcom COMMAND", f"confcom {words}" if words else "confcom")


def _print_failure(arguments: list[str], error: ConfcomError) -> None:
    """Print an error as JSON if the command was asked for JSON; its result, which it prints at its end, is missing."""
    forms = {
        name
        for parameter in _command(arguments)[1].params
        if "json" in getattr(parameter.type, "choices", ())
        for name in parameter.opts
    }
    given = "\0".join(("", *arguments, ""))
    asked = [f"\0{name}{between}json\0" for name in forms for between in ("\0", "=", "")]
    if any(form in given for form in ("\0--json\0", *asked)):
        with suppress(OutputError):  # which may be what is to be told
            print_json({"error": error.as_dict() | {"advice": _advice(arguments, error)}})


def _renamed(arguments: list[str]) -> list[str]:
    """The arguments, with the options of their command by their present names."""
    if RENAMED.keys().isdisjoint(argument.partition("=")[0] for argument in arguments):
        return arguments
    known = {name for parameter in _command(arguments)[1].params for name in parameter.opts}
    found = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if RENAMED.get(option) in known:
            complain(f"{option} is now called {RENAMED[option]}")
            option = RENAMED[option]
        found.append(f"{option}{equals}{value}")
    return found


def _command(arguments: list[str]) -> tuple[list[str], click.Command]:
    """The command of the arguments: its words, and itself."""
    words: list[str] = []
    command: click.Command = root
    for argument in arguments:
        if not isinstance(command, click.Group):
            break
        below = command.get_command(click.Context(command), argument)
        if below is not None:
            words.append(argument)
            command = below
    return words, command


def _trace(verbose: bool) -> None:
    if verbose:
        import traceback

        traceback.print_exc()
