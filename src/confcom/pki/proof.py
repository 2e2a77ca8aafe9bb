"""Values that only a verification makes, such as a verified quote: the one guard that they share.

The constructor, `dataclasses.replace` and `__setstate__` refuse. A copy is the value itself. A pickle holds the proven
content and restores it, so that results travel between the processes of one program; as with every pickle, loading one
from an untrusted source runs its code. Nothing in Python stops code that means to forge: the guard is against mistakes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, NoReturn, Self, TypeVar

PROOF = object()
"""What a verification hands to the constructor of what it proved."""


class Proof:
    """Base of `sealed` frozen dataclasses with `proof: InitVar[object] = None` last; `made_by` names their maker."""

    __slots__ = ()
    made_by: ClassVar[str]

    def __post_init__(self, proof: object) -> None:
        if proof is not PROOF:
            raise TypeError(f"a {type(self).__name__} is made by {self.made_by} alone")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.init}  # type: ignore[arg-type]
        return _restore, (type(self), values)


Kind = TypeVar("Kind", bound=type[Proof])


def sealed(kind: Kind) -> Kind:
    """Decorate a dataclass of proof: `dataclass` gives one with slots a `__setstate__` that would fill any instance."""
    kind.__getstate__ = kind.__setstate__ = _refuse  # type: ignore[method-assign,assignment,attr-defined]
    return kind


def _refuse(proof: Proof, *_: object) -> NoReturn:
    raise TypeError(f"a {type(proof).__name__} is made by {proof.made_by} alone")


def _restore(kind: Callable[..., Proof], values: dict[str, Any]) -> Proof:
    return kind(**values, proof=PROOF)
