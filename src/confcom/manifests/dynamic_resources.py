"""What publisher `dra` needs beside the device plugin: device classes, rights on slices, the quote helper's claim."""

from __future__ import annotations

from confcom.manifests import rbac
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import DEVICE_PLUGIN, QUOTE_HELPER, Object, labels, namespaced_object
from confcom.manifests.own_node_policy import admission_policy, of_own_node
from confcom.protocols import dra_objects

_GROUP = "resource.k8s.io"
_POLICY = "sgx-device-plugin-own-slices.confcom.dev"
CLAIM = "sgx"
"""The quote helper's claim, as its pod calls it."""


def device_classes() -> list[Object]:
    """The classes by which claims find EPC and the provisioning device."""
    found: list[Object] = [
        dra_objects.device_class(dra_objects.EPC_CLASS, "epc"),
        dra_objects.device_class(dra_objects.PROVISION_CLASS, "provision"),
    ]
    for one in found:
        one["metadata"]["labels"] = labels(DEVICE_PLUGIN.component)
    return found


def slice_rules() -> list[Object]:
    """What the driver may do with slices and claims; the policy below narrows it down to its own node."""
    return [
        rbac.rule(_GROUP, ["resourceslices"], ["get", "list", "watch", "create", "update", "delete"]),
        rbac.rule(_GROUP, ["resourceclaims"], ["get"]),
    ]


def own_slices_policy() -> list[Object]:
    """The device plugin writes slices of its own node and driver only."""
    found = "(request.operation == 'DELETE' ? oldObject : object)"
    return admission_policy(
        _POLICY,
        {
            "apiGroups": [_GROUP],
            "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE", "DELETE"],
            "resources": ["resourceslices"],
        },
        [
            {
                "expression": of_own_node(f"{found}.spec.nodeName"),
                "message": "the SGX device plugin writes slices of its own node only",
            },
            {
                "expression": f"{found}.spec.driver == '{dra_objects.DRIVER}'",
                "message": f"the SGX device plugin writes slices of the driver {dra_objects.DRIVER} only",
            },
        ],
    )


def helper_claim(config: AddonConfig) -> Object:
    """The template of the claim that each pod of the quote helper makes: EPC for QE and PCE, and provisioning."""
    amount = {"requests": {dra_objects.EPC_CAPACITY: f"{config.quote_helper_epc_mib}Mi"}}
    requests = [
        {"name": "epc", "exactly": {"deviceClassName": dra_objects.EPC_CLASS, "capacity": amount}},
        {"name": "provision", "exactly": {"deviceClassName": dra_objects.PROVISION_CLASS}},
    ]
    return namespaced_object(
        dra_objects.API_VERSION,
        "ResourceClaimTemplate",
        QUOTE_HELPER.name,
        QUOTE_HELPER.component,
        spec={"spec": {"devices": {"requests": requests}}},
    )


def claim_of_pod() -> Object:
    """How the quote helper's pod names its claim."""
    return {"resourceClaims": [{"name": CLAIM, "resourceClaimTemplateName": QUOTE_HELPER.name}]}
