"""Judging as of a time from a store gives the answer that the files of that time give: every vector, on both engines.

The expected answers are those that `test_vectors` compares with Intel's library.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from confcom.appraisal.collateral import Collateral, verify_collateral
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import AttestationResult, failed, judge, read_evidence
from confcom.collateral.bundle import load_bundle
from confcom.collateral.documents import Document, assemble, read_document, take_apart
from confcom.collateral.sources import platform_of
from confcom.collateral.store.migrations import CHAIN
from confcom.collateral.store.schema import SIGHTINGS, VERSIONS
from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import Database, DatabaseAddress
from confcom.errors import CollateralNotFound, ConfcomError
from confcom.formats.quote import Quote
from confcom.pki.chain import TrustRoots, verify_chain
from confcom.protocols.pcs import Tee
from vectors.expectations import Row, negative_rows, real_rows, simulated_rows
from vectors.test_vectors import UP_TO_DATE, folder_root, judge_row, negative_roots

pytestmark = pytest.mark.vectors


@pytest.fixture
def address(database_address: str) -> str:
    with closing(Database(DatabaseAddress.parse(database_address))) as database:
        CHAIN.upgrade(database)
    return database_address


def documents_of(row: Row, roots: TrustRoots) -> list[Document]:
    """What a service served at the time of the row, as the standard set."""
    collateral = load_bundle(row.folder)
    verified = verify_collateral(collateral, roots=roots)
    ca = verify_chain(collateral.pck_crl_issuer_chain, roots=roots, kind="ca", step="test").ca
    tee: Tee = "tdx" if verified.tcb_info.id == "TDX" else "sgx"
    return list(take_apart(collateral, fmspc=verified.tcb_info.fmspc, ca=ca, tee=tee))


def by_number(document: Document) -> Document:
    """As the set of its number: some rows have the TCB info and the identity of different sets."""
    if document.key.update is None:
        return document
    return replace(document, key=replace(document.key, update=read_document(document).number))


def judged(row: Row, roots: TrustRoots, collateral: Callable[[Quote, datetime], Collateral]) -> AttestationResult:
    now = datetime.fromtimestamp(row.time, UTC)
    try:
        evidence = read_evidence((row.folder / "quote.bin").read_bytes())
        found = collateral(evidence.quote, now)
    except ConfcomError as error:
        return failed(error)
    return judge(evidence, found, verifier=QuoteVerifier(roots), policy=UP_TO_DATE, now=now)


def answer(result: AttestationResult) -> tuple[object, ...]:
    found = result.as_dict()
    kept = ("verdict", "tcb_status", "tcb_date", "advisory_ids", "tcb_evaluation_data_number", "fmspc", "identity")
    error = None if result.error is None else result.error.code
    return *(found[name] for name in kept), error, [(check.id, check.ok) for check in result.checks]


def test_one_store_with_every_years_documents_answers_as_the_files_of_each_date(vectors: Path, address: str) -> None:
    intel, rows = TrustRoots.intel(), real_rows(vectors)
    served = {row.folder: [by_number(one) for one in documents_of(row, intel)] for row in rows}
    assert len({row.time for row in rows}) > 40
    with CollateralStore(address, roots=intel) as store:
        # The latest first: what is in force at a time is no matter of what came when.
        for row in sorted(rows, key=lambda row: -row.time):
            store.add(served[row.folder], seen=datetime.fromtimestamp(row.time, UTC), source="vectors")
        for row in rows:

            def collateral(_: Quote, now: datetime, row: Row = row) -> Collateral:
                found = (store.document(document.key, at=now) for document in served[row.folder])
                return assemble(found, source=store.source)

            assert answer(judged(row, intel, collateral)) == answer(judge_row(row, intel)), row.folder.name


def test_every_other_vector_gets_the_same_answer_from_a_store(vectors: Path, address: str) -> None:
    rows = [(row, negative_roots(row)) for row in negative_rows(vectors)]
    rows += [(row, folder_root(row)) for row in simulated_rows(vectors)]
    kept: list[Document] = []
    whole = 0
    for row, roots in rows:
        with CollateralStore(address, roots=roots) as store:
            documents: list[Document] = []
            with suppress(ConfcomError):  # nothing comes into a store before it is verified
                documents = documents_of(row, roots)
            if documents != kept:
                # Simulated ones are all of one platform, and each has its own documents of the same date.
                with store.database.write() as connection:
                    for table in (SIGHTINGS, VERSIONS):
                        connection.execute(sa.delete(table))
                kept = documents
                with suppress(ConfcomError):
                    store.add(documents, seen=datetime.fromtimestamp(row.time, UTC), source="vectors")

            def collateral(quote: Quote, now: datetime, store: CollateralStore = store) -> Collateral:
                extension, ca, tee = platform_of(quote, store.roots)
                return store.collateral(extension.fmspc, ca, tee, at=now)

            result = judged(row, roots, collateral)
        expected = judge_row(row, roots)
        if isinstance(result.error, CollateralNotFound):
            assert result.verdict is expected.verdict, row.folder.name
        else:
            whole += 1
            assert answer(result) == answer(expected), row.folder.name
    assert whole > 180
