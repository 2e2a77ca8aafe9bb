"""The store: verified things in, what was in force out, everything remembered, nothing lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import pki_builder as pki
from confcom.appraisal.collateral import verify_collateral
from confcom.collateral.bundle import load_bundle
from confcom.collateral.documents import Document, DocumentKey, take_apart
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralNotFound, SignatureError, UntrustedRootError
from confcom.pki.chain import TrustRoot, TrustRoots, verify_chain
from confcom.simulator.machine import MachineTcb
from confcom.simulator.world import SimulatedWorld

DAY = timedelta(days=1)


def documents(world: SimulatedWorld, update="standard", ca="platform") -> tuple[Document, ...]:
    fmspc = world.machine.fmspc
    return take_apart(world.pcs.fetch(fmspc, ca, "sgx"), fmspc=fmspc, ca=ca, tee="sgx", update=update)


def keep(store: CollateralStore, world: SimulatedWorld, seen: datetime, update="standard", source="pcs") -> int:
    return store.add(documents(world, update), seen=seen, source=source)


def in_force(store: CollateralStore, world: SimulatedWorld, at: datetime, update="standard"):
    return store.collateral(world.machine.fmspc, "platform", "sgx", at=at, update=update)


def promote(world: SimulatedWorld) -> None:
    tcb = world.machine.tcb
    raised = MachineTcb((tcb.sgx_components[0] + 1, *tcb.sgx_components[1:]), tcb.pce_svn)
    world.authority.raise_tcb(raised, advisory_ids=["SIMULATED-SA-7"])


def test_what_went_in_comes_out_byte_for_byte(store, world, now):
    published = world.publish()
    assert keep(store, world, now) == 4
    found = in_force(store, world, now)
    assert replace(found, source=published.source) == published
    verify_collateral(found, roots=world.trust_roots)


def test_identical_bytes_are_one_version(store, world, now):
    key = DocumentKey.tcb_info("sgx", world.machine.fmspc)
    keep(store, world, now)
    assert keep(store, world, now + DAY, source="pccs") == 0
    assert keep(store, world, now + 2 * DAY) == 0
    assert keep(store, world, now - DAY) == 0
    (version,) = store.history(key)
    assert [(sighting.source, sighting.seen) for sighting in version.sightings] == [
        ("pcs", now - DAY), ("pcs", now), ("pccs", now + DAY), ("pcs", now + 2 * DAY)
    ]  # fmt: skip
    assert store.load(version) == documents(world)[0]
    assert version.digest == documents(world)[0].digest()


def test_every_version_is_kept_and_found_by_time(store, world, now):
    published = {}
    for day in range(0, 100, 10):
        published[day] = world.publish(now + day * DAY)
        keep(store, world, now + day * DAY)
    assert len(store.history(DocumentKey.tcb_info("sgx", world.machine.fmspc))) == 10
    for day in (0, 5, 8.9, 10, 34, 98, 118):
        found = in_force(store, world, now + day * DAY)
        assert found.tcb_info == published[min(day // 10 * 10, 90)].tcb_info
        assert verify_collateral(found, roots=world.trust_roots).stale(now + day * DAY) == ()


def test_out_of_its_time_the_nearest_is_given_and_stale(store, world, now):
    keep(store, world, now)
    for at in (now - 40 * DAY, now + 60 * DAY):
        found = verify_collateral(in_force(store, world, at), roots=world.trust_roots)
        assert {window.what for window in found.stale(at)} >= {"TCB info", "QE identity", "PCK CRL"}


def test_standard_early_and_pinned_sets_side_by_side(store, world, now):
    keep(store, world, now)
    before = world.publish()
    promote(world)
    keep(store, world, now, update="early")
    after = world.publish()
    assert in_force(store, world, now).tcb_info == before.tcb_info
    assert in_force(store, world, now, "early").tcb_info == after.tcb_info
    assert in_force(store, world, now, 17).qe_identity == before.qe_identity
    assert in_force(store, world, now, 18).qe_identity == after.qe_identity
    with pytest.raises(CollateralNotFound, match="set 19"):
        in_force(store, world, now, 19)
    # Promotion day: the early set becomes the standard one, and the past stays as it was.
    keep(store, world, now + 5 * DAY)
    assert in_force(store, world, now + 5 * DAY).tcb_info == after.tcb_info
    assert in_force(store, world, now + 4 * DAY).tcb_info == before.tcb_info


def test_one_bad_document_keeps_all_of_its_company_out(store, world, now):
    good = documents(world)
    bad = replace(good[3], body=good[3].body[:-1] + bytes([good[3].body[-1] ^ 1]))
    with pytest.raises(SignatureError):
        store.add([*good[:3], bad], seen=now, source="x")
    assert store.document_keys() == ()


def test_only_what_leads_to_the_roots_goes_in_or_comes_out(address, store, world, now):
    stranger = SimulatedWorld.from_seed(b"another world's seed", now=now)
    with pytest.raises(UntrustedRootError):
        keep(store, stranger, now)
    keep(store, world, now)
    with CollateralStore(address, roots=TrustRoots.intel()) as intel_only:
        assert intel_only.document_keys() == ()
        assert intel_only.history(DocumentKey.root_ca_crl()) == ()
        with pytest.raises(CollateralNotFound):
            in_force(intel_only, world, now)


def test_the_parts_of_two_roots_are_never_mixed(address, world, now):
    other = SimulatedWorld.from_seed(b"another world's seed", now=now + DAY)
    fmspc = b"\x01\x02\x03\x04\x05\x06"
    other.authority.add_tcb_info(fmspc)
    both = TrustRoots((*world.trust_roots.roots, *other.trust_roots.roots))
    with CollateralStore(address, roots=both) as store:
        keep(store, world, now)
        collateral = other.pcs.fetch(fmspc, "platform", "sgx")
        store.add(take_apart(collateral, fmspc=fmspc, ca="platform", tee="sgx"), seen=now, source="o")
        at = now + 2 * DAY
        ours = store.collateral(world.machine.fmspc, "platform", "sgx", at=at)
        theirs = store.collateral(fmspc, "platform", "sgx", at=at)
        verify_collateral(ours, roots=world.trust_roots)
        verify_collateral(theirs, roots=other.trust_roots)


def test_what_is_missing_is_named_with_the_command_that_fetches_it(store, world, now):
    store.add(documents(world)[2:], seen=now, source="x")
    with pytest.raises(CollateralNotFound) as caught:
        in_force(store, world, now, "early")
    assert "no SGX TCB info of FMSPC" in str(caught.value)
    assert "no QE identity (early set)" in str(caught.value)
    assert "CRL" not in str(caught.value)
    assert f"--fmspc {world.machine.fmspc.hex()} --ca platform --tee sgx --update early" in caught.value.advice()
    with pytest.raises(CollateralNotFound, match="processor"):
        store.document(DocumentKey.pck_crl("processor"), at=now)


def test_documents_are_listed_once_for_each_set(store, world, now):
    keep(store, world, now)
    keep(store, world, now, update="early")
    keep(store, world, now, update=17)
    fmspc = world.machine.fmspc
    assert set(store.document_keys()) == {
        *(DocumentKey.tcb_info("sgx", fmspc, update) for update in ("standard", "early", 17)),
        *(DocumentKey.qe_identity("sgx", update) for update in ("standard", "early", 17)),
        DocumentKey.pck_crl("platform"),
        DocumentKey.root_ca_crl(),
    }
    version = store.in_force(DocumentKey.tcb_info("sgx", fmspc, 17), at=now)
    assert version is not None
    assert {sighting.served_as for sighting in version.sightings} == {"standard", "early", "17"}
    assert store.in_force(DocumentKey.tcb_info("sgx", fmspc, 18), at=now) is None


def test_readers_and_writers_do_not_wait_for_each_other(address, store, world, now):
    keep(store, world, now)
    failures = []

    def write() -> None:
        with CollateralStore(address, roots=world.trust_roots) as mine:
            for second in range(20):
                mine.add(documents(world), seen=now + timedelta(seconds=second), source=threading.current_thread().name)

    def read() -> None:
        try:
            for _ in range(60):
                in_force(store, world, now)
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (write, read, write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    (version,) = store.history(DocumentKey.root_ca_crl())
    assert len(version.sightings) == 1 + 2 * 20


def test_two_processes_can_make_the_store_at_once(tmp_path, world, now):
    path = tmp_path / "new.sqlite"
    stores = []
    threads = [
        threading.Thread(target=lambda: stores.append(CollateralStore(path, roots=world.trust_roots))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    assert keep(stores[0], world, now) == 4
    assert all(in_force(store, world, now) for store in stores)
    for store in stores:
        store.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.sqlite"]


def test_five_kills_lose_nothing_that_was_acknowledged(tmp_path):
    """The short form of benchmarks/store_crash.py."""
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store_crash", "--kills", "5", "--folder", str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout
    assert "0 lost, 0 torn" in done.stdout


def test_the_file_belongs_to_its_owner(path, world):
    CollateralStore(path, roots=world.trust_roots).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_acknowledged_write_is_synced(path, world):
    store = CollateralStore(path, roots=world.trust_roots)
    with store.database.change() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    raw = sqlite3.connect(path)
    tables = raw.execute(
        "SELECT name, strict FROM pragma_table_list WHERE type = 'table' AND name NOT LIKE 'sqlite_%' "
        "AND name NOT IN ('alembic_version', 'lease')"
    )
    assert {strict for _, strict in tables} == {1}
    raw.close()
    store.close()


def test_real_collateral_goes_in_and_comes_out(address, vectors):
    intel = TrustRoots.intel()
    kept = 0
    with CollateralStore(address, roots=intel) as store:
        for folder in sorted((vectors / "real").glob("*/collateral.json"))[::4]:
            collateral = load_bundle(folder.parent)
            verified = verify_collateral(collateral, roots=intel)
            ca = verify_chain(collateral.pck_crl_issuer_chain, roots=intel, kind="ca", step="test").ca
            tee = "tdx" if verified.tcb_info.id == "TDX" else "sgx"
            parts = take_apart(collateral, fmspc=verified.tcb_info.fmspc, ca=ca, tee=tee)
            store.add(parts, seen=verified.earliest_issue, source=folder.parent.name)
            assert {part.body for part in parts} <= {
                store.load(version).body for part in parts for version in store.history(part.key)
            }
            kept += 1
        store.check()
    assert kept > 20


def test_a_list_with_a_number_of_20_bytes_is_kept(address: str) -> None:
    roots = TrustRoots((TrustRoot.from_pem(pki.pem(pki.ROOT_CERTIFICATE)),))
    key, lists = DocumentKey.root_ca_crl(), [pki.crl(), pki.crl(number=(1 << 159) + 1)]
    with CollateralStore(address, roots=roots) as store:
        assert store.add([Document(key, one) for one in lists], seen=pki.ISSUE, source="tests") == 2
        assert store.document(key, at=pki.ISSUE).body == lists[1]
