"""Reads how much EPC a container requests, under any name in use, and writes the canonical form. Amounts are MiB.

Also finds SGX use that nothing counts: amounts of EPC in the wrong place (the API server drops unknown fields, and the
pod then runs without EPC), and SGX devices mounted by hand, which give EPC that no node has counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from confcom.admission.findings import Findings
from confcom.admission.pod_json import Container, Json, json_object, json_objects, json_text, normal_path, spec_of
from confcom.errors import FormatError
from confcom.protocols.admission import SGX_RESOURCES
from confcom.protocols.epc import (
    CANONICAL,
    CLASS_PREFIX,
    ENCLAVE,
    EPC_UNITS,
    HELPER,
    MIB,
    PROVISION,
    parse_quantity,
    start_parts,
)

MAX_MIB = 1 << 26
"""64 TiB: a larger amount is a mistake in the unit."""
PAGE = 4096
MAX_AMOUNT = 96
"""Characters of an amount that are read; every valid Quantity has fewer."""
_REFUSED = -1
"""An amount of which a refusal tells already: nothing more is found out about it."""
_LOOSE = re.compile(r"\s{0,9}[+-]?\s{0,9}([0-9]{1,20}(?:[.,][0-9]{0,20})?)\s{0,9}([kKmMgGtTpPeE]?)(?:i?[bB]?)\s{0,9}")
"""Amounts as people write them: `10 MB`, `10MiB`, `1,5Gi`."""
LIMIT_RANGER = "kubernetes.io/limit-ranger"
"""Annotation by which the API server says what a LimitRange filled in."""
_LIMIT_RANGER_SET = "LimitRanger plugin set: "
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60}


class SgxRequest(NamedTuple):
    """What a container requests: `epc` in MiB, the others in devices; 0 is none."""

    epc: int = 0
    enclave: int = 0
    provision: int = 0
    helper: int = 0
    claims: bool = False
    """Whether it has resource claims, through which a DRA driver may give it EPC."""

    @property
    def uses_sgx(self) -> bool:
        """Whether a resource gives the container an SGX device; the one for the helper's folder does not."""
        return self.epc > 0 or self.enclave > 0 or self.provision > 0


def without_defaults(pod: Json, containers: Sequence[Container]) -> list[Container]:
    """Containers without the EPC that a LimitRange filled in, if they state an amount under another name themselves.

    Kubernetes fills in defaults per resource name before it calls webhooks, and lists them in an annotation.
    """
    annotations = json_object(json_object(pod, "metadata", ""), "annotations", "metadata")
    filled_in = annotations.get(LIMIT_RANGER)
    given: dict[str, set[str]] = {}
    for part in filled_in.removeprefix(_LIMIT_RANGER_SET).split("; ") if isinstance(filled_in, str) else ():
        names, found, container = part.partition(" for container ")
        if not found:
            names, _, container = part.partition(" for init container ")
        given.setdefault(container, set()).update(names.rpartition(" ")[0].split(", "))
    return [_without(one, given[one.name]) if one.name in given else one for one in containers]


def _without(container: Container, names: set[str]) -> Container:
    resources = json_object(container.body, "resources", container.where)
    settled = {}
    for kind in ("limits", "requests"):
        found = json_object(resources, kind, container.where)
        stated = EPC_UNITS.keys() & found.keys()
        dropped = stated & names if stated - names else set()
        settled[kind] = {name: amount for name, amount in found.items() if name not in dropped}
    if all(settled[kind] == json_object(resources, kind, container.where) for kind in settled):
        return container
    return container._replace(body={**container.body, "resources": {**resources, **settled}})


def read_request(container: Container, findings: Findings) -> SgxRequest:
    """What limits and requests of the container state together."""
    refusals = len(findings.refusals)
    resources = json_object(container.body, "resources", container.where)
    lists = [json_object(resources, kind, f"{container.where}.resources") for kind in ("limits", "requests")]
    epc = _agreed(container, CANONICAL, [_epc(container, found, findings) for found in lists], findings)
    enclave, provision, helper = (
        _agreed(container, name, [_count(container, found, name, findings) for found in lists], findings)
        for name in (ENCLAVE, PROVISION, HELPER)
    )
    claims = bool(resources.get("claims")) or any(name.startswith(CLASS_PREFIX) for name in lists[0])
    request = SgxRequest(epc, enclave, provision, helper, claims)
    if request.uses_sgx and not request.epc and not request.claims and len(findings.refusals) == refusals:
        findings.refuse("epc-missing", container=container.name, resource=ENCLAVE if enclave else PROVISION)
    return request


def normalize(container: Container, request: SgxRequest) -> Json:
    """The container's body with its request in the canonical form; the same object if it has that form already."""
    resources = json_object(container.body, "resources", container.where)
    amounts = {
        CANONICAL: request.epc,
        ENCLAVE: max(request.enclave, 1) if request.epc else request.enclave,
        PROVISION: request.provision,
        HELPER: request.helper,
    }
    lists = {kind: json_object(resources, kind, container.where) for kind in ("limits", "requests")}
    settled = {kind: _settled(found, amounts) for kind, found in lists.items()}
    if settled == lists:
        return container.body
    return {**container.body, "resources": {**resources, **settled}}


def size_text(size: int | Fraction) -> str:
    """A size in bytes as text: the largest unit that it fills, with at most one decimal."""
    unit, factor = "bytes", 1
    for suffix, value in _BINARY.items():
        if size >= value:
            unit, factor = f"{suffix}B", value
    number = round(Fraction(size) / factor, 1)
    return f"{number.numerator if number.denominator == 1 else float(number):} {unit}"


def _settled(found: Mapping[str, object], amounts: Mapping[str, int]) -> Json:
    """A list of resources with these amounts and no other name for EPC; entries that are equal stay as they are."""
    other_names = EPC_UNITS.keys() - {CANONICAL} if amounts[CANONICAL] else set()
    kept = {name: amount for name, amount in found.items() if name not in other_names}
    for name, amount in amounts.items():
        if amount and _number(found.get(name)) != amount:
            kept[name] = str(amount)
    return kept


def _agreed(container: Container, name: str, stated: Sequence[int | None], findings: Findings) -> int:
    """The amount of a resource, from its limit and its request (`stated`, in this order; None: absent)."""
    limit, request = stated
    if _REFUSED in stated:
        return 0
    if request is not None and limit is None and request > 0:
        findings.refuse("limit-missing", container=container.name, resource=name)
    elif request is not None and limit is not None and request != limit:
        findings.refuse("requests-differ", container=container.name, resource=name, requests=request, limits=limit)
    return limit or request or 0


def _epc(container: Container, found: Mapping[str, object], findings: Findings) -> int | None:
    """MiB that one list states; several names must state the same amount."""
    amounts = {name: _mib(container, name, found[name], findings) for name in EPC_UNITS if name in found}
    if len(set(amounts.values())) > 1 and _REFUSED not in amounts.values():
        text = ", ".join(f"{name}: {found[name]}" for name in amounts)
        findings.refuse("amounts-differ", container=container.name, found=text)
    return min(amounts.values(), default=None)


def _mib(container: Container, name: str, written: object, findings: Findings) -> int:
    """An amount of a resource in MiB; `_REFUSED` after a refusal."""
    about = {"container": container.name, "amount": written, "resource": name}
    number = _number(written)
    unit = EPC_UNITS[name]
    if number is None or number < 0:
        findings.refuse("no-amount", **about, proposal=_meant(written, unit))
        return _REFUSED
    # The API server writes 1000 as 1k; no other unit can come from a plain number that a node could hold.
    if unit == MIB and number and _unit_of(written) not in ("", "k"):
        findings.refuse("unit-twice", **about, size=size_text(number * MIB), proposal=_meant(written, unit))
        return _REFUSED
    if unit == MIB and number.denominator != 1:
        findings.refuse("not-whole", **about, proposal=-int(-number // 1))
        return _REFUSED
    if unit == 1 and 0 < number < PAGE:
        findings.refuse("bytes-without-unit", **about, size=size_text(number), proposal=_meant(written, unit))
        return _REFUSED
    size = number * unit
    mib = -int(-size // MIB)
    if mib > MAX_MIB:
        findings.refuse("too-much", **about, proposal=_within(-int(-number // MIB), unit))
        return _REFUSED
    if mib * MIB != size:
        findings.warn("rounded-up", **about, size=f"{mib} MiB")
    return mib


def check_thousands(container: Container, findings: Findings) -> None:
    """Refuse `10k` of a resource in MiB in an author's own text; the API server writes 10000 like this."""
    resources = json_object(container.body, "resources", container.where)
    for kind in ("limits", "requests"):
        for name, written in json_object(resources, kind, container.where).items():
            number = _number(written) if EPC_UNITS.get(name) == MIB and _unit_of(written) == "k" else None
            if number:
                about = {"container": container.name, "amount": written, "resource": name}
                size = size_text(number * MIB)
                findings.refuse("unit-twice", **about, size=size, proposal=_within(-int(-number // 1), MIB))


def _unit_of(written: object) -> str:
    """The unit or exponent of a Quantity."""
    return str(written)[:MAX_AMOUNT].lstrip("+-.0123456789")


def _meant(written: object, unit: int) -> str:
    """The amount that its author most likely meant: the same number, in the unit of the resource."""
    text = str(written)[:MAX_AMOUNT]
    match = _LOOSE.fullmatch(text)
    if match is None:
        number = _number(written)
        return _within(-int(-abs(number) // 1) if number else 10, unit)
    digits, letter = match[1].replace(",", "."), match[2].upper()
    if (unit == 1 and letter in ("", "K")) or text.endswith(("k", "K")):
        # Less than a page is not meant: a number alone is MiB, and the API server writes 1000 as 1k.
        number = _number(written)
        return _within(-int(-(number if letter and number else Fraction(digits)) // 1), unit)
    if unit == 1:
        return f"{digits}{letter}i"
    if match[2] == "m" and (number := _number(written)) and number > 1:
        return str(-int(-number // 1))  # 1.5 is written 1500m by the API server
    return _within(-int(-Fraction(digits) * _BINARY.get(f"{letter}i", MIB) // MIB), unit)


def _within(mib: int, unit: int) -> str:
    """An amount of MiB in the unit of a resource, or an example where it makes no sense."""
    if not 0 < mib <= MAX_MIB:
        return "the MiB that the container needs, such as 10" if unit == MIB else "what it needs, such as 10Mi"
    return str(mib) if unit == MIB else f"{mib}Mi"


def _count(container: Container, found: Mapping[str, object], name: str, findings: Findings) -> int | None:
    """A number of devices."""
    if name not in found:
        return None
    number = _number(found[name])
    if number is None or number.denominator != 1 or not 0 <= number <= MAX_MIB:
        findings.refuse("no-amount", container=container.name, amount=found[name], resource=name, proposal=1)
        return _REFUSED
    return int(number)


def _number(written: object) -> Fraction | None:
    """An amount as a number, from text or a JSON number; None if it is neither."""
    if isinstance(written, bool) or not isinstance(written, (str, int, float)):
        return None
    return _parsed(str(written)[:MAX_AMOUNT])


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Fraction | None:
    """Cached: clusters use few different amounts, and each is read several times per pod."""
    try:
        return parse_quantity(text)
    except FormatError:
        return None


def pod_epc(amounts: Iterable[tuple[Container, int]]) -> int:
    """What the scheduler requires of one node for the pod, in the unit of the amounts. `amounts` is in start order.

    Init containers run one at a time before the others, so the largest counts. A sidecar keeps running, so it counts
    beside everything that starts after it.
    """
    found = list(amounts)
    together = sum(amount for container, amount in found if container.kind == "containers")
    starts = [(amount, one.is_sidecar) for one, amount in found if one.kind == "initContainers"]
    return together + sum(start_parts(together, starts))


def overhead_epc(pod: Json) -> int:
    """MiB that the pod's runtime class adds to it; the scheduler counts them, under the name that nodes publish."""
    number = _number(json_object(spec_of(pod), "overhead", "spec").get(CANONICAL)) or 0
    return min(max(0, int(number)), MAX_MIB)


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
                if name not in SGX_RESOURCES and not name.startswith(CLASS_PREFIX) and _LIKE_EPC.search(name):
                    about = {"container": container.name, "resource": name, "amount": _amount(amounts[name])}
                    findings.warn("unknown-resource", **about)
    for stray in stray_amounts(pod):
        if stray.place == "metadata.annotations" and counted:
            continue  # Intel's webhook writes the pod's total there
        if stray.place == "spec.overhead" and stray.resource == CANONICAL:
            continue  # `overhead_epc`
        report_stray(stray, findings)


def report_stray(stray: Stray, findings: Findings) -> None:
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
    return normal_path(path)
