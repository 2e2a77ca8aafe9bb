"""The configuration of Intel's quote provider library: places are those of the file as it is."""

from __future__ import annotations

import json
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.errors import FormatError
from confcom.formats.qcnl import MAX_QCNL, QcnlFile

# From public reports: a comma that is missing, and one too many, below comments.
MISSING_COMMA = b"""{
  // *** ATTENTION : This file is in JSON format so the keys are case sensitive. Don't change them.

  //PCCS server address
  "pccs_url": "https://pccs.example:8081/sgx/certification/v4/"

  // To accept insecure HTTPS certificate, set this option to false
  "use_secure_cert": true,
  "retry_times": 1
}
"""
SECOND_COMMA = b"""{
  // comment
  "pccs_url": "https://pccs.example:8081/sgx/certification/v4/"

  // To accept insecure HTTPS certificate, set this option to false
  ,"use_secure_cert": false,

  // long comment
  ,"collateral_service": "https://api.trustedservices.intel.com/sgx/certification/v4/"
}
"""


@pytest.mark.parametrize(
    ("data", "offset", "said"),
    [
        (MISSING_COMMA, 262, "line 8, column 3: expected a comma or the closing brace"),
        (SECOND_COMMA, 198, "line 9, column 3: expected a key in double quotes after the comma, found ','"),
        (b'{"a": 1,}', 8, "a key in double quotes after the comma, found '}'"),
        (b'\xef\xbb\xbf{"a": 1}', 0, "line 1 begins with a byte order mark"),
        (b'{\r\n"a": 1\r\n"b": 2}', 11, "line 3, column 1"),
        (b'{"a": "x\0y"}', 8, "found a NUL byte"),
        (b'{"a": 1,\0"b": 2}', 8, "found a NUL byte"),
        (b"[]", 0, "expected an object in braces, found '['"),
        (b"\xff\xfe{\0", 0, "found byte 0xff, which is no UTF-8"),
        (b"", 0, "expected an object in braces, found the end"),
        (b"PCCS_URL=https://localhost:8081", 0, "found 'P'"),
        (b'{"a": NaN}', 6, "expected a value"),
        (b'{"a": tru}', 6, "expected a value for 'a', found 't'"),
        # Newer versions of Python name the comma, older ones what follows it.
        (b'{"a": {"b": 1,}}', 13 if sys.version_info >= (3, 13) else 14, "expected a value for 'a'"),
        (b'{"a": "u\n}', 8, "line 1, column 9"),
        (b'{"a": 1} {"a": 2}', 9, "expected the end of the file"),
        (b"{'a': 1}", 1, 'a key in double quotes, found "\'"'),
        ('{"ä": 1, /* é */ x}'.encode(), 19, "column 18"),
        (b'{"a": ' + b"9" * 5000 + b"}", 6, "less deep or long"),
        (b'{"a": ' + b"[" * 60000, 6, "less deep or long"),
        (b" " * (MAX_QCNL + 1), None, "is over 65536 bytes"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(data: bytes, offset: int | None, said: str) -> None:
    with pytest.raises(FormatError) as error:
        QcnlFile.parse(data)
    assert said in error.value.message
    assert error.value.offset == offset


def test_comments_and_other_line_ends_are_no_matter() -> None:
    data = b'{\r\n// one\r\n"pccs_url": "https://x//y/*z*/", /* two\n */ "retry_times": 0\r\n}\r\n\0'
    found = QcnlFile.parse(data)
    assert [(setting.key, setting.line) for setting in found.settings] == [("pccs_url", 3), ("retry_times", 4)]
    assert found.value("pccs_url") == "https://x//y/*z*/"
    assert found.value("retry_times") == 0


def test_the_first_of_a_key_counts_and_another_type_does_not() -> None:
    found = QcnlFile.parse(b'{"retry_times": 1, "retry_times": 6, "use_secure_cert": "false", "retry_delay": true}')
    assert found.value("retry_times") == 1
    assert found.value("use_secure_cert") is None
    assert found.value("retry_delay") is None
    assert found.value("pccs_url") is None


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=8), st.integers(0, 9), st.booleans())))
def test_every_object_is_read_as_json_reads_it(members: dict[str, object]) -> None:
    found = QcnlFile.parse(json.dumps(members, indent=1).encode())
    assert {setting.key: setting.value for setting in found.settings} == members


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    with suppress(FormatError):
        assert isinstance(QcnlFile.parse(b"{" + data), QcnlFile)
