"""The collateral that a quote is judged by: its PCK certificate says of which platform."""

from __future__ import annotations

from confcom.appraisal.collateral import PCK_CHAIN_BESIDE, Collateral
from confcom.appraisal.quote import pck_chain_of
from confcom.collateral.interface import CollateralSource
from confcom.errors import CollateralInvalid, FormatError, VerificationError
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import Quote, TeeType
from confcom.pki.chain import verify_chain
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCaName, Tee, Update


def platform_of(
    quote: Quote, roots: TrustRoots, *, pck_chain: bytes | None = None
) -> tuple[PckExtension, PckCaName, Tee]:
    """The platform that made the quote; its certificate must lead to one of the roots.

    `pck_chain` is PEM given beside a quote that carries no chain.
    """
    found = pck_chain_of(quote, pck_chain)
    try:
        chain = verify_chain(found, roots=roots, kind="pck", step="pck-chain")
    except (FormatError, VerificationError) as error:
        if found is pck_chain:
            raise CollateralInvalid.of(error, PCK_CHAIN_BESIDE) from error
        raise
    return chain.extension, chain.ca, "sgx" if quote.tee is TeeType.SGX else "tdx"


def fetch_for_quote(
    source: CollateralSource,
    quote: Quote,
    roots: TrustRoots,
    *,
    update: Update = "standard",
    pck_chain: bytes | None = None,
) -> Collateral:
    """Ask for the collateral of the platform that made the quote; `pck_chain` goes along with it.

    A wrong answer is the source's fault: `CollateralInvalid`.
    """
    extension, ca, tee = platform_of(quote, roots, pck_chain=pck_chain)
    try:
        found = source.fetch(extension.fmspc, ca, tee, update=update)
    except (FormatError, VerificationError) as error:
        raise CollateralInvalid.of(error, f"the {tee.upper()} collateral of FMSPC {extension.fmspc.hex()}") from error
    return found if pck_chain is None else found.with_pck_chain(pck_chain)
