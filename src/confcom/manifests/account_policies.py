"""Admission policies: what the add-on's accounts may write, and who may request what is reserved.

RBAC names objects and verbs, not fields, and cannot say "your own node": `patch` on `nodes/status` lets every device
plugin write to every node, and there to owner references and finalizers too. Policies compare the node with that of the
pod's token, and the new object with the old one. Each names what may change; every other field has to stay as it is,
also those that a later Kubernetes adds.
"""

from __future__ import annotations

from collections.abc import Iterable

from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    CLEANUP,
    DEVICE_PLUGIN,
    METRICS,
    NAMESPACE,
    Object,
    Workload,
    global_object,
    number,
)
from confcom.protocols.epc import (
    BOOT_ANNOTATION,
    CANONICAL,
    DRA_DRIVER,
    HELPER_EPC,
    MAX_SLICE_NAME,
    OVERCOMMIT_LABEL,
    PROVISION,
    TRUE_SIZE_LABEL,
)

EVENTS_CONTROLLER = "confcom.dev/metrics"
"""The reporting controller of the events that the exporter of EPC use writes."""
_ADMISSION = "admissionregistration.k8s.io"
_NODE_CLAIM = "authentication.kubernetes.io/node-name"
_SERVERS_OWN = ("managedFields", "resourceVersion", "generation")
"""Metadata that the API server writes with each change."""
_NODE_MAPS = ("metadata", "metadata.labels", "metadata.annotations", "status", "status.capacity", "status.allocatable")


def own_node(config: AddonConfig) -> list[Object]:
    """The device plugin writes EPC and its own marks to the status of its own node, and nothing else."""
    found = "(variables.sizedAt == variables.boot && variables.sizedAtBefore != variables.boot)"
    bound = f"variables.size <= variables.sizeBefore || {found}"
    boot_rule = "variables.sizedAt == variables.boot || variables.sizedAt == variables.sizedAtBefore"
    size_rule, how = bound, "found once per boot, and only lowered until the next"
    if config.platform == "simulated":
        size_rule, how = "variables.size <= variables.simulated", "no more than simulatedEpc says"
    return policy(
        "sgx-device-plugin-own-node.confcom.dev",
        DEVICE_PLUGIN,
        _rule("", "nodes/status", "UPDATE"),
        {
            _of_own_node("object.metadata.name"): "the SGX device plugin writes to the status of its own node only",
            **_kept("node", "metadata", "status"),
            **_kept("metadata", "labels", "annotations", *_SERVERS_OWN),
            **_kept("status", "capacity", "allocatable"),
            **_kept("capacity", CANONICAL),
            **_kept("allocatable", CANONICAL),
            **_kept("labels", TRUE_SIZE_LABEL, OVERCOMMIT_LABEL),
            **_kept("annotations", BOOT_ANNOTATION),
            boot_rule: f"{BOOT_ANNOTATION} is its boot id",
            size_rule: f"{TRUE_SIZE_LABEL} is the EPC that the node has: {how}",
            " && ".join(map(_bounded, ("capacity", "allocatable"))): f"{CANONICAL} is no more than "
            f"{TRUE_SIZE_LABEL} times the overcommit ratio",
        },
        _maps("node", *_NODE_MAPS) | _sizes(config),
    )


def own_marks(resources: Iterable[str]) -> list[Object]:
    """The Job before an uninstall by Helm removes marks and `resources` from nodes; the rest of them stays."""
    names = tuple(resources)
    removed: dict[str, str] = {}
    for part, keys in (
        ("labels", (TRUE_SIZE_LABEL, OVERCOMMIT_LABEL)),
        ("annotations", (BOOT_ANNOTATION,)),
        ("capacity", names),
        ("allocatable", names),
    ):
        gone = f"![{', '.join(map(repr, keys))}].exists(k, k in variables.{part})"
        removed |= _kept(part, *keys) | {gone: f"the cleanup removes {', '.join(keys)}"}
    return policy(
        f"{CLEANUP.name}-own-marks.confcom.dev",
        CLEANUP,
        _rule("", "nodes/status", "UPDATE"),
        {
            **_kept("node", "metadata", "status"),
            **_kept("metadata", "labels", "annotations", *_SERVERS_OWN),
            **_kept("status", "capacity", "allocatable"),
            **removed,
        },
        _maps("node", *_NODE_MAPS),
    )


def own_slices() -> list[Object]:
    """The device plugin writes the ResourceSlice of its own node, pool and driver, under its own name."""
    driver, longest = DRA_DRIVER, MAX_SLICE_NAME - len(DRA_DRIVER) - 1
    node, deleted = "variables.written.spec.nodeName", "request.operation == 'DELETE'"
    named = f"size({node}) > {longest} || object.metadata.name == {node} + '-{driver}'"
    owners = f"variables.owners.all(o, o.kind == 'Node' && o.apiVersion == 'v1' && o.name == {node})"
    who = "the SGX device plugin writes slices of"
    return policy(
        "sgx-device-plugin-own-slices.confcom.dev",
        DEVICE_PLUGIN,
        _rule("resource.k8s.io", "resourceslices", "CREATE", "UPDATE", "DELETE"),
        {
            _of_own_node(node): f"{who} its own node only",
            f"variables.written.spec.driver == '{driver}'": f"{who} the driver {driver} only",
            f"variables.written.spec.pool.name == {node}": f"{who} the pool that is called as its node only",
            f"{deleted} || {named}": f"{who} the name NODE-{driver} only",
            f"{deleted} || (size(variables.finalizers) == 0 && {owners})": "the SGX device plugin's slice has no "
            "finalizers, and no owner but its node",
        },
        {
            "written": f"{deleted} ? oldObject : object",
            "owners": f"{deleted} ? [] : object.metadata.?ownerReferences.orValue([])",
            "finalizers": f"{deleted} ? [] : object.metadata.?finalizers.orValue([])",
        },
    )


def own_events() -> list[Object]:
    """The exporter of EPC use writes events of its own about pods of its node, and counts on in those alone."""
    node = {_of_own_node("object.reportingInstance"): "the metrics component reports as its own node only"}
    return _events("sgx-metrics-own-events.confcom.dev", METRICS, EVENTS_CONTROLLER, node)


def own_pod_events(workload: Workload, controller: str) -> list[Object]:
    """A component writes events of its own controller about pods, and counts on in those alone."""
    return _events(f"{workload.name}-own-pod-events.confcom.dev", workload, controller, {})


def _events(name: str, workload: Workload, controller: str, more: dict[str, str]) -> list[Object]:
    created, who = "request.operation == 'CREATE'", f"the {workload.component} component"
    controllers = ("object", f"({created} ? object : oldObject)")
    own = " && ".join(f"{one}.reportingController == '{controller}'" for one in controllers)
    bare = "size(object.metadata.?ownerReferences.orValue([])) + size(object.metadata.?finalizers.orValue([])) == 0"
    return policy(
        name,
        workload,
        _rule("events.k8s.io", "events", "CREATE", "UPDATE"),
        {
            own: f"{who} writes events of the controller {controller} only",
            **more,
            "object.regarding.kind == 'Pod'": f"{who} writes events about pods only",
            bare: f"{who}'s events have no owners and no finalizers",
            **_kept("event", "metadata", "series"),
            **_kept("metadata", *_SERVERS_OWN),
        },
        _maps("event", "metadata", old=controllers[1]),
    )


def own_data(workload: Workload, keys: Iterable[str]) -> list[Object]:
    """A service changes `keys` of its Secret and its ConfigMap, and nothing else of these objects."""
    return policy(
        f"{workload.name}-own-data.confcom.dev",
        workload,
        _rule("", "secrets", "UPDATE") | {"resources": ["secrets", "configmaps"]},
        {**_kept("object", "metadata", "data"), **_kept("metadata", *_SERVERS_OWN), **_kept("data", *keys)},
        _maps("object", "metadata", "data"),
    )


def reserved(config: AddonConfig) -> list[Object]:
    """Pods outside the add-on request neither the quote helper's EPC nor, without a grant, the provisioning device.

    The webhook refuses the latter with more words, and the device plugin refuses both before a container starts; but
    the webhook can be disabled, and by then the pod has taken a place on a node.
    """
    containers = "(object.spec.containers + object.spec.?initContainers.orValue([]))"
    wants = "'{}' in c.?resources.?limits.orValue({{}})"
    account = "request.namespace + '/' + object.spec.?serviceAccountName.orValue('default')"
    grants = f"'{','.join(config.provision_grants)}'.split(',')"
    granted = f"[request.namespace + '/*', {account}].exists(g, g in {grants})"
    return policy(
        "sgx-reserved.confcom.dev",
        DEVICE_PLUGIN,
        _rule("", "pods", "CREATE"),
        {
            f"{containers}.all(c, !({wants.format(HELPER_EPC)}))": f"{HELPER_EPC} is the quote helper's: request "
            f"{CANONICAL}",
            f"{granted} || {containers}.all(c, !({wants.format(PROVISION)}))": "this service account has no "
            f"grant for {PROVISION} (--provision-grants)",
        },
        everybody=True,
    )


def policy(
    name: str,
    workload: Workload,
    rule: Object,
    validations: dict[str, str],
    variables: dict[str, str] | None = None,
    *,
    everybody: bool = False,
) -> list[Object]:
    """A policy over what a component's account asks for, or everybody outside the add-on's namespace; its binding.

    `validations` are CEL expressions with their messages, `variables` names with theirs.
    """
    matched: Object = {"resourceRules": [rule]}
    spec: Object = {
        "failurePolicy": "Fail",
        "matchConstraints": matched,
        "variables": [{"name": one, "expression": expression} for one, expression in (variables or {}).items()],
        "validations": [{"expression": one, "message": message} for one, message in validations.items()],
    }
    if everybody:
        others = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [NAMESPACE]}
        matched["namespaceSelector"] = {"matchExpressions": [others]}
    else:
        account = f"system:serviceaccount:{NAMESPACE}:{workload.name}"
        spec["matchConditions"] = [{"name": "account", "expression": f"request.userInfo.username == '{account}'"}]
    binding = {"policyName": name, "validationActions": ["Deny"]}
    return [
        global_object(f"{_ADMISSION}/v1", kind, name, workload.component, spec=body)
        for kind, body in (("ValidatingAdmissionPolicy", spec), ("ValidatingAdmissionPolicyBinding", binding))
    ]


def _rule(group: str, resource: str, *operations: str) -> Object:
    return {"apiGroups": [group], "apiVersions": ["v1"], "operations": [*operations], "resources": [resource]}


def _of_own_node(node: str) -> str:
    """CEL: the request comes from a pod on the node that the expression `node` names."""
    claim = f"request.userInfo.extra['{_NODE_CLAIM}']"
    return f"'{_NODE_CLAIM}' in request.userInfo.extra && {claim} == [{node}]"


def _maps(whole: str, *paths: str, old: str = "oldObject") -> dict[str, str]:
    """CEL variables: the object as `whole`, maps in it by the last word of their path, and as `…Before` those of `old`.

    `dyn`, because the API server knows the types and would not let their fields be walked through.
    """
    found = {}
    for suffix, side in (("", "object"), ("Before", old)):
        found[f"{whole}{suffix}"] = f"dyn({side})"
        for path in paths:
            place = "".join(f".?{word}" for word in path.split("."))
            found[f"{path.split('.')[-1]}{suffix}"] = f"dyn({side}{place}.orValue({{}}))"
    return found


def _kept(name: str, *but: str) -> dict[str, str]:
    """A validation: no entry of a map changes, except for those named."""
    new, old, names = f"variables.{name}", f"variables.{name}Before", f"[{', '.join(map(repr, but))}]"
    kept = f"{new}.all(k, k in {names} || (k in {old} && {old}[k] == {new}[k]))"
    return {f"{kept} && {old}.all(k, k in {names} || k in {new})": f"nothing of the {name} may change but "
            f"{', '.join(but)}"}  # fmt: skip


def _bounded(part: str) -> str:
    """CEL: the amount of EPC is as it was, or no more than there can be."""
    new, old = (f"variables.{part}{suffix}[?'{CANONICAL}'].orValue('0')" for suffix in ("", "Before"))
    return f"({new} == {old} || quantity({new}).compareTo(quantity(string(variables.most))) <= 0)"


def _sizes(config: AddonConfig) -> dict[str, str]:
    """CEL variables: MiB of EPC, the most that may be requested of it, and the boot in which it was found."""
    found = {
        "size": f"int(variables.labels[?'{TRUE_SIZE_LABEL}'].orValue('0'))",
        "sizeBefore": f"int(variables.labelsBefore[?'{TRUE_SIZE_LABEL}'].orValue('0'))",
        # The plugin's product is exact; this one is of binary fractions.
        "most": f"int(double(variables.size) * double('{number(config.overcommit)}') + 0.001)",
        "boot": "object.status.?nodeInfo.?bootID.orValue('')",
        "sizedAt": f"variables.annotations[?'{BOOT_ANNOTATION}'].orValue('')",
        "sizedAtBefore": f"variables.annotationsBefore[?'{BOOT_ANNOTATION}'].orValue('')",
    }
    if config.platform == "simulated":
        # As the plugin reads it: binary units, however they are written.
        words = f"'{config.simulated_epc}'.split(',').map(s, s.replace('iB', '').replace('i', ''))"
        sizes = f"{words}.map(s, quantity(s.matches('[KMGT]$') ? s + 'i' : s).asInteger() / {1 << 20})"
        found["simulated"] = f"{sizes}.sum()"
    return found
