"""Sources that need no network: a bundle in files, and the one that refuses to go out."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from confcom.appraisal.collateral import Collateral
from confcom.collateral.bundle import load_bundle
from confcom.collateral.documents import Document, DocumentKey, missing_document, take_apart
from confcom.collateral.verified_document import check_answer
from confcom.errors import CollateralUnavailable
from confcom.protocols.pcs import PckCaName, Tee, Update


class BundleSource:
    """A `CollateralSource` over one bundle: a folder, or a `collateral.json`. It is read anew each time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = str(path)

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """The bundle, whichever set it is of, unless a number is asked for; whether it fits is the verifier's to say.

        A verifier names what does not fit; a refusal here would hide it.
        """
        collateral = load_bundle(self.path)
        if isinstance(update, int):
            for document in take_apart(collateral, fmspc=fmspc, ca=ca, tee=tee, update=update):
                check_answer(document, source=self.source)
        return collateral

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document of the bundle, held to its key."""
        update = "standard" if key.update is None else key.update
        documents = take_apart(
            load_bundle(self.path),
            fmspc=key.fmspc or bytes(6),
            ca=key.ca or "platform",
            tee=key.tee or "sgx",
            update=update,
        )
        for document in documents:
            if document.key == key:
                check_answer(document, source=self.source)
                return document
        raise missing_document(key, self.source)


class OfflineSource:
    """A `CollateralSource` that never asks anybody: put where a service would be, nothing leaves this machine."""

    source = "offline"

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> NoReturn:
        """Always `CollateralUnavailable`."""
        del ca, update
        self._refuse(f"{tee.upper()} collateral of FMSPC {fmspc.hex()}")

    def fetch_document(self, key: DocumentKey) -> NoReturn:
        """Always `CollateralUnavailable`."""
        self._refuse(str(key))

    def _refuse(self, what: str) -> NoReturn:
        raise CollateralUnavailable(
            f"{what} is not here, and offline mode asks nobody",
            advice="Bring it with `confcom collateral export` on a machine with a network and `import` here.",
        )
