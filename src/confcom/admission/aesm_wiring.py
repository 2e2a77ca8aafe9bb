"""Connects a container to the node's quote helper: the folder with its socket, and the variable that selects it.

The device plugin mounts the folder into containers that request `HELPER`. Ephemeral containers, which can request
nothing, and clusters with another device plugin need a volume of the host.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

from confcom.admission.findings import Findings
from confcom.admission.pod_json import Container, Json, json_object, json_objects, json_text, spec_of, with_spec
from confcom.admission.quote_modes import sets_variable
from confcom.protocols.aesm import FOLDER, SOCKET, VARIABLE

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
    return posixpath.normpath(path).replace("//", "/") in (FOLDER, FOLDER.removeprefix("/var"))


def _is_socket(path: str) -> bool:
    return path.endswith(SOCKET) and posixpath.basename(path) == SOCKET and _same_folder(posixpath.dirname(path))


def _free(names: AbstractSet[str]) -> str:
    candidates = (VOLUME, *(f"{VOLUME}-{number}" for number in range(2, len(names) + 3)))
    return next(name for name in candidates if name not in names)
