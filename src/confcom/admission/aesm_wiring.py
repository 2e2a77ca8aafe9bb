"""A container and the node's quote helper: the folder with its socket, and the variable that says to ask there."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from confcom.admission.findings import Findings
from confcom.admission.pod_json import Container, Json, json_object, json_objects, json_text, spec_of, with_spec
from confcom.admission.quote_modes import sets_variable
from confcom.protocols.admission_rules import AESM_VARIABLE

FOLDER = "/var/run/aesmd"
"""Of the helper's socket, on the node and in containers. The folder, because each helper makes a socket of its own."""
VOLUME = "aesmd-socket"


class Wiring(NamedTuple):
    """A volume of the folder, which a pod has or gets."""

    volume: str
    exists: bool


def find_volume(pod: Json) -> Wiring:
    """The pod's volume of the folder, or the name for a new one."""
    names = []
    for index, volume in enumerate(json_objects(spec_of(pod), "volumes", "spec")):
        where = f"spec.volumes[{index}]"
        name = json_text(volume, "name", where)
        path = json_text(json_object(volume, "hostPath", where), "path", f"{where}.hostPath")
        if _same_folder(path):
            return Wiring(name, exists=True)
        names.append(name)
    return Wiring(_free(names), exists=False)


def add_volume(pod: Json, wiring: Wiring) -> Json:
    """The pod with the volume."""
    if wiring.exists:
        return pod
    # Directory, not DirectoryOrCreate: without a helper the pod waits, and an event says so, where it would find
    # an empty folder.
    volume = {"name": wiring.volume, "hostPath": {"path": FOLDER, "type": "Directory"}}
    return with_spec(pod, volumes=[*json_objects(spec_of(pod), "volumes", "spec"), volume])


def wire(container: Container, body: Json, wiring: Wiring) -> Json:
    """The container's body with folder and variable; the same object if it has both."""
    if not mounts_folder(container):
        mount = {"name": wiring.volume, "mountPath": FOLDER}
        body = {**body, "volumeMounts": [*json_objects(body, "volumeMounts", container.where), mount]}
    if not sets_variable(container):
        variable = {"name": AESM_VARIABLE, "value": "1"}
        body = {**body, "env": [*json_objects(body, "env", container.where), variable]}
    return body


def mounts_folder(container: Container) -> bool:
    """Whether something is mounted where the socket is looked for; whatever it is, its author wants it there."""
    return any(_same_folder(path) or _is_socket(path) for path in _mount_paths(container))


def warn_of_socket(container: Container, findings: Findings) -> None:
    """Say it when the socket is mounted instead of its folder."""
    for path in filter(_is_socket, _mount_paths(container)):
        findings.warn("socket-mounted", container=container.name, path=path)


def _mount_paths(container: Container) -> Sequence[str]:
    where = f"{container.where}.volumeMounts"
    mounts = json_objects(container.body, "volumeMounts", container.where)
    return [json_text(mount, "mountPath", where) for mount in mounts]


def _same_folder(path: str) -> bool:
    return path.startswith("/") and posixpath.normpath(path).replace("//", "/") in (FOLDER, FOLDER.removeprefix("/var"))


def _is_socket(path: str) -> bool:
    return posixpath.basename(path) == "aesm.socket" and _same_folder(posixpath.dirname(path))


def _free(names: Sequence[str]) -> str:
    candidates = (VOLUME, *(f"{VOLUME}-{number}" for number in range(2, len(names) + 3)))
    return next(name for name in candidates if name not in names)
