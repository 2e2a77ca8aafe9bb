"""JSON Patch (RFC 6902) from what a document was to what it shall be; pure.

Only what differs is named, so that whatever the document holds beside it is neither read nor written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Operation = dict[str, Any]


def difference(old: object, new: object) -> list[Operation]:
    """Operations that make `new` of `old`; both are JSON as decoded, and parts that are the same object are skipped."""
    return list(_difference(old, new, ""))


def _difference(old: object, new: object, path: str) -> Iterator[Operation]:
    if old is new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _members(old, new, path)
    elif isinstance(old, list) and isinstance(new, list) and len(old) <= len(new):
        yield from _elements(old, new, path)
    elif type(old) is not type(new) or old != new:
        yield {"op": "replace", "path": path, "value": new}


def _members(old: Mapping[str, object], new: Mapping[str, object], path: str) -> Iterator[Operation]:
    for name, value in old.items():
        at = f"{path}/{_escape(name)}"
        if name in new:
            yield from _difference(value, new[name], at)
        else:
            yield {"op": "remove", "path": at}
    for name, value in new.items():
        if name not in old:
            yield {"op": "add", "path": f"{path}/{_escape(name)}", "value": value}


def _elements(old: Sequence[object], new: Sequence[object], path: str) -> Iterator[Operation]:
    for index, (before, after) in enumerate(zip(old, new, strict=False)):
        yield from _difference(before, after, f"{path}/{index}")
    for value in new[len(old) :]:
        yield {"op": "add", "path": f"{path}/-", "value": value}


def _escape(name: str) -> str:
    """A member's name in a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
