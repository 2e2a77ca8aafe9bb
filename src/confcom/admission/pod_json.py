"""A pod as the JSON that it is: what is missing or null is empty, what is of another kind than the API's is refused."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from confcom.errors import ConfigError, FormatError

Json = dict[str, Any]
ContainerKind = Literal["initContainers", "containers", "ephemeralContainers"]
_ADVICE = "The API server does not take it either: see `kubectl explain pod`."


class Container(NamedTuple):
    """A container of a pod, and where it stands there."""

    kind: ContainerKind
    position: int
    name: str
    body: Json

    @property
    def where(self) -> str:
        """Its place, for messages about its form."""
        return f"spec.{self.kind}[{self.position}]"

    @property
    def is_sidecar(self) -> bool:
        """Whether it is an init container that goes on beside the others."""
        return self.kind == "initContainers" and self.body.get("restartPolicy") == "Always"


def json_object(holder: Mapping[str, Any], name: str, where: str) -> Json:
    """A member that is an object; `where` is the place of its holder, empty for the pod itself."""
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(f"{where}.{name}", "an object")
    return found


def json_objects(holder: Mapping[str, Any], name: str, where: str) -> list[Json]:
    """A member that is a list of objects."""
    found = holder.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise _wrong(f"{where}.{name}", "a list")
    for index, element in enumerate(found):
        if not isinstance(element, dict):
            raise _wrong(f"{where}.{name}[{index}]", "an object")
    return found


def json_text(holder: Mapping[str, Any], name: str, where: str) -> str:
    """A member that is a string."""
    found = holder.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _wrong(f"{where}.{name}", "a string", found)
    return found


def normal_path(path: str) -> str:
    """A path without `.`, `..` and doubled slashes; POSIX would keep two at the beginning."""
    return posixpath.normpath(path).replace("//", "/")


def spec_of(pod: Json) -> Json:
    """The pod's spec."""
    return json_object(pod, "spec", "")


def annotations_of(pod: Json) -> dict[str, str]:
    """The pod's annotations."""
    found = json_object(json_object(pod, "metadata", ""), "annotations", "metadata")
    return {name: json_text(found, name, "metadata.annotations") for name in found}


def containers_of(pod: Json, *kinds: ContainerKind) -> Iterator[Container]:
    """The pod's containers of these kinds, in their order."""
    spec = spec_of(pod)
    for kind in kinds:
        for index, body in enumerate(json_objects(spec, kind, "spec")):
            yield Container(kind, index, json_text(body, "name", f"spec.{kind}[{index}]"), body)


def with_label(pod: Json, name: str, value: str) -> Json:
    """The pod with a label; the same object if it has that."""
    metadata = json_object(pod, "metadata", "")
    labels = json_object(metadata, "labels", "metadata")
    if labels.get(name) == value:
        return pod
    return {**pod, "metadata": {**metadata, "labels": {**labels, name: value}}}


def with_spec(pod: Json, **members: object) -> Json:
    """The pod with members of its spec replaced."""
    return {**pod, "spec": {**spec_of(pod), **members}}


def with_containers(pod: Json, kind: ContainerKind, changed: Mapping[int, Json]) -> Json:
    """The pod with some of its containers replaced."""
    if not changed:
        return pod
    bodies = json_objects(spec_of(pod), kind, "spec")
    return with_spec(pod, **{kind: [changed.get(index, body) for index, body in enumerate(bodies)]})


def _wrong(where: str, kind: str, found: object = None) -> FormatError:
    hint = f'. Write "{found}", with quotes' if isinstance(found, (bool, int, float)) and kind == "a string" else ""
    field = where.removeprefix(".")[:200]
    return FormatError(f"this is not {kind}{hint}", structure="Pod", field=field, advice=_ADVICE)


# Who may hold the provisioning device: service accounts, as the operator wrote them down.

_NAME = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_GRANT = re.compile(rf"({_NAME})/({_NAME}|\*)")
MAX_GRANTS = 1024


@dataclass(frozen=True, slots=True)
class Grants:
    """NAMESPACE/SERVICEACCOUNT each, or NAMESPACE/* for every account of a namespace."""

    accounts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read them from text with commas between."""
        words = [word for part in text.split(",") if (word := part.strip())]
        wrong = next((word for word in words if _GRANT.fullmatch(word) is None), None)
        if wrong is not None or len(words) > MAX_GRANTS:
            raise ConfigError(
                f"{wrong or len(words)!r} is no grant of the provisioning device",
                advice="Write NAMESPACE/SERVICEACCOUNT, or NAMESPACE/* for all of a namespace, with commas between.",
            )
        return cls(frozenset(words))

    def allow(self, namespace: str, account: str) -> bool:
        """Whether a service account may hold the device."""
        return not self.accounts.isdisjoint((f"{namespace}/{account}", f"{namespace}/*"))


NO_GRANTS = Grants()
