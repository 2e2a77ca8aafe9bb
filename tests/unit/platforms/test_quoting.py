"""Which mode a process is in, said in one line; decided once, never both."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest

from confcom.errors import ConfigError, PlatformUnavailable
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.interface import Platform, ReportSource
from confcom.platforms.quoting import (
    EnclaveQuoteSource,
    GramineQuoteSource,
    ModeDecision,
    ProcessMode,
    QuoteMode,
    RequestedMode,
    choose_mode,
    open_quote_source,
    process_mode,
)

SET = {"SGX_AESM_ADDR": "1"}


def host_with(folder: Path, attestation_type: str | None) -> Path:
    if attestation_type is not None:
        (folder / "dev/attestation").mkdir(parents=True)
        (folder / "dev/attestation/attestation_type").write_text(attestation_type)
    return folder


@pytest.mark.promise("M8")
@pytest.mark.promise("M9")
@pytest.mark.parametrize(
    ("requested", "environ", "gramine", "mode", "words"),
    [
        ("auto", {}, None, QuoteMode.IN_PROC, "SGX_AESM_ADDR is not set"),
        ("auto", SET, None, QuoteMode.OUT_OF_PROC, "SGX_AESM_ADDR is set"),
        ("auto", {"SGX_AESM_ADDR": "0"}, None, QuoteMode.OUT_OF_PROC, "SGX_AESM_ADDR is set"),
        ("auto", {"SGX_AESM_ADDR": ""}, None, QuoteMode.OUT_OF_PROC, "to the empty string; any value counts"),
        ("auto", {"sgx_aesm_addr": "1"}, None, QuoteMode.IN_PROC, "SGX_AESM_ADDR is not set"),
        ("in-proc", {}, None, QuoteMode.IN_PROC, "it was asked for"),
        ("out-of-proc", {}, None, QuoteMode.OUT_OF_PROC, "it was asked for"),
        ("out-of-proc", SET, None, QuoteMode.OUT_OF_PROC, "SGX_AESM_ADDR is set"),
        ("auto", {}, "dcap", QuoteMode.GRAMINE, "Gramine's attestation type is 'dcap'"),
        ("auto", SET, "dcap\n", QuoteMode.GRAMINE, "Gramine's attestation type is 'dcap'"),
        ("out-of-proc", {}, "dcap", QuoteMode.GRAMINE, "Gramine's attestation type is 'dcap'"),
        ("auto", SET, "none", QuoteMode.OUT_OF_PROC, "SGX_AESM_ADDR is set"),
        ("auto", {}, "none", QuoteMode.IN_PROC, "Gramine's attestation type is 'none'"),
    ],
)
def test_the_mode_follows_gramine_then_the_presence_of_the_variable(
    requested: RequestedMode,
    environ: Mapping[str, str],
    gramine: str | None,
    mode: QuoteMode,
    words: str,
    tmp_path: Path,
) -> None:
    decision = choose_mode(requested, environ, host_with(tmp_path, gramine))
    assert decision.mode is mode
    assert words in decision.reason
    assert "\n" not in str(decision)
    assert decision.reason in str(decision)


@pytest.mark.promise("M8")
@pytest.mark.parametrize(
    ("environ", "gramine", "remedy"),
    [(SET, None, "Remove SGX_AESM_ADDR"), ({"SGX_AESM_ADDR": ""}, None, "empty value"), ({}, "dcap", "auto")],
)
def test_in_proc_against_the_signs_is_a_clear_error(
    environ: Mapping[str, str], gramine: str | None, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="in-proc was asked for, but") as caught:
        choose_mode("in-proc", environ, host_with(tmp_path, gramine))
    assert remedy in caught.value.advice()


@pytest.mark.promise("M8")
def test_a_process_decides_once_and_never_both(tmp_path: Path) -> None:
    mode = ProcessMode()
    assert mode.decision is None
    first = mode.decide("auto", {}, tmp_path)
    # As with Intel's library, what the environment says later has no effect.
    assert mode.decide("auto", SET, tmp_path) is first
    assert mode.decide("in-proc", SET, tmp_path) is first
    with pytest.raises(ConfigError, match="this process has decided already: quotes in-proc"):
        mode.decide("out-of-proc", SET, tmp_path)
    assert mode.decision is first


def test_an_out_of_proc_process_does_not_change_its_mind(tmp_path: Path) -> None:
    mode = ProcessMode()
    mode.decide("out-of-proc", {}, tmp_path)
    with pytest.raises(ConfigError, match="decided already: quotes out-of-proc") as caught:
        mode.decide("in-proc", {}, tmp_path)
    assert "never both" in caught.value.advice()


def test_a_refused_request_decides_nothing(tmp_path: Path) -> None:
    mode = ProcessMode()
    with pytest.raises(ConfigError):
        mode.decide("in-proc", SET, tmp_path)
    assert mode.decide("auto", {}, tmp_path).mode is QuoteMode.IN_PROC


def test_threads_that_decide_at_once_get_one_decision(tmp_path: Path) -> None:
    mode = ProcessMode()
    start = threading.Barrier(8)
    found: list[ModeDecision] = []

    def decide(environ: Mapping[str, str]) -> None:
        start.wait()
        found.append(mode.decide("auto", environ, tmp_path))

    threads = [threading.Thread(target=decide, args=(SET if number % 2 else {},)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(decision) for decision in found}) == 1


def test_there_is_one_mode_per_process() -> None:
    assert process_mode() is process_mode()


@pytest.mark.parametrize("mode", list(QuoteMode))
@pytest.mark.parametrize("requested", get_args(RequestedMode))
def test_gramine_counts_as_out_of_proc(mode: QuoteMode, requested: RequestedMode) -> None:
    expected = requested == "auto" or (requested == "in-proc") == (mode is QuoteMode.IN_PROC)
    assert ModeDecision(mode, "a reason").fulfils(requested) is expected


def test_an_unreadable_attestation_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev/attestation/attestation_type").mkdir(parents=True)
    with pytest.raises(PlatformUnavailable, match="dev/attestation/attestation_type"):
        choose_mode("auto", {}, tmp_path)


@pytest.mark.promise("M8")
def test_every_mode_opens_its_own_source_and_nothing_else(world, enclave, tmp_path: Path) -> None:
    def never_platform() -> Platform:
        raise AssertionError("this mode needs no platform inside the process")

    def never_enclave() -> ReportSource:
        raise AssertionError("under Gramine the process is the enclave")

    gramine = ModeDecision(QuoteMode.GRAMINE, "")
    source = open_quote_source(gramine, enclave=never_enclave, in_proc=never_platform, host=tmp_path)
    assert isinstance(source, GramineQuoteSource)

    outside = ModeDecision(QuoteMode.OUT_OF_PROC, "")
    socket = tmp_path / "aesm.socket"
    source = open_quote_source(outside, enclave=lambda: enclave, in_proc=never_platform, socket=socket, simulated=True)
    assert isinstance(source, EnclaveQuoteSource)
    assert isinstance(source.platform, AesmPlatform)
    assert source.platform.simulated
    with pytest.raises(PlatformUnavailable, match=str(socket)):
        source.quote(bytes(64))

    inside = ModeDecision(QuoteMode.IN_PROC, "")
    source = open_quote_source(inside, enclave=lambda: enclave, in_proc=lambda: world.platform)
    assert isinstance(source, EnclaveQuoteSource)
    assert source.platform is world.platform
