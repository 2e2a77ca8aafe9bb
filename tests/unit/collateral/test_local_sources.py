"""Sources without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from confcom.collateral.documents import DocumentKey, DocumentKind
from confcom.collateral.sources import BundleSource, OfflineSource
from confcom.errors import CollateralNotFound, CollateralUnavailable


@pytest.fixture
def bundle(tmp_path: Path, world) -> BundleSource:
    world.export_collateral(tmp_path / "bundle")
    return BundleSource(tmp_path / "bundle")


def test_a_bundle_is_given_whatever_platform_is_asked_for(bundle, world):
    # A verifier then says which FMSPC it has and which it should have.
    assert bundle.fetch(b"\x01" * 6, "processor", "tdx").digest() == world.publish().digest()


def test_a_bundle_of_another_number_than_asked_is_not_given(bundle, world):
    bundle.fetch(world.machine.fmspc, "platform", "sgx", update=17)
    with pytest.raises(CollateralNotFound, match="that has set 17"):
        bundle.fetch(world.machine.fmspc, "platform", "sgx", update=18)


def test_single_documents_are_held_to_their_keys(bundle, world):
    key = DocumentKey.tcb_info("sgx", world.machine.fmspc, "early")
    assert bundle.fetch_document(key).body == world.publish().tcb_info
    with pytest.raises(CollateralNotFound):
        bundle.fetch_document(DocumentKey.tcb_info("sgx", b"\x01" * 6))
    with pytest.raises(CollateralNotFound):
        bundle.fetch_document(DocumentKey(DocumentKind.QVE_IDENTITY, update="standard"))


def test_offline_asks_nobody(world):
    for ask in (
        lambda: OfflineSource().fetch(world.machine.fmspc, "platform", "sgx"),
        lambda: OfflineSource().fetch_document(DocumentKey.root_ca_crl()),
    ):
        with pytest.raises(CollateralUnavailable, match="offline") as caught:
            ask()
        assert "export" in caught.value.advice()
