"""Signing keys: published before they sign, for as long as their tokens live, by every replica; revoked at once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from confcom.errors import ConfigError, DatabaseUnavailable
from confcom.services.attestation import signing_keys
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.services.attestation.signing_keys import (
    LIFETIME,
    RENEW_BEFORE,
    RENEWING,
    KeptKeys,
    KeyFolder,
    make_key,
    make_pair,
)
from running_collateral_service import Clock

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
OVERLAP = timedelta(hours=1)
TOKENS = timedelta(hours=8)


class Replica:
    """The keys of a service with a folder of its own, over a store."""

    def __init__(
        self,
        folder: Path,
        store: AttestationStore,
        clock: Clock,
        *,
        simulated: bool = False,
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        self.folder = folder
        self.clock = clock
        source = KeyFolder(folder, simulated=simulated, clock=clock, alone=alone)
        self.keys = KeptKeys(source, store, overlap=OVERLAP, simulated=simulated, clock=clock)

    def after(self, time: timedelta) -> Replica:
        self.clock.now += time
        self.keys.look()
        return self

    def signs(self, algorithm: str = "RS256") -> str:
        return self.keys().of(algorithm).key_id

    def published(self) -> list[object]:
        return [jwk["kid"] for jwk in self.keys().published]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AttestationStore]:
    opened = AttestationStore.open(tmp_path / "store.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def replica(tmp_path: Path, store: AttestationStore) -> Replica:
    return Replica(tmp_path / "keys", store, Clock(NOW))


def test_an_empty_folder_gets_a_pair_rsa_first(replica: Replica) -> None:
    assert [jwk["kty"] for jwk in replica.keys().published] == ["RSA", "EC"]
    assert replica.published() == [replica.signs("RS256"), replica.signs("ES256")]
    assert {path.stat().st_mode & 0o777 for path in replica.folder.glob("*.pem")} == {0o600}


def test_a_new_key_is_published_before_it_signs(replica: Replica) -> None:
    first = replica.signs()
    replica.after(timedelta(days=1))
    make_key(replica.folder, "rsa", replica.clock.now, simulated=False)
    between = replica.after(timedelta())
    assert len(between.published()) == 3
    assert between.signs() == first
    almost = replica.after(OVERLAP - timedelta(seconds=1))
    assert almost.signs() == first
    second = replica.after(timedelta(seconds=1)).signs()
    assert second != first
    assert {first, second} < set(replica.published())


def test_a_key_that_was_made_long_ago_is_new_where_it_is_put(replica: Replica) -> None:
    first = replica.signs()
    make_key(replica.folder, "rsa", NOW + timedelta(days=10), simulated=False)
    replica.after(timedelta(days=20))
    assert replica.signs() == first
    assert replica.after(OVERLAP).signs() != first


def test_a_key_of_the_future_does_not_sign(replica: Replica) -> None:
    first = replica.signs()
    make_key(replica.folder, "rsa", NOW + timedelta(days=10), simulated=False)
    assert replica.after(OVERLAP * 3).signs() == first


def test_a_key_that_was_taken_away_is_published_until_its_tokens_expired(replica: Replica) -> None:
    first = replica.signs()
    old = list(replica.folder.glob("*-rsa.pem"))
    replica.after(timedelta(days=1))
    make_key(replica.folder, "rsa", replica.clock.now, simulated=False)
    second = replica.after(timedelta()).after(OVERLAP).signs()
    for file in old:
        file.unlink()
    assert replica.after(timedelta()).signs() == second
    assert first in replica.after(TOKENS).published()
    assert first not in replica.after(timedelta(minutes=15)).published()
    assert second in replica.published()


def test_a_key_taken_away_before_the_next_one_settled_leaves_no_gap(replica: Replica) -> None:
    for file in replica.folder.glob("*.pem"):
        file.unlink()
    make_pair(replica.folder, NOW, simulated=False)
    replica.after(timedelta(minutes=1))
    assert replica.keys.problem == ""
    assert replica.signs() in replica.published()


def test_replicas_that_make_keys_in_the_same_second_do_not_write_into_each_others(tmp_path: Path) -> None:
    others = tmp_path / f"{NOW:%Y%m%dT%H%M%SZ}-ec.part"
    others.write_text("half a key")
    made = make_key(tmp_path, "ec", NOW, simulated=False)
    assert others.read_text() == "half a key"
    assert (made.stat().st_mode & 0o777, sorted(tmp_path.iterdir())) == (0o600, sorted([made, others]))


def test_a_key_that_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        signing_keys.make_key(tmp_path, "ec", datetime(2026, 11, 30, tzinfo=UTC), simulated=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_lost_its_keys_gets_no_others(replica: Replica) -> None:
    first, published = replica.signs(), replica.published()
    away = replica.folder.rename(replica.folder.parent / "away")
    replica.after(timedelta(days=1))
    assert replica.keys.problem == f"the folder of signing keys is empty: {replica.folder}"
    assert (replica.signs(), replica.published()) == (first, published)
    replica.folder.rmdir()
    away.rename(replica.folder)
    assert replica.after(timedelta(minutes=1)).keys.problem == ""


def test_a_revoked_key_neither_signs_nor_is_published(replica: Replica, store: AttestationStore) -> None:
    first = replica.signs()
    make_key(replica.folder, "rsa", NOW + timedelta(seconds=1), simulated=False)
    replica.after(timedelta(minutes=1))
    assert store.revoke_key(first, replica.clock.now)
    second = replica.after(timedelta()).signs()
    assert second != first
    assert first not in replica.published()
    assert store.revoke_key(second, replica.clock.now)
    replica.after(timedelta())
    assert replica.keys.problem == "no valid RS256 key is among the signing keys"
    with pytest.raises(ConfigError, match="no valid RS256 key"):
        replica.signs()
    assert replica.signs("ES256") in replica.published()
    # It stays so: also for a replica that starts, and one that has the file anew.
    with pytest.raises(ConfigError, match="no valid RS256 key"):
        Replica(replica.folder, store, replica.clock)
    assert not store.revoke_key("unknown", NOW)


def test_replicas_publish_each_others_keys(tmp_path: Path, store: AttestationStore, replica: Replica) -> None:
    other_store = AttestationStore.open(tmp_path / "store.sqlite")
    other = Replica(tmp_path / "other", other_store, replica.clock)
    replica.after(timedelta(seconds=5))
    assert set(replica.published()) == set(other.published())
    assert len(replica.published()) == 4
    assert other.signs() in replica.published()
    other_store.close()


def test_replicas_of_one_folder_change_keys_at_one_time(store: AttestationStore, replica: Replica) -> None:
    first = replica.signs()
    make_key(replica.folder, "rsa", NOW + timedelta(seconds=1), simulated=False)
    replica.after(timedelta(minutes=30))
    late = Replica(replica.folder, store, replica.clock)  # sees the file half an hour after the first
    assert late.signs() == first
    late.after(OVERLAP)
    second = replica.after(timedelta()).signs()
    assert late.signs() == second != first


def test_a_folder_that_became_unusable_is_reported_and_keeps_its_keys(replica: Replica) -> None:
    published = replica.published()
    (replica.folder / "bad.pem").write_bytes(b"no key")
    replica.after(timedelta(minutes=1))
    assert "bad.pem" in replica.keys.problem
    assert replica.published() == published
    (replica.folder / "bad.pem").unlink()
    assert replica.after(timedelta()).keys.problem == ""
    shutil.rmtree(replica.folder)
    replica.folder.write_text("no folder")
    assert "cannot be used" in replica.after(timedelta(minutes=1)).keys.problem
    assert replica.published() == published


def test_the_two_worlds_share_no_keys(tmp_path: Path, store: AttestationStore) -> None:
    Replica(tmp_path / "keys", store, Clock(NOW), simulated=True)
    with pytest.raises(ConfigError, match="another world"):
        Replica(tmp_path / "keys", store, Clock(NOW))


@pytest.mark.parametrize("content", [b"", b"-----BEGIN", b"\0" * 70_000])
def test_a_file_that_is_no_key_is_named(tmp_path: Path, store: AttestationStore, content: bytes) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "bad.pem").write_bytes(content)
    reason = "has more than 65536 bytes" if len(content) > 65536 else "is no signing key: no PEM stands there"
    with pytest.raises(ConfigError, match=rf"bad\.pem {reason}$"):
        Replica(tmp_path / "keys", store, Clock(NOW))


def test_keys_sign_no_longer_when_the_store_has_been_away(
    replica: Replica, store: AttestationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing = replica.signs()
    monkeypatch.setattr(signing_keys, "MAX_AGE", 0.0)
    with pytest.raises(DatabaseUnavailable, match="may have been revoked"):
        replica.signs()
    assert signing in replica.published()  # tokens that were signed are verified all the same
    monkeypatch.undo()
    assert replica.after(timedelta()).signs() == signing


def test_one_replica_makes_the_successors_of_keys_that_end(tmp_path: Path, store: AttestationStore) -> None:
    clock = Clock(NOW)
    other = AttestationStore.open(tmp_path / "store.sqlite")
    one, two = (
        Replica(tmp_path / "keys", each, clock, alone=partial(each.leases.take, "keys", clock.now, RENEWING))
        for each in (store, other)
    )
    first = one.signs()
    clock.now += LIFETIME - RENEW_BEFORE - timedelta(hours=1)
    assert len(one.after(timedelta()).published()) == 2
    clock.now += timedelta(hours=1)
    one.keys.look()
    two.keys.look()
    assert len(one.published()) == len(two.after(timedelta()).published()) == 4
    assert one.signs() == first
    assert one.after(OVERLAP).signs() == two.after(timedelta()).signs() != first
    other.close()


def test_a_clock_that_was_ahead_for_a_while_leaves_the_folder_with_successors(replica: Replica) -> None:
    first = replica.signs()
    replica.after(5 * LIFETIME)
    assert replica.after(-5 * LIFETIME).signs() == first
    # Those that were made then are of no use now, and stand in no one's way.
    replica.after(LIFETIME - RENEW_BEFORE)
    assert replica.after(OVERLAP).signs() != first
    assert replica.after(RENEW_BEFORE).keys.problem == ""


def test_a_replica_that_may_not_make_keys_makes_none(tmp_path: Path, store: AttestationStore) -> None:
    clock = Clock(NOW)
    replica = Replica(tmp_path / "keys", store, clock, alone=lambda: False)
    clock.now += LIFETIME - timedelta(days=1)
    assert len(replica.after(timedelta()).published()) == 2
    assert replica.keys.problem == ""
