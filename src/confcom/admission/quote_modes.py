"""Where a container gets its quotes: from quoting enclaves in its own process, or from the node's helper.

Three ways to say it are in use: our annotations, Intel's, and the variable that Intel's library looks for. A container
that requests the way to the helper, as one does that was completed, means that as well.

What connects a container to the helper is the folder with its socket, and the variable that selects it. The device
plugin mounts the folder into containers that request `HELPER`. Ephemeral containers, which can request nothing, and
clusters with another device plugin need a volume of the host.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Literal, NamedTuple

from confcom.admission.epc_amounts import SgxRequest
from confcom.admission.findings import Findings
from confcom.admission.pod_json import (
    Container,
    Json,
    annotations_of,
    json_object,
    json_objects,
    json_text,
    normal_path,
    spec_of,
    with_spec,
)
from confcom.protocols.admission import (
    CONTAINER_MODE_PREFIX,
    INTEL_ANNOTATION,
    MODE_ANNOTATION,
)
from confcom.protocols.aesm import FOLDER, SOCKET, VARIABLE
from confcom.protocols.epc import HELPER, PROVISION

Mode = Literal["in-proc", "out-of-proc"]
IN_PROC: Mode = "in-proc"
OUT_OF_PROC: Mode = "out-of-proc"
AESMD = "aesmd"
MAX_NAMED = 8
"""Containers that a sentence names."""


class Choice(NamedTuple):
    """A mode, and what selects it."""

    mode: Mode
    source: str


class Annotated(NamedTuple):
    """Modes that annotations select, for all SGX containers and for named ones."""

    everywhere: Choice | None
    named: Mapping[str, Sequence[Choice]]


def read_annotations(pod: Json, present: Collection[str], findings: Findings) -> Annotated:
    """The modes that annotations select; `present` has the names of the pod's containers."""
    everywhere: list[Choice] = []
    named: dict[str, list[Choice]] = {}
    for annotation, value in sorted(annotations_of(pod).items()):
        if annotation == INTEL_ANNOTATION:
            _intel(value, present, everywhere, named, findings)
            continue
        container = annotation.removeprefix(CONTAINER_MODE_PREFIX)
        if annotation != MODE_ANNOTATION and container == annotation:
            continue
        if value not in (IN_PROC, OUT_OF_PROC):
            findings.refuse("unknown-mode", annotation=annotation, value=value or "empty")
            continue
        choice = Choice(IN_PROC if value == IN_PROC else OUT_OF_PROC, f"annotation {annotation}")
        if annotation == MODE_ANNOTATION:
            everywhere.append(choice)
        elif _is_present(annotation, container, present, findings):
            named.setdefault(container, []).append(choice)
    if len({choice.mode for choice in everywhere}) > 1:
        findings.refuse("modes-differ", first=MODE_ANNOTATION, second=INTEL_ANNOTATION)
    return Annotated(everywhere[0] if everywhere else None, named)


def mode_of(container: Container, request: SgxRequest, annotated: Annotated, findings: Findings) -> Choice | None:
    """The container's mode, None if nothing selects one; contradictions are refused."""
    choices = list(annotated.named.get(container.name, ()))
    if not choices and annotated.everywhere is not None and (request.uses_sgx or request.claims):
        choices.append(annotated.everywhere)
    if sets_variable(container):
        choices.append(Choice(OUT_OF_PROC, f"variable {VARIABLE}"))
    if request.helper:
        choices.append(Choice(OUT_OF_PROC, f"resource {HELPER}"))
    if request.provision and choices:
        choices.append(Choice(IN_PROC, f"resource {PROVISION}"))
    by_mode = {choice.mode: choice for choice in reversed(choices)}
    if len(by_mode) > 1:
        sources = {"in_proc": by_mode[IN_PROC].source, "out_of_proc": by_mode[OUT_OF_PROC].source}
        findings.refuse("both-modes", container=container.name, **sources)
    return choices[0] if choices else None


def sets_variable(container: Container) -> bool:
    """Whether the container's own list of variables has `SGX_AESM_ADDR`, with any value."""
    variables = json_objects(container.body, "env", container.where)
    return any(json_text(variable, "name", f"{container.where}.env") == VARIABLE for variable in variables)


def _intel(
    value: str,
    present: Collection[str],
    everywhere: list[Choice],
    named: dict[str, list[Choice]],
    findings: Findings,
) -> None:
    if value != AESMD:
        if _is_present(INTEL_ANNOTATION, value, present, findings):
            named.setdefault(value, []).append(Choice(IN_PROC, f"annotation {INTEL_ANNOTATION}"))
    elif AESMD in present:
        findings.refuse("own-aesmd")
    else:
        everywhere.append(Choice(OUT_OF_PROC, f"annotation {INTEL_ANNOTATION}"))


def _is_present(annotation: str, container: str, present: Collection[str], findings: Findings) -> bool:
    if container in present:
        return True
    names = ", ".join(islice(present, MAX_NAMED))
    findings.refuse("unknown-container", annotation=annotation, container=container or "(none)", present=names)
    return False


Wiring = Literal["plugin", "host-path"]
"""What provides the folder: the device plugin, or a volume of the host."""
VOLUME = "aesmd-socket"
_LAST = posixpath.basename(FOLDER)


class FolderVolume(NamedTuple):
    """The pod's volume of the folder; `exists` is False for one to be added."""

    name: str
    exists: bool


def find_volume(pod: Json) -> FolderVolume:
    """The pod's volume of the folder, or the name for a new one."""
    names = set()
    for index, volume in enumerate(json_objects(spec_of(pod), "volumes", "spec")):
        where = f"spec.volumes[{index}]"
        name = json_text(volume, "name", where)
        path = json_text(json_object(volume, "hostPath", where), "path", f"{where}.hostPath")
        if _same_folder(path):
            return FolderVolume(name, exists=True)
        names.add(name)
    return FolderVolume(_free(names), exists=False)


def with_volume(pod: Json, found: FolderVolume) -> Json:
    """The pod with the volume."""
    if found.exists:
        return pod
    # Directory, not DirectoryOrCreate: without a helper the pod waits with an event instead of finding an empty folder.
    volume = {"name": found.name, "hostPath": {"path": FOLDER, "type": "Directory"}}
    return with_spec(pod, volumes=[*json_objects(spec_of(pod), "volumes", "spec"), volume])


def with_mount(container: Container, body: Json, found: FolderVolume) -> Json:
    """The container's body with the volume mounted, read-only: connecting to a socket needs no write."""
    mount = {"name": found.name, "mountPath": FOLDER, "readOnly": True}
    return {**body, "volumeMounts": [*json_objects(body, "volumeMounts", container.where), mount]}


def with_variable(container: Container, body: Json) -> Json:
    """The container's body with the variable; the same object if it is set already."""
    if sets_variable(container):
        return body
    return {**body, "env": [*json_objects(body, "env", container.where), {"name": VARIABLE, "value": "1"}]}


def mounts_folder(container: Container) -> bool:
    """Whether the pod's author mounted something in the place of the folder or the socket."""
    return any(_same_folder(path) or _is_socket(path) for path in _mount_paths(container))


def warn_of_socket(container: Container, findings: Findings) -> None:
    """Warn if the socket is mounted instead of its folder."""
    for path in filter(_is_socket, _mount_paths(container)):
        findings.warn("socket-mounted", container=container.name, path=path)


def _mount_paths(container: Container) -> Sequence[str]:
    where = f"{container.where}.volumeMounts"
    mounts = json_objects(container.body, "volumeMounts", container.where)
    return [json_text(mount, "mountPath", where) for mount in mounts]


def _same_folder(path: str) -> bool:
    if not path.startswith("/") or _LAST not in path:
        return False
    return normal_path(path) in (FOLDER, FOLDER.removeprefix("/var"))


def _is_socket(path: str) -> bool:
    return path.endswith(SOCKET) and posixpath.basename(path) == SOCKET and _same_folder(posixpath.dirname(path))


def _free(names: AbstractSet[str]) -> str:
    candidates = (VOLUME, *(f"{VOLUME}-{number}" for number in range(2, len(names) + 3)))
    return next(name for name in candidates if name not in names)
