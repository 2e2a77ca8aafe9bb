"""Which collateral a `confcom verify` judges by: a bundle, a store, or a service, for the platform of the quote."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from confcom.appraisal.collateral import PCK_CHAIN_BESIDE, Collateral
from confcom.cli.collateral import STORE_VARIABLE, default_store
from confcom.cli.inputs import read_input
from confcom.collateral.bundle import load_bundle
from confcom.collateral.sources import fetch_for_quote
from confcom.errors import CollateralInvalid, CollateralNotFound, ConfigError, FormatError
from confcom.formats.certification_data import CertificationDataType
from confcom.formats.quote import Quote
from confcom.formats.text import without_bom
from confcom.pki.certificate import parse_certificates
from confcom.pki.roots import TrustRoot, TrustRoots
from confcom.protocols.pcs import Update

if TYPE_CHECKING:
    from confcom.collateral.interface import CollateralSource, Update

_STORE_ENDINGS = (".sqlite", ".db")


@dataclass(frozen=True, slots=True)
class CollateralChoice:
    """Gives the collateral of a quote's platform, for one set after the other."""

    name: str
    roots: TrustRoots
    source: CollateralSource | None
    pck_chain: bytes | None = None

    def collateral(self, quote: Quote, update: Update) -> Collateral:
        """The collateral; a bundle is taken as it is, a store or a service is asked for this platform.

        With `pck_chain` (PEM), that is the chain beside the quote; a quote with another chain is a `ConfigError`.
        """
        self._check_chain(quote)
        if self.source is None:
            bundle = load_bundle(Path(self.name))
            return bundle if self.pck_chain is None else bundle.with_pck_chain(self.pck_chain)
        return fetch_for_quote(self.source, quote, self.roots, update=update, pck_chain=self.pck_chain)

    def _check_chain(self, quote: Quote) -> None:
        own = quote.signature.certification.certification_data
        if self.pck_chain is None or own.type is not CertificationDataType.PCK_CERTIFICATE_CHAIN:
            return
        carried = parse_certificates(own.data, structure="PCK chain")
        try:
            given = parse_certificates(self.pck_chain, structure="PCK chain")
        except FormatError as error:
            raise CollateralInvalid.of(error, PCK_CHAIN_BESIDE) from error
        if given != carried:
            raise ConfigError(
                "--pck-chain: the quote carries its own PCK certificate chain, and this is another one",
                advice="Leave --pck-chain out: it is for quotes that only name their platform.",
            )


@contextmanager
def choose_collateral(
    name: str | None, roots: TrustRoots, at: datetime, *, ca: Path | None = None, pck_chain: bytes | None = None
) -> Iterator[CollateralChoice]:
    """Open what `--collateral` names; without it, the person's own store, if there is one.

    `ca` is a PEM file with the authorities that a service's TLS certificate may be of, `pck_chain` the PEM of a PCK
    chain for quotes without one.
    """
    name = _default() if name is None else name
    if "://" not in name and not name.endswith(_STORE_ENDINGS) and name not in ("intel", "pccs", "thim"):
        yield CollateralChoice(name, roots, None, pck_chain)
        return
    # Here, because it brings HTTP and SQLite along, which most calls do without.
    from confcom.collateral.sources import SourceOptions, open_source

    with open_source(name, SourceOptions(roots=roots, at=at, ca_certificates=ca)) as source:
        yield CollateralChoice(name, roots, source, pck_chain)


def _default() -> str:
    store = Path(os.environ.get(STORE_VARIABLE) or default_store())
    if store.is_file():
        return str(store)
    raise CollateralNotFound(
        "no collateral was given, and there is no store of your own",
        advice="Name it with --collateral (docs/howto/get-collateral.md), or fill a store: confcom collateral fetch.",
    )


# --- The roots that a person names with `--trust-root` ----------------------------------------------------------------


MAX_ROOT = 64 * 1024
"""Bytes of a file with a root certificate."""


def trust_roots(names: Iterable[str]) -> TrustRoots:
    """Intel's root where none is named; the word `intel` adds it to others."""
    roots: list[TrustRoot] = []
    for name in names:
        if name == "intel":
            roots += TrustRoots.intel().roots
        else:
            roots.append(_root(name))
    return TrustRoots(tuple(roots)) if roots else TrustRoots.intel()


def _root(name: str) -> TrustRoot:
    data = without_bom(read_input(Path(name), MAX_ROOT, "root certificate"))
    try:
        return TrustRoot.from_pem(data)
    except FormatError as error:
        raise ConfigError(
            f"--trust-root {name}: {error.message}", advice="Name a file with one root certificate in PEM."
        ) from error


# --- Which set of collateral a person names with `--update` -----------------------------------------------------------


def parse_update(text: str) -> Update:
    """The name of a set."""
    named = text.lower()
    if named == "standard":
        return "standard"
    if named == "early":
        return "early"
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return int(text)
    raise ConfigError(f"--update: {text!r} is neither standard nor early nor a TCB evaluation data number")
