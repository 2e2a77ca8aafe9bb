"""Finds SGX use that nothing counts: amounts of EPC in the wrong place, and SGX devices mounted by hand.

The API server drops unknown fields, and the pod then runs without EPC. A device mounted from the host gives EPC that no
node has counted.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from confcom.admission.findings import Findings
from confcom.admission.pod_json import Container, Json, json_object, json_objects, json_text, spec_of
from confcom.protocols.admission import SGX_RESOURCES

_COUNTED = re.compile(r"spec\.(?:containers|initContainers)\[[0-9]+\]\.resources\.(?:limits|requests)")
_HARMLESS = ("metadata.", "spec.overhead.", "spec.nodeSelector.")
"""Places that Kubernetes keeps and that hold no request: they get a warning."""
_ELSEWHERE = frozenset(
    {
        *("env", "envFrom", "args", "command", "volumeMounts", "volumes", "volumeDevices", "ports", "affinity"),
        *("managedFields", "status", "tolerations", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"),
    }
)
"""Members that are not searched: they may be long and have no amounts."""
_ENDINGS = tuple(f".{name}" for name in SGX_RESOURCES)

DEVICES = frozenset(
    f"/dev/{name}"
    for name in ("sgx", "isgx", "gsgx", "sgx_enclave", "sgx_provision", "sgx_vepc", "sgx/enclave", "sgx/provision")
)
"""The SGX devices of every driver, and their folder."""
_WITHOUT_PROVISION = frozenset({"/dev/isgx", "/dev/gsgx", "/dev/sgx_enclave", "/dev/sgx_vepc", "/dev/sgx/enclave"})
_PARENTS = frozenset({"/dev", "/"})
_LONGEST = 256
"""Longest path or place in the document that is examined, in characters."""


_LIKE_EPC = re.compile(r"sgx.{0,40}epc", re.IGNORECASE)
"""Names that can only mean EPC."""


class Stray(NamedTuple):
    """An amount of an SGX resource that nothing counts."""

    place: str
    resource: str
    amount: object
    split: bool
    """Whether the dots of the resource's name became nested maps."""


def stray_amounts(root: Mapping[str, object], *, apart_from: object = None) -> Iterator[Stray]:
    """Every SGX resource outside the limits and requests of containers, in the order of the document's members.

    `apart_from` is a part that is left out.
    """
    waiting: list[tuple[str, object]] = [("", root)]
    while waiting:
        at, value = waiting.pop()
        if len(at) > _LONGEST:
            continue
        if isinstance(value, dict):
            inner = []
            for name, member in value.items():
                path = f"{at}.{name}" if at else f"{name}"
                if path.endswith(_ENDINGS):
                    if name in SGX_RESOURCES and _COUNTED.fullmatch(at):
                        continue
                    resource = max((one for one in SGX_RESOURCES if path.endswith(f".{one}")), key=len)
                    place = path.removesuffix(f".{resource}")
                    yield Stray(place, resource, member, split=name != resource)
                elif member and isinstance(member, (dict, list)) and not (name in _ELSEWHERE or member is apart_from):
                    inner.append((path, member))
            waiting += reversed(inner)
        elif isinstance(value, list):
            waiting += [
                (f"{at}[{index}]", element)
                for index, element in reversed(list(enumerate(value)))
                if element and isinstance(element, (dict, list)) and element is not apart_from
            ]


def check_places(pod: Json, containers: Sequence[Container], findings: Findings) -> None:
    """Refuse amounts of SGX resources that nothing counts; where Kubernetes keeps them, warn."""
    counted = False
    for container in containers:
        resources = json_object(container.body, "resources", container.where)
        for kind in ("limits", "requests"):
            amounts = json_object(resources, kind, f"{container.where}.resources")
            counted = counted or any(name in amounts for name in SGX_RESOURCES)
            if "" in amounts:
                findings.refuse("resource-without-name", container=container.name, amount=amounts[""], kind=kind)
            for name in amounts:
                if name not in SGX_RESOURCES and _LIKE_EPC.search(name):
                    about = {"container": container.name, "resource": name, "amount": _amount(amounts[name])}
                    findings.warn("unknown-resource", **about)
    for stray in stray_amounts(pod):
        if stray.place == "metadata.annotations" and counted:
            continue  # Intel's webhook writes the pod's total there
        report(stray, findings)


def report(stray: Stray, findings: Findings) -> None:
    """Report where an amount stands and where it belongs."""
    values = {"amount": _amount(stray.amount), "resource": stray.resource, "place": stray.place or "the top"}
    if stray.split:
        findings.refuse("name-split", **values)
    elif f"{stray.place}.".startswith(_HARMLESS):
        findings.warn("epc-uncounted", **values)
    else:
        findings.refuse("epc-misplaced", **values)


def check_devices(pod: Json, containers: Sequence[Container], findings: Findings, *, uses_sgx: bool) -> None:
    """Warn of SGX devices mounted by hand, and in a pod that uses SGX also of /dev and of privileged containers."""
    by_hand: dict[str, str] = {}
    for index, volume in enumerate(json_objects(spec_of(pod), "volumes", "spec")):
        where = f"spec.volumes[{index}]"
        path = _plain(json_text(json_object(volume, "hostPath", where), "path", f"{where}.hostPath"))
        if path in DEVICES or (uses_sgx and path in _PARENTS):
            by_hand[json_text(volume, "name", where)] = path
    for container in containers:
        for list_name, path_name in (("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")):
            for mount in json_objects(container.body, list_name, container.where):
                source = json_text(mount, "name", f"{container.where}.{list_name}")
                inside = _plain(json_text(mount, path_name, f"{container.where}.{list_name}"))
                path = by_hand.get(source, inside)
                if source in by_hand or inside in DEVICES:
                    code = "device-by-hand" if path in _WITHOUT_PROVISION else "provision-by-hand"
                    findings.warn(code, container=container.name, path=path, volume=source)
        if uses_sgx and json_object(container.body, "securityContext", container.where).get("privileged") is True:
            findings.warn("privileged", container=container.name)


def _amount(found: object) -> object:
    return "an amount" if isinstance(found, (dict, list)) or found is None else found


def _plain(path: str) -> str:
    """The normalized path if it could be in /dev or a parent of it, else empty."""
    if len(path) > _LONGEST or ("/dev" not in path and path.strip("/.")):
        return ""
    return posixpath.normpath(path).replace("//", "/")
