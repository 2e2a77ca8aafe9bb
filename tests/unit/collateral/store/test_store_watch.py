"""Every write is counted, on both engines: what a process holds in memory is good while the count stays."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

import pki_builder as pki
from confcom.collateral.documents import Document, DocumentKey
from confcom.collateral.store.store import CollateralStore
from confcom.database.changes import Watch
from confcom.errors import CollateralError
from confcom.pki.chain import TrustRoot, TrustRoots

ROOTS = TrustRoots((TrustRoot.from_pem(pki.pem(pki.ROOT_CERTIFICATE)),))
WAIT = 60


def crl(number: int) -> Document:
    return Document(DocumentKey.root_ca_crl(), pki.crl(number=number))


def test_every_write_is_counted_and_no_read(address: str) -> None:
    with CollateralStore(address, roots=ROOTS) as store, CollateralStore(address, roots=ROOTS) as other:
        known = store.changes()
        store.add([crl(7)], seen=pki.ISSUE, source="tests")
        other.add([crl(8)], seen=pki.ISSUE, source="tests")
        assert store.changes() == other.changes() == known + 2
        store.document_keys()
        with pytest.raises(CollateralError):
            store.write([lambda connection: bool(connection.exec_driver_sql("SELECT * FROM nothing"))])
        assert store.changes() == known + 2


def test_a_write_of_another_process_is_heard_of(address: str) -> None:
    heard: queue.Queue[int] = queue.Queue()
    with CollateralStore(address, roots=ROOTS) as store, CollateralStore(address, roots=ROOTS) as other:
        known = store.changes()
        watch = Watch(store.database, lambda _: heard.put(store.changes()), poll=3600)
        assert heard.get(timeout=WAIT) == known
        other.add([crl(7)], seen=pki.ISSUE, source="tests")
        while heard.get(timeout=WAIT) == known:
            pass
        watch.close()


def test_a_file_that_is_no_store_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("this is not a database, and it is longer than a header of one would be" * 20)

    with pytest.raises(CollateralError, match="no SQLite file"):
        CollateralStore(path, roots=ROOTS)
