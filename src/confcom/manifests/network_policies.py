"""Who may talk to whom: nobody in the namespace, except for what a component is there for.

The API server and the kubelet are no pods, so their side of a rule is ports, or addresses that the operator names.
"""

from __future__ import annotations

from confcom.manifests.objects import ITSELF, Object, Workload, namespaced_object, selector

DNS_PORT = 53


def nothing_else() -> Object:
    """What the other policies do not open is closed."""
    return namespaced_object(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "confcom-nothing-else",
        ITSELF.component,
        spec={"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    )


def opening(
    workload: Workload,
    *,
    ingress: tuple[int, ...] = (),
    egress: tuple[int, ...] = (),
    more: tuple[int, ...] = (),
    called: tuple[int, ...] = (),
    callers: tuple[str, ...] = (),
) -> Object:
    """TCP ports that a component serves at, and ports at which it may ask others; with DNS if 53 is among these.

    `more` are further ports at which it may ask, some of which `egress` may have too. The ports `called` are open
    to the CIDRs `callers` alone, or to every source where there are none.
    """
    rules: list[Object] = [{"ports": [_port(port) for port in ports]} for ports in (ingress, called) if ports]
    if called and callers:
        rules[-1]["from"] = [{"ipBlock": {"cidr": cidr}} for cidr in callers]
    spec: Object = {
        "podSelector": {"matchLabels": selector(workload.component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": rules,
        "egress": [{"ports": [_port(port) for port in ports] + _dns(ports)} for ports in (egress, more) if ports],
    }
    return namespaced_object("networking.k8s.io/v1", "NetworkPolicy", workload.name, workload.component, spec=spec)


def _port(port: int, protocol: str = "TCP") -> Object:
    return {"port": port, "protocol": protocol}


def _dns(ports: tuple[int, ...]) -> list[Object]:
    return [_port(DNS_PORT, "UDP")] if DNS_PORT in ports else []
