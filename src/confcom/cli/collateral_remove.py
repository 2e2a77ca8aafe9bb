"""`confcom collateral remove`: platforms that are gone, with their certificates and registrations."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from confcom.cli.collateral import store_option, trust_root_option
from confcom.cli.collateral_status import parse_duration
from confcom.cli.inputs import parse_hex, parse_time
from confcom.cli.printable import printable
from confcom.cli.trust_options import trust_roots
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralNotFound, ConfigError
from confcom.protocols.pcs import MAX_QE_ID


@click.command()
@store_option
@trust_root_option
@click.option("--qe-id", metavar="HEX", help="The platform that has this QE_ID.")
@click.option("--platform", metavar="ID", help="The platform that has this id (`confcom collateral status --json`).")
@click.option("--not-seen-since", metavar="TIME", help="Every platform that has not asked since: RFC 3339, or 90d ago.")
def remove(
    store: Path, trust_root: tuple[str, ...], qe_id: str | None, platform: str | None, not_seen_since: str | None
) -> None:
    """Remove platforms from the store: their PCK certificates, registrations, and what was met of them.

    Documents stay. A platform that asks a collateral service again is registered again.
    """
    if [qe_id, platform, not_seen_since].count(None) != 2:
        raise ConfigError("which platforms?", advice="Give one of --qe-id, --platform and --not-seen-since.")
    named = None if qe_id is None else parse_hex(qe_id, "--qe-id", most=MAX_QE_ID)
    since = None if not_seen_since is None else _time(not_seen_since)
    with CollateralStore(store, roots=trust_roots(trust_root), create=False) as opened:
        if named is not None:
            removed = opened.platforms.remove(named)
        elif platform is not None:
            removed = opened.platforms.remove_known(platform.lower())
        else:
            removed = opened.platforms.remove_unseen(since or parse_time(None, ""))
    if not removed and since is None:
        raise CollateralNotFound(
            f"{printable(str(store))} knows no such platform", advice="List them: confcom collateral status --json."
        )
    click.echo(f"{removed} platforms removed from {printable(str(store))}")


def _time(text: str) -> datetime:
    if text[-1:].isalpha() and text[-1:] != "Z":
        return parse_time(None, "") - parse_duration(text, "--not-seen-since")
    return parse_time(text, "--not-seen-since")
