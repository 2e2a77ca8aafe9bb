"""A pod as the JSON that it is: what is missing or null is empty, what is of another kind than the API's is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from confcom.errors import FormatError

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
    """A member that is an object."""
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


def spec_of(pod: Json) -> Json:
    """The pod's spec."""
    return json_object(pod, "spec", "pod")


def annotations_of(pod: Json) -> dict[str, str]:
    """The pod's annotations."""
    found = json_object(json_object(pod, "metadata", "pod"), "annotations", "metadata")
    return {name: json_text(found, name, "metadata.annotations") for name in found}


def containers_of(pod: Json, *kinds: ContainerKind) -> Iterator[Container]:
    """The pod's containers of these kinds, in their order."""
    spec = spec_of(pod)
    for kind in kinds:
        for index, body in enumerate(json_objects(spec, kind, "spec")):
            yield Container(kind, index, json_text(body, "name", f"spec.{kind}[{index}]"), body)


def with_label(pod: Json, name: str, value: str) -> Json:
    """The pod with a label; the same object if it has that."""
    metadata = json_object(pod, "metadata", "pod")
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
    return FormatError(f"this is not {kind}{hint}", structure="Pod", field=where[:200], advice=_ADVICE)
