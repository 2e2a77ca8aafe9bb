"""Which version was in force at a time, rule by rule."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

import pytest

from confcom.appraisal.collateral import verify_collateral
from confcom.collateral.bundle import load_bundle
from confcom.collateral.documents import take_apart
from confcom.collateral.store.migrations import CHAIN
from confcom.collateral.store.rows import Candidate, choose
from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import Database, DatabaseAddress
from confcom.pki.chain import TrustRoots, verify_chain

DAY = 86400
MONTH = 30 * DAY


def version(id_: int, number: int, issued: int, seen: int | None = None, lasts: int = MONTH) -> Candidate:
    """A version of a set; days since the beginning."""
    first_seen = None if seen is None else seen * DAY
    return Candidate(id_, number, issued * DAY, issued * DAY + lasts, first_seen)


def at(candidates, day: int, update="standard") -> int | None:
    chosen = choose(candidates, at=day * DAY, update=update)
    return None if chosen is None else chosen.id


def test_nothing_comes_of_nothing():
    assert at([], 1) is None
    assert at([version(1, 17, 0, None)], 1) is None
    assert at([version(1, 17, 0, 0)], 1, update=18) is None


def test_the_latest_issue_not_after_the_time():
    versions = [version(1, 17, 0, 0), version(2, 17, 10, 10), version(3, 17, 20, 20)]
    assert [at(versions, day) for day in (5, 10, 15, 25)] == [1, 2, 2, 3]


def test_both_ends_of_a_validity_are_valid():
    assert at([version(1, 17, 0, 0), version(2, 17, 30, 30)], 30) == 2
    assert at([version(1, 17, 0, 0), version(2, 17, 40, 40)], 30) == 1


def test_a_promotion_counts_from_when_it_was_seen():
    # The new set was early for long; the same bytes became standard on day 20.
    versions = [version(1, 19, 0, 0), version(2, 20, 5, 20)]
    assert at(versions, 19) == 1
    assert at(versions, 20) == 2


def test_a_promotion_is_not_undone_by_a_source_that_lags():
    # Day 12: somebody else still serves the old set, freshly issued.
    versions = [version(1, 20, 10, 10), version(2, 19, 12, 12)]
    assert at(versions, 13) == 1
    # Even when the new set has expired meanwhile: better stale than lower.
    assert at([version(1, 20, 10, 10, lasts=DAY), version(2, 19, 12, 12)], 13) == 1


def test_a_set_that_was_only_met_later_serves_the_time_before():
    assert at([version(1, 19, 0, 5)], 2) == 1


def test_an_archive_of_the_past_speaks_for_its_time():
    # Taken in years later, after all of them had expired.
    versions = [version(1, 15, 0, 2000), version(2, 17, 100, 2000), version(3, 19, 2000, 2000)]
    assert [at(versions, day) for day in (10, 110, 2001)] == [1, 2, 3]


def test_a_higher_number_that_is_valid_stands_in_for_an_expired_lower_one():
    # Nobody looked between day 5 and day 50; as of day 45 only the later set is valid.
    versions = [version(1, 19, 0, 5), version(2, 20, 40, 50)]
    assert at(versions, 45) == 2


def test_a_number_is_taken_alone_whoever_served_it_as_what():
    versions = [version(1, 19, 0, 0), version(2, 20, 1, None), version(3, 19, 2, None)]
    assert at(versions, 5, update=19) == 3
    assert at(versions, 5, update=20) == 2


def test_without_a_valid_version_the_nearest_is_given():
    versions = [version(1, 17, 0, 0), version(2, 17, 100, 100)]
    assert at(versions, 40) == 1
    assert at(versions, 90) == 2
    assert at(versions, 200) == 2
    assert at([version(1, 17, 50, 50)], 0) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_lists_go_by_their_issue_not_by_their_number(order):
    lists = [version(1, 9, 0, 0), version(2, 3, 10, 10)][::order]
    assert at(lists, 15, update=None) == 2


@pytest.mark.postgres
def test_both_engines_answer_the_same_as_of_every_vectors_date(path, vectors, postgres) -> None:
    intel = TrustRoots.intel()
    with postgres.database() as name:
        with closing(Database(DatabaseAddress.parse(postgres.of(name)))) as database:
            CHAIN.upgrade(database)
        with CollateralStore(path, roots=intel) as file, CollateralStore(postgres.of(name), roots=intel) as server:
            for folder in sorted((vectors / "real").glob("*/collateral.json")):
                collateral = load_bundle(folder.parent)
                verified = verify_collateral(collateral, roots=intel)
                ca = verify_chain(collateral.pck_crl_issuer_chain, roots=intel, kind="ca", step="test").ca
                tee = "tdx" if verified.tcb_info.id == "TDX" else "sgx"
                parts = take_apart(collateral, fmspc=verified.tcb_info.fmspc, ca=ca, tee=tee)
                for store in (file, server):
                    store.add(parts, seen=verified.earliest_issue, source="vectors")
            keys = file.document_keys()
            dates = {version.facts.issue_date + timedelta(days=1) for key in keys for version in file.history(key)}
            assert len(dates) > 20
            assert keys == server.document_keys()
            answers = [
                [(version.digest, version.expires) for key in keys if (version := store.in_force(key, at=at))]
                for store in (file, server)
                for at in sorted(dates)
            ]
            assert answers[: len(dates)] == answers[len(dates) :]
            assert [file.history(key) for key in keys] == [server.history(key) for key in keys]
