"""The collateral that a quote is judged by: its PCK certificate says of which platform."""

from __future__ import annotations

from confcom.appraisal.collateral import Collateral
from confcom.collateral.interface import CollateralSource
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import Quote
from confcom.formats.quote_section import TeeType
from confcom.pki.chain import verify_chain
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCaName, Tee, Update


def platform_of(quote: Quote, roots: TrustRoots) -> tuple[PckExtension, PckCaName, Tee]:
    """The platform that made the quote; its certificate must lead to one of the roots."""
    data = quote.signature.certification.certification_data.data
    chain = verify_chain(data, roots=roots, kind="pck", step="pck-chain")
    return chain.extension, chain.ca, "sgx" if quote.tee is TeeType.SGX else "tdx"


def fetch_for_quote(
    source: CollateralSource, quote: Quote, roots: TrustRoots, *, update: Update = "standard"
) -> Collateral:
    """Ask for the collateral of the platform that made the quote."""
    extension, ca, tee = platform_of(quote, roots)
    return source.fetch(extension.fmspc, ca, tee, update=update)
