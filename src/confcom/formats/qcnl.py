"""The configuration of Intel's quote provider library (`sgx_default_qcnl.conf`): JSON with comments.

Read as the library's parser reads it: comments of both kinds of C, no trailing commas, no byte order mark; of a key
that is there twice the first counts, and a value of another type than expected is passed over in silence. Positions are
those of the file as it is, comments included. Source: aesm-protocol.md §12, fleet.md §2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from confcom.errors import FormatError

STRUCTURE = "quote provider configuration"
MAX_QCNL = 64 * 1024
"""Bytes; Intel's file has 2,300."""

KEYS: Mapping[str, tuple[type, ...]] = {
    "pccs_url": (str,),
    "use_secure_cert": (bool,),
    "collateral_service": (str,),
    "tcb_update_type": (str,),
    "pccs_api_version": (str,),
    "retry_times": (int,),
    "retry_delay": (int,),
    "local_pck_url": (str,),
    "pck_cache_expire_hours": (int, float),
    "verify_collateral_cache_expire_hours": (int, float),
    "custom_request_options": (dict,),
    "local_cache_only": (bool,),
}
"""The keys that the library knows, in their case, and the types that it takes."""

# What has no end is taken to where it could have one, so that each character is looked at once.
_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"?)|//[^\n]*|/\*(?:.*?\*/|.*)', re.DOTALL)
_BLANKS = re.compile(r"[ \t\r\n]*")
_NOT_NEWLINE = re.compile(r"[^\n]")


def type_name(value: object) -> str:
    """The type of a value in the words of JSON."""
    names = {
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number with a fraction",
        dict: "an object",
        list: "a list",
    }
    return names.get(type(value), "null")


@dataclass(frozen=True, slots=True)
class Setting:
    """One member of the file's object; `line` counts from 1."""

    key: str
    value: Any
    line: int

    @property
    def is_known(self) -> bool:
        """Whether the library knows the key."""
        return self.key in KEYS

    @property
    def has_its_type(self) -> bool:
        """Whether the library takes a value of this type; for JSON, true is no number."""
        return type(self.value) in KEYS.get(self.key, (type(self.value),))


@dataclass(frozen=True, slots=True)
class QcnlFile:
    """What the file says, in its order."""

    settings: tuple[Setting, ...]

    @classmethod
    def parse(cls, data: bytes) -> QcnlFile:
        """Read the file; `FormatError` says the line, what was expected and what is there, and counts bytes."""
        if len(data) > MAX_QCNL:
            raise FormatError(f"is over {MAX_QCNL} bytes", structure=STRUCTURE, field="")
        if data.startswith(b"\xef\xbb\xbf"):
            raise FormatError(
                "line 1 begins with a byte order mark, so the library does not take it for JSON",
                structure=STRUCTURE,
                field="",
                offset=0,
            )
        # To the library's parser a NUL outside of a string is the end.
        text = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        return cls(tuple(_Reader(text).members()))

    def value(self, key: str) -> Any:  # noqa: ANN401 - of the types in KEYS
        """What the library takes for a key, None where it takes its own default."""
        first = next((setting for setting in self.settings if setting.key == key), None)
        return None if first is None or not first.has_its_type else first.value


class _Reader:
    """Reads the members of the outermost object, each with its place."""

    def __init__(self, text: str) -> None:
        self._file = text
        # Comments are blanked, not cut out: positions stay those of the file.
        self._text = _COMMENT.sub(lambda found: found[1] or _NOT_NEWLINE.sub(" ", found[0]), text)
        self._at = 0
        self._decoder = json.JSONDecoder(parse_constant=self._refuse_constant)

    def members(self) -> Iterator[Setting]:
        self._expect("{", "an object in braces")
        if self._next() == "}":
            self._at += 1
        else:
            yield self._member()
            while self._next() == ",":
                self._at += 1
                yield self._member(" after the comma")
            self._expect("}", "a comma or the closing brace")
        if self._next():
            self._fail("the end of the file")

    def _member(self, where: str = "") -> Setting:
        wanted = f"a key in double quotes{where}"
        if self._next() != '"':
            self._fail(wanted)
        line = self._text.count("\n", 0, self._at) + 1
        key = self._value(wanted)
        self._expect(":", f"a colon after {key!r}")
        self._next()
        return Setting(key, self._value(f"a value for {key!r}"), line)

    def _next(self) -> str:
        """Pass over blanks; the character that follows, empty at the end."""
        match = _BLANKS.match(self._text, self._at)
        self._at = self._at if match is None else match.end()
        return self._text[self._at : self._at + 1]

    def _expect(self, wanted: str, words: str) -> None:
        if self._next() != wanted:
            self._fail(words)
        self._at += 1

    def _value(self, words: str) -> Any:  # noqa: ANN401 - whatever JSON has
        try:
            value, self._at = self._decoder.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._at = error.pos
            reason = error.msg.removesuffix(" at").removesuffix(" starting").lower()
            self._fail(words if reason == "expecting value" else f"{words} ({reason})")
        except FormatError:
            raise
        except (RecursionError, ValueError):
            self._fail(f"{words} that is less deep or long")
        return value

    def _refuse_constant(self, _name: str) -> NoReturn:
        self._fail("a value of JSON")

    def _fail(self, expected: str) -> NoReturn:
        before = self._file[: self._at]
        line, column = before.count("\n") + 1, self._at - (before.rfind("\n") + 1) + 1
        found = self._text[self._at : self._at + 1]
        words = {"": "the end", "\0": "a NUL byte", "\n": "the end of the line"}.get(found, repr(found))
        if "\udc80" <= found <= "\udcff":
            words = f"byte 0x{ord(found) & 0xFF:02x}, which is no UTF-8"
        raise FormatError(
            f"line {line}, column {column}: expected {expected}, found {words}",
            structure=STRUCTURE,
            field="",
            offset=len(before.encode("utf-8", "surrogateescape")),
        )
