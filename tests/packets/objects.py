"""Builders of Kubernetes objects, short enough for packet tables.

The objects are as complete as those of an API server. Each Service has a number, the last part of its cluster IPs; its
EndpointSlices take port names and protocols from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tests.lab.shape import EXTERNAL_CIDRS, SERVICE_CIDRS, ExternalHostPlan, NodePlan, Plan, PodPlan, Shape, plan

JsonObject: TypeAlias = dict[str, Any]
TargetPorts: TypeAlias = int | Mapping[str, int]

NAMESPACE = "default"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
VERSIONS = (4, 6)
FAMILIES = ("IPv4", "IPv6")
PORT = 8080
"""Every pod serves this port, in all protocols."""
SECOND_PORT = 9090
"""A second port that every pod serves."""
ZONES = {"node1": "zone-a", "node2": "zone-b"}
PLAN: Plan = plan(Shape(nodes=2, pods_per_node=3))
"""Hosts and addresses of the lab in which all suites run."""
_HOSTS: tuple[NodePlan | ExternalHostPlan | PodPlan, ...] = (
    *PLAN.nodes,
    *PLAN.external_hosts,
    *(pod for node in PLAN.nodes for pod in node.pods),
)
ADDRESSES: dict[str, tuple[str, ...]] = {host.name: tuple(map(str, host.addresses)) for host in _HOSTS}
NODE_OF = {pod.name: node.name for node in PLAN.nodes for pod in node.pods} | {
    node.name: node.name for node in PLAN.nodes
}
"""The node of each pod, and each node itself."""


def node_plan(name: str) -> NodePlan:
    """Return the plan of a node."""
    return next(node for node in PLAN.nodes if node.name == name)


def cluster_ips(number: int) -> list[str]:
    """Return the cluster IPs that belong to a number, IPv4 first."""
    return [str(cidr.network_address + number) for cidr in SERVICE_CIDRS]


def public(number: int) -> list[str]:
    """Return the addresses of a number in the ranges that external hosts route to a node, IPv4 first."""
    return [str(cidr.network_address + number) for cidr in EXTERNAL_CIDRS]


def port(number: int, protocol: str = "TCP", *, name: str = "", node_port: int = 0) -> JsonObject:
    """Return an entry of ``spec.ports``; in types with node ports, 0 means an arbitrary one."""
    entry: JsonObject = {"name": name, "protocol": protocol, "port": number}
    return entry | ({"nodePort": node_port} if node_port else {})


def unnumbered_service(
    name: str,
    *ports: JsonObject,
    labels: Mapping[str, str] | None = None,
    ingress: Sequence[JsonObject] = (),
    **spec: object,
) -> JsonObject:
    """Return a dual-stack Service; keywords are further fields of its spec, `ingress` is for the status."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels or {})},
        "spec": {"ipFamilies": list(FAMILIES), "ipFamilyPolicy": "RequireDualStack", "ports": list(ports), **spec},
        "status": {"loadBalancer": {"ingress": list(ingress)}},
    }


def service(name: str, number: int, *ports: JsonObject, **more: Any) -> JsonObject:  # noqa: ANN401  # any field
    """Return a Service with the cluster IPs of a number; otherwise like `unnumbered_service`."""
    ips = cluster_ips(number)
    allocated = {"type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips}
    return unnumbered_service(name, *ports, **allocated | more)


def ingress(*numbers: int, **more: str) -> list[JsonObject]:
    """Return load balancer ingress entries for public addresses of both families."""
    return [{"ip": address, **more} for number in numbers for address in public(number)]


@dataclass(frozen=True, slots=True)
class On:
    """An endpoint on a host of the lab that is not simply ready."""

    host: str
    conditions: Mapping[str, bool] = field(default_factory=lambda: {"ready": True})
    zones: Sequence[str] = ()
    """Zones in its hints."""
    nodes: Sequence[str] = ()
    """Nodes in its hints."""
    is_ready_for: bool = True
    """Whether the endpoint has a node name."""


def terminating(host: str, *, serving: bool = True) -> On:
    """Return the terminating endpoint of a pod."""
    return On(host, {"ready": False, "serving": serving, "terminating": True})


def not_ready(host: str, *, serving: bool = False) -> On:
    """Return the endpoint of a pod that is not ready."""
    return On(host, {"ready": False, "serving": serving, "terminating": False})


def slices(
    owner: JsonObject,
    *endpoints: str | On,
    to: TargetPorts = PORT,
    suffix: str = "a",
    labels: Mapping[str, str] | None = None,
) -> list[JsonObject]:
    """Return one EndpointSlice for each family of the Service.

    Args:
        owner: the Service.
        endpoints: names of hosts, or `On` for those that are not simply ready.
        to: the number of the endpoints' ports, or numbers by name of the Service's ports.
        suffix: distinguishes several slices of one Service.
        labels: further labels of the slices.
    """
    name = owner["metadata"]["name"]
    made = [
        endpoint_slice(
            name,
            family,
            [_endpoint(item, FAMILIES.index(family)) for item in endpoints],
            [_slice_port(entry, to) for entry in owner["spec"]["ports"] if _has_target(entry, to)],
            suffix=f"{suffix}-{family.lower()}",
        )
        for family in owner["spec"]["ipFamilies"]
    ]
    for item in made:
        item["metadata"]["labels"] |= labels or {}
    return made


def endpoint_slice(
    owner: str,
    family: str,
    endpoints: Iterable[str | JsonObject],
    ports: Iterable[JsonObject],
    *,
    suffix: str = "1",
) -> JsonObject:
    """Return an EndpointSlice of the Service with this name; an endpoint may be given as its address only."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{owner}-{suffix}", "namespace": NAMESPACE, "labels": {SERVICE_NAME_LABEL: owner}},
        "addressType": family,
        "ports": [*ports],
        "endpoints": [{"addresses": [item]} if isinstance(item, str) else item for item in endpoints],
    }


def backed(*services: JsonObject, by: str) -> list[JsonObject]:
    """Return Services that share one endpoint, and their EndpointSlices."""
    return [item for each in services for item in (each, *slices(each, by))]


def _has_target(entry: JsonObject, to: TargetPorts) -> bool:
    return isinstance(to, int) or entry["name"] in to


def _slice_port(entry: JsonObject, to: TargetPorts) -> JsonObject:
    number = to if isinstance(to, int) else to[entry["name"]]
    return {"name": entry["name"], "protocol": entry["protocol"], "port": number}


def _endpoint(item: str | On, index: int) -> JsonObject:
    on = item if isinstance(item, On) else On(item)
    hints = {"forZones": [{"name": zone} for zone in on.zones], "forNodes": [{"name": node} for node in on.nodes]}
    node = NODE_OF.get(on.host) if on.is_ready_for else None
    return {
        "addresses": [ADDRESSES[on.host][index]],
        "conditions": dict(on.conditions),
        **({"nodeName": node} if node else {}),
        **({"hints": {key: value for key, value in hints.items() if value}} if on.zones or on.nodes else {}),
    }


def node(name: str) -> JsonObject:
    """Return the Node with this name."""
    planned = node_plan(name)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": ZONES[name]}},
        "spec": {"podCIDR": str(planned.pod_cidrs[0]), "podCIDRs": [str(cidr) for cidr in planned.pod_cidrs]},
        "status": {"addresses": [{"type": "InternalIP", "address": str(ip)} for ip in planned.addresses]},
    }
