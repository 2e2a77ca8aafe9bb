"""RFC 6902 applied, written from the RFC alone: the oracle for the patches that the webhook makes."""

from __future__ import annotations

import copy
from typing import Any


def apply_patch(document: Any, operations: list[dict[str, Any]]) -> Any:
    """The document after add, remove and replace; AssertionError where the RFC says that an operation fails."""
    document = copy.deepcopy(document)
    for operation in operations:
        tokens = [_unescape(token) for token in operation["path"].split("/")[1:]]
        if not tokens:
            assert operation["op"] == "replace"
            document = copy.deepcopy(operation["value"])
            continue
        holder = document
        for token in tokens[:-1]:
            holder = holder[_index(token, len(holder) - 1)] if isinstance(holder, list) else holder[token]
        _change(holder, tokens[-1], operation)
    return document


def _change(holder: Any, token: str, operation: dict[str, Any]) -> None:
    value = copy.deepcopy(operation.get("value"))
    match operation["op"], holder:
        case "add", list():
            holder.insert(len(holder) if token == "-" else _index(token, len(holder)), value)
        case "add", dict():
            holder[token] = value
        case "replace", list():
            holder[_index(token, len(holder) - 1)] = value
        case "replace", dict():
            assert token in holder
            holder[token] = value
        case "remove", list():
            del holder[_index(token, len(holder) - 1)]
        case "remove", dict():
            del holder[token]
        case other:
            raise AssertionError(f"cannot be applied: {other}")


def _index(token: str, most: int) -> int:
    assert token == "0" or (token.isdecimal() and not token.startswith("0"))
    assert int(token) <= most
    return int(token)


def _unescape(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")
