"""What a person names, and the source that it stands for."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from typing import Any

import pytest

from confcom.collateral import sources
from confcom.collateral.bundle import load_bundle
from confcom.collateral.documents import DocumentKey, take_apart
from confcom.collateral.pcs_client import PcsClient
from confcom.collateral.sources import (
    AzureThim,
    BundleSource,
    OfflineSource,
    PlatformKind,
    RememberedCollateral,
    SourceOptions,
    StoreSource,
    open_source,
    source_name,
)
from confcom.errors import CollateralNotFound, CollateralUnavailable, ConfigError
from confcom.formats.quote import Quote
from confcom.protocols.pcs import Api, Dialect
from running_attestation_service import enclave_quote


@pytest.fixture
def options(world, now) -> SourceOptions:
    return SourceOptions(roots=world.trust_roots, at=now)


@pytest.mark.parametrize(
    ("name", "base", "api"),
    [
        ("intel", "https://api.trustedservices.intel.com", Api(Dialect.PCS)),
        ("https://api.trustedservices.intel.com/", "https://api.trustedservices.intel.com", Api(Dialect.PCS)),
        ("pccs", "https://localhost:8081", Api(Dialect.PCCS)),
        ("https://pccs.example/sgx/certification/v4/", "https://pccs.example", Api(Dialect.PCCS)),
        ("http://pccs.example:8081/sgx/certification/v3", "http://pccs.example:8081", Api(Dialect.PCCS, 3)),
        ("https://pccs.example/prefix/sgx/certification", "https://pccs.example/prefix", Api(Dialect.PCCS)),
        ("https://evil-trustedservices.intel.com.example", None, Api(Dialect.PCCS)),
        ("https://nottrustedservices.intel.com", None, Api(Dialect.PCCS)),
        ("https://global.acccache.azure.net", None, Api(Dialect.THIM)),
        ("https://westeurope.thim.azure.net", None, Api(Dialect.PCCS)),
    ],
)
def test_names_and_urls_of_services(options, name, base, api):
    with open_source(name, options) as source:
        assert isinstance(source, PcsClient)
        assert source.api == api
        assert base is None or source.base_url == base


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("intel", "intel"),
        ("a@b/collateral.json", "a@b/collateral.json"),
        ("https://me:secret@pccs.example:8081/x@y", "https://pccs.example:8081/x@y"),
        ("postgresql://me:secret@db.example/store?sslcert=secret", "postgresql://me@db.example/store"),
    ],
)
def test_a_password_is_no_part_of_a_sources_name(name, shown):
    assert source_name(name) == shown


def test_a_service_is_named_without_its_password(options):
    with open_source("http://me:secret@127.0.0.1:1/x", options) as source:
        assert source.source == "http://127.0.0.1:1/x"
        with pytest.raises(CollateralUnavailable) as refused:
            source.fetch_document(DocumentKey.root_ca_crl())
    assert "secret" not in f"{refused.value} {refused.value.advice()}"


def test_azure_by_name(options):
    with open_source("thim", options) as source:
        assert isinstance(source, AzureThim)


@pytest.mark.parametrize("name", ["intel", "pccs", "thim", "https://pccs.example"])
def test_offline_no_service_is_asked(world, now, name):
    with open_source(name, SourceOptions(roots=world.trust_roots, at=now, offline=True)) as source:
        assert isinstance(source, OfflineSource)


def test_a_store_answers_as_of_the_time(store, address, world, now, options):
    published = world.publish()
    store.add(take_apart(published, fmspc=world.machine.fmspc, ca="platform", tee="sgx"), seen=now, source="x")
    with open_source(address, options) as source:
        assert isinstance(source, StoreSource)
        assert source.fetch(world.machine.fmspc, "platform", "sgx").digest() == published.digest()
        assert source.fetch_document(DocumentKey.root_ca_crl()).body == published.root_ca_crl


def test_a_folder_and_a_file_are_bundles(tmp_path, options):
    (tmp_path / "collateral.json").write_text("{}")
    for name in (tmp_path, tmp_path / "collateral.json"):
        with open_source(str(name), options) as source:
            assert isinstance(source, BundleSource)


def test_what_is_nothing_is_named(tmp_path, options):
    for name in ("missing", "x" * 300):
        with pytest.raises(CollateralNotFound, match="no collateral at"), open_source(str(tmp_path / name), options):
            pass
    with pytest.raises(CollateralNotFound, match="x cannot be read: File name too long"):
        load_bundle(tmp_path / ("x" * 300))
    with pytest.raises(CollateralNotFound, match="no collateral at"), open_source(str(tmp_path / "missing"), options):
        pass


@pytest.mark.parametrize("name", ["ftp://x", "https://x/sgx/certification/v2", "https://"])
def test_a_url_that_cannot_be_asked_is_a_configuration_error(options, name):
    with pytest.raises(ConfigError), open_source(name, options):
        pass


class OfPlatforms(RememberedCollateral):
    """Its quotes are the platforms themselves."""

    def platform(self, quote: Any) -> PlatformKind:
        return quote


def test_what_a_clock_that_was_ahead_asked_for_is_asked_for_again(tmp_path, world, options, now) -> None:
    world.export_collateral(tmp_path)
    remembered = RememberedCollateral(str(tmp_path), options)
    quote, ahead = Quote.parse(enclave_quote(world)), now + timedelta(days=20)
    remembered.for_quote(quote, ahead)
    platform = remembered.platform(quote)
    assert remembered.remembered(platform, ahead + timedelta(minutes=59)) is not None
    assert remembered.remembered(platform, now) is None
    remembered.refresh(now)
    assert remembered.remembered(platform, now) is not None


def test_threads_that_ask_for_unknown_platforms_do_not_disturb_each_other(options, monkeypatch) -> None:
    monkeypatch.setattr(sources, "MAX_PLATFORMS", 2)
    remembered, refused = OfPlatforms("pccs", options), []
    interval = sys.getswitchinterval()

    def ask(thread: int) -> None:
        for number in range(2000):
            try:
                remembered.held((bytes([0, 0, thread, 0, *number.to_bytes(2)]), "platform", "sgx"))
            except CollateralNotFound:
                refused.append(number)

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(refused) == 8 * 2000
