"""YAML as Kubernetes' reader has it, from untrusted sources: bounded, without aliases that multiply, no key twice.

Its values are those of JSON. What differs from PyYAML's: `y` and `n` are truth values, dates and `1:30` are text, `1e3`
is a number, keys are text, and tags of other types are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]  # the package carries no types

from confcom.errors import FormatError

MAX_VALUES = 200_000
"""Values of all documents together."""
MAX_ALIASED = 10_000
"""Values that aliases repeat."""
MAX_DEPTH = 100
"""Lists and maps in one another."""
MAX_NUMBER = 64
"""Characters of a number; Kubernetes' have 20."""

_PREFIX = "tag:yaml.org,2002:"
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
_NUMBER = {
    "int": re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|[1-9][0-9_]*|0)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}


def read_yaml(text: str, *, source: str, advise: Callable[[str], str | None] = lambda _: None) -> list[Any]:
    """The documents of a YAML text; `FormatError` names the line, and `advise` may know what to do about it."""
    try:
        return list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML")
        if mark is None:
            raise FormatError(f"is no text: {problem}", structure=source, field="") from error
        line = text[text.rfind("\n", 0, mark.pointer) + 1 :].partition("\n")[0]
        message = f"line {mark.line + 1}: {problem}: {line.strip()[:80]!r}"
        raise FormatError(message, structure=source, field="", advice=advise(line)) from error


def _wrong(problem: str, node: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the package carries no types
    bool_values: Mapping[str, bool] = {**yaml.SafeLoader.bool_values, "y": True, "n": False}
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag.removeprefix(_PREFIX) not in ("timestamp", *_NUMBER)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_PREFIX) in _TYPES
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0
        self._aliased = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """One value with all in it, counted with what its aliases repeat."""
        event = self.peek_event()
        if self._depth >= MAX_DEPTH:
            raise _wrong(f"more than {MAX_DEPTH} lists and maps in one another", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _wrong("an alias of what it stands in", event)
            self._aliased += self._sizes[node]
        else:
            self._values += 1
            self._sizes[node] = 1 + _inner_size(node, self._sizes)
        if self._aliased > MAX_ALIASED:
            raise _wrong(f"aliases that repeat more than {MAX_ALIASED} values", event)
        if self._values > MAX_VALUES:
            raise _wrong(f"more than {MAX_VALUES} values up to here", event)
        return node

    def compose_mapping_node(self, anchor: object) -> yaml.Node:
        """A map; its keys become text, as in JSON, and none may stand there twice."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for position, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong("a key that is no text", key)
            if key.tag == f"{_PREFIX}merge":
                continue
            name = str(self.construct_plain(key)).lower() if key.tag == f"{_PREFIX}bool" else key.value
            if name in seen:
                raise _wrong(f"the key {name[:40]!r} stands here twice", key)
            seen.add(name)
            text = yaml.ScalarNode(f"{_PREFIX}str", name, key.start_mark, key.end_mark)
            node.value[position] = (text, value)
        return node

    def construct_plain(self, node: yaml.ScalarNode) -> bool | int | float:
        """A truth value, or a number of a length that makes sense."""
        kind, text = node.tag.removeprefix(_PREFIX), node.value.replace("_", "")
        if len(text) > MAX_NUMBER:
            raise _wrong(f"a number of {len(text)} signs", node)
        try:
            if kind == "bool":
                return bool(self.construct_yaml_bool(node))
            if kind == "float":
                return float(self.construct_yaml_float(node))
            return int(text, 8) if "0o" in text.lower() else int(self.construct_yaml_int(node))
        except (ValueError, KeyError, IndexError, OverflowError):
            raise _wrong(f"no {kind}", node) from None


def _inner_size(node: yaml.Node, sizes: Mapping[yaml.Node, int]) -> int:
    if isinstance(node, yaml.SequenceNode):
        return sum(sizes[element] for element in node.value)
    if isinstance(node, yaml.MappingNode):
        return sum(1 + sizes[value] for _, value in node.value)
    return 0


_Loader.add_implicit_resolver(f"{_PREFIX}bool", re.compile(r"^(?:y|Y|n|N)$"), list("yYnN"))
for _name, _pattern in _NUMBER.items():
    _Loader.add_implicit_resolver(f"{_PREFIX}{_name}", _pattern, list("-+.0123456789"))
for _name in ("bool", *_NUMBER):
    _Loader.add_constructor(f"{_PREFIX}{_name}", _Loader.construct_plain)
