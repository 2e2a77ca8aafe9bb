from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest

from confcom.errors import ConfigError, FormatError
from confcom.simulator.machine import DEFAULT_TCB, MAX_MACHINE_FILE, MachineFile, PckCa

CREATED = datetime(2026, 11, 21, tzinfo=UTC)
SEED = bytes(range(32))
FILE = MachineFile(seed=SEED, created=CREATED)


def test_what_was_written_is_read_again(tmp_path):
    file = MachineFile(
        seed=SEED,
        created=CREATED,
        index=3,
        tcb=DEFAULT_TCB.with_component(2, 200),
        pck_ca=PckCa.PROCESSOR,
        report_scheme="sdk-simulation",
    )
    file.write(tmp_path / "machine.json")
    assert MachineFile.read(tmp_path / "machine.json") == file
    machine = file.machine()
    assert (machine.index, machine.pck_ca, machine.report_scheme.name) == (3, PckCa.PROCESSOR, "sdk-simulation")
    assert machine.tcb.sgx_components[2] == 200


def test_only_its_owner_can_read_it_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        FILE.write(tmp_path / "machine.json")
    finally:
        os.umask(before)
    assert (tmp_path / "machine.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


def test_an_existing_file_is_left_alone(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists") as error:
        FILE.write(path)
    assert path.read_text() == "mine"
    assert "remove it" in error.value.advice()
    assert [item.name for item in tmp_path.iterdir()] == ["machine.json"]


def test_a_missing_file_or_folder_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read") as error:
        MachineFile.read(tmp_path / "none.json")
    assert "machine file" in error.value.advice()
    with pytest.raises(ConfigError, match="cannot write"):
        FILE.write(tmp_path / "none" / "machine.json")
    with pytest.raises(ConfigError, match="cannot read"):
        MachineFile.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "something else"}, "format"),
        ({"version": 2}, "format"),
        ({"seed": "zz" * 32}, "seed"),
        ({"seed": "00" * 15}, "seed"),
        ({"seed": 5}, ""),
        ({"machine": -1}, ""),
        ({"machine": 1 << 31}, ""),
        ({"created": "2026-11-21T00:00:00"}, ""),
        ({"created": "yesterday"}, ""),
        ({"created": "0001-01-01T00:00:00Z"}, "created"),
        ({"created": "9999-12-31T23:59:59Z"}, "created"),
        ({"sgx_components": [1, 2]}, "sgx_components"),
        ({"sgx_components": [256] * 16}, "sgx_components"),
        ({"pce_svn": 70_000}, "pce_svn"),
        ({"pck_ca": "other"}, "pck_ca"),
        ({"report_scheme": "none"}, "report_scheme"),
        ({"unknown": 1}, ""),
    ],
)
def test_a_field_that_is_wrong_is_named(change, field):
    with pytest.raises(FormatError) as error:
        MachineFile.parse(json.dumps(json.loads(bytes(FILE)) | change).encode())
    assert error.value.field == field
    assert error.value.structure in {"MachineFile", "MachineTcb"}
    assert "zz" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xff", b"[" * 10_000, b" " * (MAX_MACHINE_FILE + 1)])
def test_no_content_gets_out_of_the_error_family(data):
    with pytest.raises(FormatError) as error:
        MachineFile.parse(data)
    assert "machine file" in error.value.advice()


def test_the_seed_is_not_shown():
    assert SEED.hex() not in repr(FILE)
    assert repr(SEED) not in repr(FILE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        *((one, "MachineFile") for one in (b"no JSON", b"{}", bytes(FILE).replace(b"platform", b"other"))),
    ],
)
def test_a_wrong_file_is_named(content, words, tmp_path):
    path = tmp_path / "machine.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"^machine file .*/machine\.json: {words}") as error:
        MachineFile.read(path)
    assert "Make a new machine file" in error.value.advice()
