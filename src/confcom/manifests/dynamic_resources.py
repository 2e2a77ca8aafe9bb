"""What publisher `dra` needs beside the device plugin: device classes, and rights on slices."""

from __future__ import annotations

from confcom.manifests import rbac
from confcom.manifests.objects import DEVICE_PLUGIN, Object, labels
from confcom.protocols import dra_objects

_GROUP = "resource.k8s.io"


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


def trial_claim() -> Object:
    """A template of a claim of 1 MiB, to find out whether a cluster keeps the amount."""
    amount = {"requests": {dra_objects.EPC_CAPACITY: "1Mi"}}
    request = {"name": "epc", "exactly": {"deviceClassName": dra_objects.EPC_CLASS, "capacity": amount}}
    spec = {"spec": {"devices": {"requests": [request]}}}
    # A namespace that every cluster has: the add-on's own may not be there yet.
    metadata = {"name": "confcom-trial", "namespace": "default"}
    return {"apiVersion": dra_objects.API_VERSION, "kind": "ResourceClaimTemplate", "metadata": metadata, "spec": spec}
