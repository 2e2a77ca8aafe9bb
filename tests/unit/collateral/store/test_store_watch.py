"""Noticing that somebody wrote to a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pki_builder as pki
from confcom.collateral.documents import Document, DocumentKey
from confcom.collateral.store.database import StoreWatch
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralError
from confcom.pki.roots import TrustRoot, TrustRoots

ROOTS = TrustRoots((TrustRoot.from_pem(pki.pem(pki.ROOT_CERTIFICATE)),))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CollateralStore]:
    with CollateralStore(tmp_path / "collateral.sqlite", roots=ROOTS) as store:
        yield store


def test_says_once_that_there_was_a_write_whoever_made_it(store: CollateralStore) -> None:
    watch = StoreWatch(store.path)
    assert not watch.changed()
    store.add([Document(DocumentKey.root_ca_crl(), pki.crl())], seen=pki.ISSUE, source="tests")
    assert [watch.changed(), watch.changed()] == [True, False]
    with CollateralStore(store.path, roots=ROOTS) as other:
        other.add([Document(DocumentKey.root_ca_crl(), pki.crl(number=8))], seen=pki.ISSUE, source="tests")
    assert [watch.changed(), watch.changed()] == [True, False]
    store.document_keys()
    assert not watch.changed()
    watch.close()


def test_a_file_that_is_no_store_cannot_be_watched(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("this is not a database, and it is longer than a header of one would be" * 20)

    with pytest.raises(CollateralError, match="cannot be watched"):
        StoreWatch(path)
