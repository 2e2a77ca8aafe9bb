"""The command group. Commands are imported when they are called, so that each needs only its own packages."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import click

from confcom.cli.exit_codes import ExitCode, exit_code
from confcom.cli.lazy_group import CommandTable, LazyGroup
from confcom.cli.outputs import complain
from confcom.errors import ConfcomError

COMMANDS: CommandTable = {
    "demo": ("confcom.cli.demo", "demo", "Show the whole system on this machine, on the simulated platform."),
    "verify": ("confcom.cli.verify", "verify", "Verify and appraise a quote."),
    "inspect": (
        "confcom.cli.inspect",
        "inspect",
        "Decode a file (quote, certificate, collateral, …) and explain it.",
    ),
    "policy": ("confcom.cli.policy", "policy", "Write policies: what a relying party accepts."),
    "quote": ("confcom.cli.quote", "quote", "Get a quote on this machine."),
    "addon": ("confcom.cli.addon", "addon", "Enable, update and disable the add-on of a Kubernetes cluster."),
    "device-plugin": ("confcom.cli.daemons", "device_plugin", "Make this node's EPC a schedulable resource."),
    "quote-helper": ("confcom.cli.daemons", "quote_helper", "Serve quotes to every enclave of this node (AESM)."),
    "metrics": ("confcom.cli.daemons", "metrics", "Show and report what this node's containers use of EPC."),
    "metrics-api": ("confcom.cli.daemons", "metrics_api", "Answer HPA with what pods use of EPC and make of quotes."),
    "top": ("confcom.cli.top", "top", "Show EPC and quotes per node and pod of a cluster."),
    "why": ("confcom.cli.why", "why", "Explain a pod: why it waits, its EPC, its quotes, and what to do."),
    "webhook": ("confcom.cli.daemons", "webhook", "Complete or refuse pods that use SGX, when they are created."),
    "check-pods": (
        "confcom.cli.check_pods",
        "check_pods",
        "Show what the webhook would change or refuse.",
    ),
    "collateral": ("confcom.cli.collateral", "collateral", "Fill, inspect and carry the collateral store."),
    "attestation": ("confcom.cli.attestation", "attestation", "Judge evidence and sign tokens (Azure's API, EAR)."),
    "token": ("confcom.cli.token", "token", "Look at attestation tokens, and verify them."),
    "doctor": ("confcom.cli.doctor", "doctor", "Find out why something does not work here, and what to do."),
    "simulate": ("confcom.cli.simulate", "simulate", "Make simulated machines and export their collateral."),
}


class _Root(LazyGroup):
    """The commands of the table."""

    table = COMMANDS


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--verbose", is_flag=True, help="Print the traceback of an error.")
@click.version_option(package_name="confcom")
def root(verbose: bool) -> None:
    """Confidential computing on Kubernetes nodes with Intel SGX.

    Exit codes: 0 ok (verify: accepted) · 1 unexpected · 2 usage or configuration · 3 malformed input · 4 not
    authentic · 5 refused by policy or TCB · 6 collateral missing, stale, unsound or unreachable · 7 platform.
    """
    del verbose  # read in run(), which also sees errors before the group is entered


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; nothing escapes as a traceback unless --verbose asks for it."""
    verbose = "--verbose" in arguments
    try:
        code: Any = root.main(args=arguments, prog_name="confcom", standalone_mode=False)
    except ConfcomError as error:
        _trace(verbose)
        complain(error)
        return exit_code(error)
    except click.exceptions.Abort:
        complain("interrupted")
        return ExitCode.UNEXPECTED
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except ModuleNotFoundError as error:
        _trace(verbose)
        complain(
            f"this command needs the package {error.name!r}",
            "install confcom[cli] for tools, confcom[node,services,kube] for what runs on a cluster",
        )
        return ExitCode.USAGE
    except BrokenPipeError:
        # The reader of our output has closed it; Python must not report that again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001 - the outermost handler: users see a sentence, not a traceback
        _trace(verbose)
        complain(f"unexpected {type(error).__name__}: {error}", "run again with --verbose and report what it prints")
        return ExitCode.UNEXPECTED
    return int(code) if isinstance(code, int) else ExitCode.OK


def _trace(verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
