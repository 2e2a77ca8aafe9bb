"""The Kubernetes API for one node's device plugin (extra `kube`): a NodeCluster."""

from __future__ import annotations

from dataclasses import dataclass

from confcom.cluster.kube_node import KubeNode
from confcom.cluster.resource_slices import KubeResourceClaims, KubeResourceSlices
from confcom.protocols.dra_objects import DRIVER


@dataclass(frozen=True, slots=True)
class KubeNodeCluster:
    """`kubeconfig` None means in-cluster credentials, else $KUBECONFIG or the user's file."""

    node: str
    kubeconfig: str | None = None

    def status(self) -> KubeNode:
        """To the Node object's status."""
        return KubeNode(self.node, kubeconfig=self.kubeconfig)

    def slices(self) -> KubeResourceSlices:
        """To the node's ResourceSlices."""
        return KubeResourceSlices(self.node, DRIVER, kubeconfig=self.kubeconfig)

    def claims(self) -> KubeResourceClaims:
        """To claims."""
        return KubeResourceClaims(kubeconfig=self.kubeconfig)
