"""AdmissionReview v1 of Kubernetes: what the API server asks a webhook, and the answers to it; pure.

The object under review stays the JSON that it came as. Nothing of it is read into a type that might not know a field.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from confcom.errors import FormatError
from confcom.protocols import aesm
from confcom.protocols.epc import ENCLAVE, EPC_UNITS, HELPER, PROVISION

Operation = dict[str, Any]
"""An operation of JSON Patch (RFC 6902)."""


def difference(old: object, new: object) -> list[Operation]:
    """Operations from `old` to `new`, both decoded JSON. Parts that are the same object are skipped."""
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


API_VERSION = "admission.k8s.io/v1"
MAX_REVIEW = 8 << 20
"""Bytes. The API server takes objects up to 3 MiB, and sends the former one along with an update."""
MAX_UID = 64
"""Characters; Kubernetes makes UUIDs of 36. It is repeated in the answer."""
MAX_WARNING = 256
"""Characters of a warning that kubectl shows."""
MAX_WARNINGS = 12
MAX_MESSAGE = 4096
"""Characters of a refusal."""

MAX_VALUES = 65_536
"""Members and elements of an object's JSON: few enough to be read in 20 ms."""
_NO_STRUCTURE = bytes(set(range(256)).difference(b'",[{'))
_TOO_MANY = re.compile(rb'(?:(?:"[^"]*+")*+[,\[{]){%d}+' % (MAX_VALUES + 1))

Json = dict[str, Any]


class Resource(msgspec.Struct, frozen=True):
    """A kind of objects, as the paths of the API name it."""

    group: str = ""
    version: str = "v1"
    resource: str = "pods"


class AdmissionRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the API server is about to do. `object` is what shall be stored, `old_object` what an update replaces.

    Both are JSON that is not decoded yet: see `parse_object`.
    """

    uid: Annotated[str, msgspec.Meta(max_length=MAX_UID)]
    operation: str
    object: msgspec.Raw
    namespace: str = ""
    name: str = ""
    resource: Resource = Resource()
    sub_resource: str = ""
    old_object: msgspec.Raw = msgspec.Raw(b"null")
    dry_run: bool | None = None

    @property
    def what(self) -> str:
        """The operation and what it is done to, such as `UPDATE pods/ephemeralcontainers`."""
        plural = ".".join(filter(None, (self.resource.resource, self.resource.group)))
        return f"{self.operation} {'/'.join(filter(None, (plural, self.sub_resource)))}"


class _Review(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: str
    kind: str
    request: AdmissionRequest


_DECODER = msgspec.json.Decoder(_Review)
# A number with an exponent takes 20 µs to be read; the API server sends amounts as text.
_OBJECT_DECODER = msgspec.json.Decoder(Json | None, float_hook=str)


def parse_review(data: bytes) -> AdmissionRequest:
    """Read an AdmissionReview; `FormatError` for anything else."""
    if len(data) > MAX_REVIEW:
        raise _malformed(f"longer than {MAX_REVIEW} bytes")
    try:
        review = _DECODER.decode(data)
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise _malformed(str(error)) from error
    if review.api_version != API_VERSION or review.kind != "AdmissionReview":
        raise _malformed(f"not an AdmissionReview of {API_VERSION}")
    return review.request


def has_more_values(data: msgspec.Raw) -> bool:
    """Whether an object has more than `MAX_VALUES` members and elements, by what separates them outside its texts.

    It takes 5 ms for a megabyte, where making the values takes up to a hundred.
    """
    text = bytes(data).replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_STRUCTURE)
    return _TOO_MANY.match(text) is not None


def parse_object(data: msgspec.Raw) -> Json:
    """The object of a review, empty for null; `FormatError` for anything else."""
    try:
        return _OBJECT_DECODER.decode(data) or {}
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise _malformed(str(error)) from error


def allowance(uid: str, *, patch: Sequence[Operation] = (), warnings: Sequence[str] = ()) -> bytes:
    """The answer that lets an object through, changed by a patch if there is one."""
    answer: Json = {"uid": uid, "allowed": True}
    if patch:
        answer |= {"patchType": "JSONPatch", "patch": b64encode(msgspec.json.encode(patch)).decode()}
    return _answer(answer, warnings)


def refusal(
    uid: str, message: str, *, status: int = 422, reason: str = "Invalid", warnings: Sequence[str] = ()
) -> bytes:
    """The answer that turns an object away; `message` is what the person reads who wanted it."""
    about = {"code": status, "reason": reason, "message": message[:MAX_MESSAGE]}
    return _answer({"uid": uid, "allowed": False, "status": about}, warnings)


def _answer(answer: Json, warnings: Sequence[str]) -> bytes:
    if warnings:
        answer["warnings"] = [warning[:MAX_WARNING] for warning in warnings[:MAX_WARNINGS]]
    return msgspec.json.encode({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": answer})


def _malformed(message: str) -> FormatError:
    return FormatError(message, structure="AdmissionReview", field="", advice="Only the API server is expected here.")


# Which pods the API server sends to the webhook: the entries of its two configurations. The API server evaluates their
# conditions itself. A pod that does not meet them is never sent, so it is created as if there were no webhook, whether
# that is up, slow or gone.

NEW_POD, DEBUG = "CREATE pods", "UPDATE pods/ephemeralcontainers"
"""What can bring a container to SGX: nothing else that is done to a pod changes its resources, volumes or variables."""

SGX_RESOURCES = (*EPC_UNITS, ENCLAVE, PROVISION, HELPER)

IN_EVERY_NAME = "sgx"
"""What all of them have in common, which is quicker to look for than each of them."""

MODE_ANNOTATION = "confcom.dev/quote-mode"
"""How the pod's SGX containers get their quotes: `out-of-proc` or `in-proc`."""
CONTAINER_MODE_PREFIX = "quote-mode.confcom.dev/"
"""The same for one container; its name follows."""
INTEL_ANNOTATION = "sgx.intel.com/quote-provider"
"""`aesmd`, or the name of the container that makes its quotes itself."""

LABEL, LABEL_VALUE = "confcom.dev/uses-sgx", "true"
"""What the mutating webhook puts on each SGX pod, by which the validating one is asked about those alone."""

NAMESPACE_LABEL = "confcom.dev/sgx"
"""At `true` on a namespace: the webhook is for its pods, where it is not for those of all namespaces."""

CONFIGURATION = "sgx-webhook.confcom.dev"
"""Name of the MutatingWebhookConfiguration, and of the ValidatingWebhookConfiguration."""
NAMESPACE = "confcom-system"
SERVICE = "sgx-webhook"
MUTATE_PATH = "/mutate-pods"
VALIDATE_PATH = "/validate-pods"
TIMEOUT = 5
"""Seconds that the API server waits for an answer."""

Entry = dict[str, Any]
"""An element of `webhooks` of a configuration, as its JSON."""


@dataclass(frozen=True, slots=True)
class ServiceClient:
    """The webhook behind a Service."""

    namespace: str = NAMESPACE
    name: str = SERVICE
    port: int = 443

    def config(self, path: str) -> Entry:
        """How the API server reaches a path."""
        return {"service": {"namespace": self.namespace, "name": self.name, "port": self.port, "path": path}}


def mutating_webhooks(client: ServiceClient, *, ca_bundle: bytes | None = None, labelled: bool = False) -> list[Entry]:
    """Entries of the MutatingWebhookConfiguration. `ca_bundle` (PEM): the CAs that the API server trusts.

    `labelled` restricts them to namespaces that have the label.
    """
    entries = _entries(client.config(MUTATE_PATH), ca_bundle, labelled=labelled)
    # Others may add resources or annotations after us.
    return [entry | {"reinvocationPolicy": "IfNeeded"} for entry in entries]


def validating_webhooks(
    client: ServiceClient, *, ca_bundle: bytes | None = None, labelled: bool = False
) -> list[Entry]:
    """Entries of the ValidatingWebhookConfiguration, which sees what every mutation has made of a pod.

    The API server converts a pod for CEL once per webhook, which is all that the webhook costs ordinary pods. Here it
    need not: it looks at the label first, and at nothing else of a pod without it.
    """
    pods, debug = _entries(client.config(VALIDATE_PATH), ca_bundle, labelled=labelled)
    return [pods | {"objectSelector": {"matchLabels": {LABEL: LABEL_VALUE}}}, debug]


def _entries(client: Entry, ca_bundle: bytes | None, *, labelled: bool) -> list[Entry]:
    if ca_bundle is not None:
        client = client | {"caBundle": b64encode(ca_bundle).decode()}
    namespaces = [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [NAMESPACE]}]
    if labelled:
        namespaces.append({"key": NAMESPACE_LABEL, "operator": "In", "values": ["true"]})
    return [
        _entry(name, client, what, condition) | {"namespaceSelector": {"matchExpressions": [*namespaces]}}
        for name, what, condition in (("pods", NEW_POD, POD_CONDITION), ("debug", DEBUG, DEBUG_CONDITION))
    ]


def _entry(name: str, client: Entry, what: str, condition: str) -> Entry:
    operation, resource = what.split()
    return {
        "name": f"{name}.{CONFIGURATION}",
        "admissionReviewVersions": ["v1"],
        "clientConfig": client,
        # An SGX pod that the webhook could not complete must not be created: it would run without its device.
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT,
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": [operation],
                "resources": [resource],
                "scope": "Namespaced",
            }
        ],
        "matchConditions": [{"name": "uses-sgx", "expression": condition}],
    }


def _any(holder: str, field: str, variable: str, condition: str) -> str:
    """Whether a list or a map's keys, which may be missing, hold something that meets the condition."""
    return f"(has({holder}.{field}) && {holder}.{field}.exists({variable}, {condition}))"


def _has_resource(container: str) -> str:
    # Limits are enough: Kubernetes refuses a request without one.
    limits = _any(f"{container}.resources", "limits", "name", f'name.contains("{IN_EVERY_NAME}")')
    return f"(has({container}.resources) && {limits})"


def _has_variable(container: str) -> str:
    return _any(container, "env", "variable", f'variable.name == "{aesm.VARIABLE}"')


def _in_containers(condition: str) -> str:
    containers, init = (_any("object.spec", kind, "c", condition) for kind in ("containers", "initContainers"))
    return f"{containers} || {init}"


def _pod_condition() -> str:
    names = " || ".join(f'key == "{name}"' for name in (MODE_ANNOTATION, INTEL_ANNOTATION))
    annotated = f'{names} || key.startsWith("{CONTAINER_MODE_PREFIX}")'
    # Variables are many, and looking at each of them costs more than all the rest together: it is worth it only where
    # there may be SGX devices by another way than resources.
    claimed = f"(has(object.spec.resourceClaims) && ({_in_containers(_has_variable('c'))}))"
    by_annotation = _any("object.metadata", "annotations", "key", annotated)
    return f"{by_annotation} || {_in_containers(_has_resource('c'))} || {claimed}"


def _debug_condition() -> str:
    named = f'(has(object.metadata.annotations) && ("{CONTAINER_MODE_PREFIX}" + c.name) in object.metadata.annotations)'
    return _any("object.spec", "ephemeralContainers", "c", f"{_has_resource('c')} || {_has_variable('c')} || {named}")


POD_CONDITION = _pod_condition()
"""CEL: a pod with SGX resources, with one of the annotations, or with resource claims and the variable."""
DEBUG_CONDITION = _debug_condition()
"""CEL: an ephemeral container with SGX resources, with the variable, or with an annotation of its own."""
