"""What both proxies are told: Services with their EndpointSlices, and the zones of the Nodes.

Law: plain values, as they are sent to the API server, which completes and checks them. No two Services of a state claim
the same address and port, so that every packet has one right fate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .world import ADDRESSES, FAMILIES, NODE_OF, PORT, VERSIONS, public

JsonObject: TypeAlias = dict[str, Any]
TargetPorts: TypeAlias = int | Mapping[str, int]

NAMESPACE = "default"
ZONES: Mapping[str, str | None] = {"node1": "a", "node2": "b"}
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"


@dataclass(frozen=True, slots=True)
class Entry:
    """A Service and its slices."""

    service: JsonObject
    slices: tuple[JsonObject, ...] = ()

    @property
    def name(self) -> str:
        """The Service's name."""
        return str(self.service["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class State:
    """All that proxies are told at one time."""

    entries: tuple[Entry, ...]
    zones: Mapping[str, str | None] = field(default_factory=lambda: ZONES)
    """The zone of each Node; None: it has no zone label."""


@dataclass(frozen=True, slots=True)
class On:
    """An endpoint on a host of the lab that is not simply ready."""

    host: str
    conditions: Mapping[str, bool] = field(default_factory=dict)
    zones: Sequence[str] = ()
    """Zones that the hints name."""
    nodes: Sequence[str] = ()
    """Nodes that the hints name."""
    is_placed: bool = True
    """Whether the endpoint says on which node it is."""


def draining(host: str, *, serving: bool = True) -> On:
    """Return the endpoint of a pod that is on its way out."""
    return On(host, {"ready": False, "serving": serving, "terminating": True})


def not_ready(host: str, *, serving: bool = False) -> On:
    """Return the endpoint of a pod that fails its readiness probe."""
    return On(host, {"ready": False, "serving": serving, "terminating": False})


def port(number: int, protocol: str = "TCP", *, name: str = "", node_port: int = 0) -> JsonObject:
    """Return an entry of ``spec.ports``; for types with node ports 0 means any."""
    entry: JsonObject = {"name": name, "protocol": protocol, "port": number}
    return entry | ({"nodePort": node_port} if node_port else {})


def service(
    name: str,
    *ports: JsonObject,
    labels: Mapping[str, str] | None = None,
    ingress: Sequence[JsonObject] = (),
    **spec: object,
) -> JsonObject:
    """Return a Service of both families; further fields of its spec by keyword, its ingress for the status."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels or {})},
        "spec": {"ipFamilies": list(FAMILIES), "ipFamilyPolicy": "RequireDualStack", "ports": list(ports), **spec},
        "status": {"loadBalancer": {"ingress": list(ingress)}},
    }


def ingress(*numbers: int, **more: str) -> list[JsonObject]:
    """Return load balancer ingress entries for public addresses of both families."""
    return [{"ip": address, **more} for number in numbers for address in public(number)]


def slices(
    owner: JsonObject,
    *endpoints: str | On,
    to: TargetPorts = PORT,
    suffix: str = "a",
    labels: Mapping[str, str] | None = None,
) -> tuple[JsonObject, ...]:
    """Return one EndpointSlice for each family of the Service.

    Args:
        owner: the Service.
        endpoints: names of hosts, or `On` for those that are not simply ready.
        to: the number of the endpoints' ports, or numbers by name of the Service's ports.
        suffix: tells several slices of one Service apart.
        labels: further labels of the slices.
    """
    name, spec = owner["metadata"]["name"], owner["spec"]
    numbers = {entry["name"]: to if isinstance(to, int) else to.get(entry["name"]) for entry in spec["ports"]}
    return tuple(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{suffix}-{family.lower()}",
                "namespace": NAMESPACE,
                "labels": {SERVICE_NAME_LABEL: name, **(labels or {})},
            },
            "addressType": family,
            "ports": [
                {"name": entry["name"], "protocol": entry["protocol"], "port": numbers[entry["name"]]}
                for entry in spec["ports"]
                if numbers[entry["name"]]
            ],
            "endpoints": [_endpoint(item, FAMILIES.index(family)) for item in endpoints],
        }
        for family in spec["ipFamilies"]
    )


def entry(owner: JsonObject, *endpoints: str | On, to: TargetPorts = PORT) -> Entry:
    """Return a Service with all its endpoints in one slice a family."""
    return Entry(owner, slices(owner, *endpoints, to=to))


def possible_endpoints(item: Entry, wanted: JsonObject, version: int) -> int:
    """Return to how many endpoints at most packets for a port of the Service may go."""
    family = FAMILIES[VERSIONS.index(version)]
    found = {
        (endpoint["addresses"][0], target["port"])
        for endpoint_slice in item.slices
        if endpoint_slice["addressType"] == family
        for target in endpoint_slice["ports"]
        if (target["name"], target["protocol"]) == (wanted.get("name", ""), wanted["protocol"])
        for endpoint in endpoint_slice["endpoints"]
    }
    return len(found)


def _endpoint(item: str | On, index: int) -> JsonObject:
    on = item if isinstance(item, On) else On(item)
    hints = {"forZones": [{"name": zone} for zone in on.zones], "forNodes": [{"name": node} for node in on.nodes]}
    node = NODE_OF.get(on.host) if on.is_placed else None
    return {
        "addresses": [str(ADDRESSES[on.host][index])],
        "conditions": dict(on.conditions),
        **({"nodeName": node} if node else {}),
        **({"hints": {key: value for key, value in hints.items() if value}} if on.zones or on.nodes else {}),
    }
