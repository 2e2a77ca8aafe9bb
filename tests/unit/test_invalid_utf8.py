"""JSON with bytes that are no UTF-8 is malformed input wherever JSON is read; never an error of the decoder's own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confcom.appraisal.inspection.explain import inspect
from confcom.cli.policy import read_recorded
from confcom.collateral.bundle import from_json
from confcom.errors import ConfcomError
from confcom.services.attestation.administrators import _certificate_request
from confcom.tokens.azure import AzureError
from confcom.tokens.verification import KeySet


def _key_set(data: bytes) -> None:
    KeySet.parse(data, fetched=datetime(2026, 1, 1, tzinfo=UTC), max_age=timedelta(days=1))


def _policy_certificate(data: bytes) -> None:
    _certificate_request(data, "policyCertificateToAdd")


def _recorded(data: bytes) -> None:
    path = Path("recorded")
    path.write_bytes(data)
    list(read_recorded(path, None))


@pytest.mark.parametrize(
    "read",
    [inspect, lambda data: from_json(data, source="a bundle"), _key_set, _policy_certificate, _recorded],
    ids=["inspect", "bundle", "key set", "policy certificate", "recorded evidence"],
)
@pytest.mark.parametrize("data", [b'{"token": "\xff"}', b'{"keys": ["\xc3\x28"]}', b'{"\xed\xa0\x80": 1}', b'"\xff"'])
def test_it_is_refused_with_a_sentence(
    read: Callable[[bytes], object], data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfcomError, AzureError)):
        read(data)
