from __future__ import annotations

from pathlib import Path

import pytest

from confcom.devices.resources import CdiFolder
from confcom.errors import PlatformUnavailable, RemoteProtocolError


def test_files_are_there_or_not_and_say_which_claims_are_known(tmp_path: Path) -> None:
    folder = CdiFolder(tmp_path / "cdi", "sgx-claim")
    assert folder.uids() == frozenset()
    folder.write("u-1", b"one")
    folder.write("u-1", b"two")
    folder.write("u-2", b"three")
    (tmp_path / "cdi" / "other.json").write_text("{}")
    assert (tmp_path / "cdi" / "sgx-claim_u-1.json").read_bytes() == b"two"
    assert CdiFolder(tmp_path / "cdi", "sgx-claim").uids() == {"u-1", "u-2"}
    assert folder.remove("u-1")
    assert not folder.remove("u-1")
    assert sorted(path.name for path in (tmp_path / "cdi").iterdir()) == ["other.json", "sgx-claim_u-2.json"]


def test_the_runtime_may_read_them(tmp_path: Path) -> None:
    CdiFolder(tmp_path, "p").write("u", b"x")
    assert (tmp_path / "p_u.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("uid", ["", "..", "a/b", "../x", "u\n", "u" * 64, ".u", "-u"])
def test_a_uid_never_leads_out_of_the_folder(tmp_path: Path, uid: str) -> None:
    folder = CdiFolder(tmp_path, "p")
    for use in (lambda: folder.write(uid, b"x"), lambda: folder.remove(uid)):
        with pytest.raises(RemoteProtocolError):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = CdiFolder(tmp_path / "file", "p")
    with pytest.raises(PlatformUnavailable, match="cannot write"):
        folder.write("u", b"x")
    with pytest.raises(PlatformUnavailable, match="cannot remove"):
        folder.remove("u")
    assert folder.uids() == frozenset()
