"""Gramine's pseudo-files: bytes written and read, faults named by file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from confcom.errors import ConfigError, FormatError, PlatformError, PlatformUnavailable
from confcom.formats.quote import Quote
from confcom.platforms.quoting import MAX_GRAMINE_TYPE, EnclaveQuoteSource, GramineQuoteSource, attestation_type

DATA = bytes(range(64))


@pytest.fixture
def attestation(tmp_path: Path) -> Path:
    """`/dev/attestation` as files, before anything was written."""
    folder = tmp_path / "dev/attestation"
    folder.mkdir(parents=True)
    (folder / "attestation_type").write_text("dcap")
    (folder / "user_report_data").write_bytes(bytes(64))
    return folder


@pytest.fixture
def make_quote(world, enclave) -> Callable[[bytes], bytes]:
    source = EnclaveQuoteSource(world.platform, enclave)
    return lambda data: source.quote(data).quote


@pytest.mark.promise("M13")
def test_report_data_goes_in_and_the_quote_comes_out(attestation: Path, make_quote, tmp_path: Path) -> None:
    quote = make_quote(DATA)
    (attestation / "quote").write_bytes(quote)
    assert GramineQuoteSource(tmp_path).quote(DATA).quote == quote
    assert (attestation / "user_report_data").read_bytes() == DATA


def test_padding_is_cut_off(attestation: Path, make_quote, tmp_path: Path) -> None:
    quote = make_quote(DATA)
    (attestation / "quote").write_bytes(quote.ljust(8192, b"\0"))
    assert GramineQuoteSource(tmp_path).quote(DATA).quote == quote


def test_a_quote_over_other_data_is_not_handed_out(attestation: Path, make_quote, tmp_path: Path) -> None:
    (attestation / "quote").write_bytes(make_quote(bytes(64)))
    with pytest.raises(PlatformError, match="quote is over other report data") as caught:
        GramineQuoteSource(tmp_path).quote(DATA)
    assert caught.value.retryable


@pytest.mark.promise("M13")
def test_threads_get_the_quotes_that_they_asked_for(attestation: Path, make_quote, tmp_path: Path) -> None:
    """A stand-in with Gramine's memory: one place for report data, and each read of `quote` makes a new one."""
    for name in ("user_report_data", "quote"):
        (attestation / name).unlink(missing_ok=True)
        os.mkfifo(attestation / name)
    count = 12

    def gramine() -> None:
        for _ in range(count):
            with (attestation / "user_report_data").open("rb") as file:
                data = file.read(64)
            with (attestation / "quote").open("wb") as file:
                file.write(make_quote(data))

    asked = [number.to_bytes(64, "big") for number in range(count)]
    got: dict[bytes, bytes] = {}

    def ask(data: bytes) -> None:
        got[data] = Quote.parse(GramineQuoteSource(tmp_path).quote(data).quote).report_data

    threads = [threading.Thread(target=gramine, daemon=True)]
    threads += [threading.Thread(target=ask, args=(data,), daemon=True) for data in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert got == {data: data for data in asked}


@pytest.mark.parametrize("name", ["user_report_data", "quote"])
def test_a_missing_file_is_named_with_what_to_do(name: str, attestation: Path, make_quote, tmp_path: Path) -> None:
    (attestation / "quote").write_bytes(make_quote(DATA))
    (attestation / name).unlink()
    with pytest.raises(PlatformUnavailable, match=f"dev/attestation/{name}: No such file") as caught:
        GramineQuoteSource(tmp_path).quote(DATA)
    assert "/var/run/aesmd" in caught.value.advice()
    assert not (attestation / "user_report_data").exists() or name == "quote"


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff" + bytes(5000), bytes(200_000)])
def test_what_is_no_quote_is_a_format_error(content: bytes, attestation: Path, tmp_path: Path) -> None:
    (attestation / "quote").write_bytes(content)
    with pytest.raises(FormatError):
        GramineQuoteSource(tmp_path).quote(DATA)


def test_gramine_gives_no_qe_report(attestation: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="QE's report"):
        GramineQuoteSource(tmp_path).quote(DATA, nonce=bytes(16))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_has_64_bytes(size: int, attestation: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="64 bytes"):
        GramineQuoteSource(tmp_path).quote(bytes(size))
    assert (attestation / "user_report_data").read_bytes() == bytes(64)


def test_the_attestation_type_is_read_within_bounds(attestation: Path, tmp_path: Path) -> None:
    assert attestation_type(tmp_path) == "dcap"
    (attestation / "attestation_type").write_bytes(b"\xff" * 1_000_000)
    assert attestation_type(tmp_path) == "\ufffd" * MAX_GRAMINE_TYPE


def test_where_gramine_is_not_there_is_no_type(tmp_path: Path) -> None:
    assert attestation_type(tmp_path) is None
    (tmp_path / "dev").write_text("a file where a folder should be")
    assert attestation_type(tmp_path) is None
