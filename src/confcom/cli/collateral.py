"""`confcom collateral`: fill, inspect and carry the collateral store. Declares the commands; the work is elsewhere."""

from __future__ import annotations

from typing import Any

import click

from confcom.cli.daemons import collateral_service, migrate_command
from confcom.cli.options import FILE, KEY_VARIABLE, STREAM, json_option, output_options, store_option, trust_root_option


@click.group()
def collateral() -> None:
    """Fill, inspect and carry the collateral store: what Intel says about platforms, with its history."""


@collateral.command(short_help="Get collateral from a service and keep it.")
@click.option("--fmspc", metavar="HEX", multiple=True, help="The kind of platform, 12 digits. Repeatable.")
@click.option(
    "--ca",
    type=click.Choice(["platform", "processor"], case_sensitive=False),
    multiple=True,
    help="The CA of its PCK certificate. Default: both (platform with -o).",
)
@click.option(
    "--tee",
    type=click.Choice(["sgx", "tdx"], case_sensitive=False),
    multiple=True,
    help="The kind of its quotes. Default: sgx.",
)
@click.option("--quote", metavar="FILE", type=STREAM, multiple=True, help="Take FMSPC, CA and kind from this evidence.")
@click.option(
    "--source",
    metavar="NAME",
    default="intel",
    show_default=True,
    help="intel, pccs, thim, the URL of a PCS or PCCS, a folder, a collateral.json, or a store.",
)
@click.option(
    "--update", metavar="SET,…", default="standard", show_default=True, help="standard, early, or numbers of sets."
)
@store_option
@click.option("-o", "--output", metavar="FOLDER", type=FILE, help="Write one platform's files here, not to the store.")
@trust_root_option
@click.option("--collateral-ca", metavar="PEM", type=FILE, help="CAs of the service's TLS certificate.")
@click.option("--insecure-tls", is_flag=True, help="Accept any TLS certificate; Intel's signatures are checked anyway.")
@click.option(
    "--key", envvar=KEY_VARIABLE, help="Intel's subscription key, or the PCCS's token. Better: $CONFCOM_PCS_KEY."
)
@click.option("--proxy", metavar="URL", help="Default: $HTTPS_PROXY, except for the hosts in $NO_PROXY.")
@click.option("--azure-region", metavar="NAME", help="For thim: region of the cache, such as westeurope. TDX needs it.")
@json_option
def fetch(**options: Any) -> int:  # noqa: ANN401 - the work has the types
    """Get collateral, verify it, and keep it in the store (or, with -o, in a folder that `confcom verify` reads).

    What fails does not stop the rest; the exit code is then that of the first failure.
    """
    from confcom.cli.collateral_store import fetch

    return fetch(**options)


@collateral.command(short_help="Show what expires, what is missing, which platforms fall behind.")
@store_option
@click.option(
    "--min-validity",
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="Exit 6 when a document in force is valid for less: 90m, 36h, 7d, 2w.",
)
@click.option("--fail-on-promotion", is_flag=True, help="Exit 6 also when the early set makes a platform OutOfDate.")
@click.option("--fmspc", metavar="HEX", multiple=True, help="Look at these alone. Repeatable.")
@click.option(
    "--tcb-set",
    "tcb_sets",
    metavar="[GROUP=]SET",
    multiple=True,
    envvar="CONFCOM_COLLATERAL_SERVICE_TCB_SETS",
    help="What the service is pinned to, as with `serve`. Default: what $CONFCOM_COLLATERAL_SERVICE_TCB_SETS says.",
)
@click.option("--at", metavar="RFC3339", help="Look as of this time. Default: now.")
@trust_root_option
@output_options
def status(**options: Any) -> int:  # noqa: ANN401 - the work has the types
    """Show when each document in force expires, which documents are missing, and which known platforms the coming TCB
    promotion (the early set) would turn out of date, with the first component that is too low. With --tcb-set the
    platforms are judged by what the clients of that service get.

    Exit 6 when a document has less time left than --min-validity, when one is missing (of an empty store all are), or
    when the clock is wrong; 0 otherwise.
    """
    from confcom.cli.collateral_store import status

    return status(**options)


@collateral.command("import", short_help="Take collateral from a file into the store.")
@click.argument("path", type=STREAM)
@store_option
@trust_root_option
@click.option(
    "--update",
    metavar="SET",
    default="standard",
    show_default=True,
    help="The set that a bundle is of; archives say it.",
)
def import_(**options: Any) -> None:  # noqa: ANN401 - the work has the types
    """Verify collateral and keep it: PATH is an archive (`confcom collateral export`), a folder with one file per
    part, or a collateral.json; '-' reads an archive from standard input. A store is made only if the import succeeds.
    """
    from confcom.cli.collateral_store import import_

    import_(**options)


@collateral.command(short_help="Write the store's collateral into one file.")
@click.option(
    "-o", "--output", metavar="FILE", type=STREAM, required=True, help="The archive to write; '-' for stdout."
)
@store_option
@trust_root_option
@click.option("--platforms", is_flag=True, help="Carry PCK certificates and registrations too: they name machines.")
def export(**options: Any) -> None:  # noqa: ANN401 - the work has the types
    """Write every version of every document, with the times at which they were seen, and every appraisal policy into
    one archive.

    PCK certificates and registrations of platforms are left out unless --platforms is given; their number is printed.
    """
    from confcom.cli.collateral_store import export

    export(**options)


@collateral.command(short_help="Remove platforms that are gone.")
@store_option
@trust_root_option
@click.option("--qe-id", metavar="HEX", help="The platform that has this QE_ID.")
@click.option("--platform", metavar="ID", help="The platform that has this id (`confcom collateral status --json`).")
@click.option("--not-seen-since", metavar="TIME", help="Every platform that has not asked since: RFC 3339, or 90d ago.")
def remove(**options: Any) -> None:  # noqa: ANN401 - the work has the types
    """Remove platforms from the store: their PCK certificates, registrations, and what was learned from their quotes.

    Documents stay. A platform that asks a collateral service again is registered again.
    """
    from confcom.cli.collateral_store import remove

    remove(**options)


collateral.add_command(migrate_command(store_option, "confcom.collateral.store.migrations"))


collateral.add_command(collateral_service, "serve")
