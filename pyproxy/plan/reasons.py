"""Why a Service does not work, in words, and what to do about it.

The plan says what happens to traffic of a Service port; this module says which field of which object is the cause. It
decides nothing about packets. ``explain``, ``services`` and ``doctor`` print these texts.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from pyproxy.model.address import Family, Network, family_of, ip_text, parse_network
from pyproxy.model.endpoint import Endpoint, EndpointSlice, SliceEndpoint
from pyproxy.model.names import NamespacedName, ServicePortName
from pyproxy.model.node import Node
from pyproxy.model.service import NoPacketPath, Service, ServicePort
from pyproxy.model.suggestion import nearest
from pyproxy.plan.service_plan import Verdict
from pyproxy.plan.topology import merge_slices

_MOST_LISTED = 3  # Endpoints that a text lists; the number of further ones follows
# Sources that no client on a network has: RFC 1122 ("this host", loopback), RFC 5771 and RFC 4291 (multicast).
_NO_CLIENTS = tuple(map(parse_network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "::1/128", "ff00::/8")))


class ReasonCode(Enum):
    """A cause; the values are those of JSON output."""

    NO_SLICES = "no-slices"
    NO_ENDPOINTS = "no-endpoints"
    OTHER_FAMILY = "other-family"
    """Endpoints exist in the other address family only."""
    PORT_MISMATCH = "port-mismatch"
    """No slice has a port of this name and protocol."""
    NOT_READY = "not-ready"
    NO_LOCAL_ENDPOINTS = "no-local-endpoints"
    """For traffic to the cluster IP, under internalTrafficPolicy: Local."""
    NO_LOCAL_ENDPOINTS_EXTERNAL = "no-local-endpoints-external"
    """For traffic from outside the cluster, under externalTrafficPolicy: Local."""
    SOURCE_RANGES = "source-ranges"
    OPEN = "open"
    """The source ranges restrict only the other address family."""
    WRONG_ENDPOINT = "wrong-endpoint"
    """An endpoint is a loopback address or the cluster IP of a Service, and not a pod."""
    LOAD_BALANCER_PENDING = "load-balancer-pending"
    LOAD_BALANCER_PROXIES = "load-balancer-proxies"
    """The ipMode of the address is Proxy."""
    HEADLESS = "headless"
    EXTERNAL_NAME = "external-name"
    OTHER_PROXY = "other-proxy"
    INVALID = "invalid"
    """The Service cannot be decoded."""
    NO_FRONTEND = "no-frontend"
    """The Service has no address and port that can be used."""
    NO_NODE_PORT_ADDRESS = "no-node-port-address"
    """No address of the node serves node ports."""
    CLAIMED = "claimed"
    """Another Service has the same address and port, and takes precedence."""


class Reason(NamedTuple):
    """A cause."""

    code: ReasonCode
    verdict: Verdict
    """What happens to the traffic that it affects; `FORWARD` if no rule of ours does anything to it."""
    text: str
    fix: str


def reasons(
    service: Service,
    slices: Iterable[EndpointSlice],
    node: Node,
    family: Family,
    orphans: Collection[EndpointSlice] = (),
) -> dict[ServicePortName, tuple[Reason, ...]]:
    """Return for each port of a Service why traffic to it is rejected or dropped on a node; nothing for a port that works.

    Args:
        service: the Service.
        slices: its slices, of both families.
        node: the node that receives the traffic.
        family: the family of the traffic; a Service that does not exist in it has no ports there.
        orphans: slices of Services that do not exist, one of which may be meant for this one.
    """
    if family not in service.families:
        return {}
    slices = tuple(slices)
    found = {
        ServicePortName(service.name, port.name, port.protocol): _port_reasons(service, port, slices, node, family)
        for port in service.ports
    }
    if not slices and (hint := _meant_for(service.name, orphans)):
        return {name: tuple(each._replace(text=f"{each.text}{hint}") for each in why) for name, why in found.items()}
    return found


def source_range_reason(ranges: Collection[Network], source: bytes) -> Reason | None:
    """Return why the load balancer addresses of a Service are closed to a client; None if they are open.

    Args:
        ranges: the source ranges of the client's family; no range admits every client.
        source: the address of the client.
    """
    # The rules compare the address that the packet has when it reaches the node: a client behind a gateway with NAT has
    # the address of the gateway.
    if not ranges or any(source in block for block in ranges):
        return None
    listed = ", ".join(map(str, ranges))
    return Reason(
        ReasonCode.SOURCE_RANGES,
        Verdict.DROP,
        f"{ip_text(source)} is not in spec.loadBalancerSourceRanges ({listed})",
        "add the client's range to spec.loadBalancerSourceRanges, or use another address of the Service",
    )


def no_client_reason(ranges: Collection[Network]) -> Reason | None:
    """Return why no client can use the load balancer addresses of a Service; None if some can."""
    # Each range as a whole has to be in such a block: 0.0.0.0/0 contains them all, and admits every client.
    if not ranges or not all(
        any(one.ip in each and one.prefix >= each.prefix for each in _NO_CLIENTS) for one in ranges
    ):
        return None
    listed = ", ".join(map(str, ranges))
    return Reason(
        ReasonCode.SOURCE_RANGES,
        Verdict.DROP,
        f"no client has an address in spec.loadBalancerSourceRanges ({listed})",
        "add the ranges of the clients to spec.loadBalancerSourceRanges",
    )


def open_reason(ranges: Collection[Network], family: Family) -> Reason | None:
    """Return that source ranges do not restrict an address of a family; None if they do, or if there are none."""
    # As in kube-proxy, each family has its own ranges only, and a family without any is open.
    if not ranges or any(each.family is family for each in ranges):
        return None
    return Reason(
        ReasonCode.OPEN,
        Verdict.FORWARD,
        f"open to all clients: spec.loadBalancerSourceRanges has no {family} range",
        f"add an {family} range to spec.loadBalancerSourceRanges",
    )


def wrong_endpoint(text: str) -> Reason:
    """Return why an endpoint cannot work, in words."""
    return Reason(
        ReasonCode.WRONG_ENDPOINT, Verdict.FORWARD, text, "list the addresses of the pods in the EndpointSlice"
    )


def pending_reason() -> Reason:
    """Return why a Service of type LoadBalancer has no address."""
    return Reason(
        ReasonCode.LOAD_BALANCER_PENDING,
        Verdict.FORWARD,
        "status.loadBalancer has no address: no load balancer controller has set one",
        "check that a controller (a cloud provider, MetalLB) handles the Service, or use its node port",
    )


def proxied_reason(ip: bytes) -> Reason:
    """Return why nodes do not serve a load balancer address."""
    return Reason(
        ReasonCode.LOAD_BALANCER_PROXIES,
        Verdict.FORWARD,
        f"the ipMode of {ip_text(ip)} is Proxy: the load balancer itself handles traffic to it",
        "check that the address leads to the load balancer",
    )


def no_packet_path(kind: NoPacketPath) -> Reason:
    """Return why a Service has no rules at all."""
    match kind:
        case NoPacketPath.HEADLESS:
            code, text = ReasonCode.HEADLESS, "the Service is headless (clusterIP: None): DNS returns its endpoints"
            fix = "connect to an endpoint, or create a Service with a cluster IP"
        case NoPacketPath.EXTERNAL_NAME:
            code, text = ReasonCode.EXTERNAL_NAME, "the Service is of type ExternalName: DNS returns another name"
            fix = "connect to spec.externalName"
        case NoPacketPath.OTHER_PROXY:
            code, text = (
                ReasonCode.OTHER_PROXY,
                "the label service.kubernetes.io/service-proxy-name selects another proxy",
            )
            fix = "remove the label, or look at that proxy"
    return Reason(code, Verdict.FORWARD, text, fix)


def _port_reasons(
    service: Service, port: ServicePort, slices: tuple[EndpointSlice, ...], node: Node, family: Family
) -> tuple[Reason, ...]:
    candidates = merge_slices(slices, family, port.name, port.protocol)
    if not candidates:
        return (_without_candidates(service, port, slices, family),)
    # As in `topology`: a terminating endpoint that serves is used if no other one is ready.
    usable = {
        endpoint: item for endpoint, item in candidates.items() if item.ready or (item.serving and item.terminating)
    }
    if not usable:
        count = len(candidates)
        what = "the only endpoint is" if count == 1 else f"all {count} endpoints are"
        if all(item.terminating for item in candidates.values()):
            text = f"{what} terminating, and no longer serving ({_listed(candidates)})"
            fix = "find out with kubectl get pods why there is no new pod"
        else:
            text = f"{what} not ready ({_listed(candidates)})"
            fix = "find out why with kubectl describe pod: a readiness probe that fails, or a container that does not start"
        return (Reason(ReasonCode.NOT_READY, Verdict.REJECT, text, fix),)
    # An endpoint on this node is enough for both policies.
    if any(item.node_name == node.name for item in usable.values()):
        return ()
    local = [item for item in candidates.values() if item.node_name == node.name]
    found: list[Reason] = []
    if service.internal_policy_local and any(family_of(ip) is family for ip in service.cluster_ips):
        found.append(_no_local(ReasonCode.NO_LOCAL_ENDPOINTS, "internalTrafficPolicy", usable, len(local), node))
    external_ips = (*service.external_ips, *service.load_balancer_ips)
    if service.external_policy_local and (port.node_port or any(family_of(ip) is family for ip in external_ips)):
        code = ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL
        found.append(_no_local(code, "externalTrafficPolicy", usable, len(local), node))
    return tuple(found)


def _without_candidates(
    service: Service, port: ServicePort, slices: tuple[EndpointSlice, ...], family: Family
) -> Reason:
    own = [each for each in slices if each.family is family]
    if not slices:
        return Reason(
            ReasonCode.NO_SLICES,
            Verdict.REJECT,
            "the Service has no EndpointSlice",
            "compare spec.selector with the labels of the pods; without a selector, create an EndpointSlice with"
            f" the label kubernetes.io/service-name: {service.name.name}",
        )
    # From the largest cause to the smallest: no slice, no endpoint in the family, no port of this name and protocol.
    if not any(each.endpoints for each in own):
        if any(each.endpoints for each in slices):
            other = Family.IPV6 if family is Family.IPV4 else Family.IPV4
            return Reason(
                ReasonCode.OTHER_FAMILY,
                Verdict.REJECT,
                f"all endpoints are {other}, the Service also exists in {family}"
                if len(service.families) > 1
                else f"all endpoints are {other}, the Service is {family}",
                f"give the pods {family} addresses, or set spec.ipFamilies to [{other}]",
            )
        return Reason(
            ReasonCode.NO_ENDPOINTS,
            Verdict.REJECT,
            "the EndpointSlices of the Service list no endpoint",
            "compare spec.selector with the labels of the pods, and check that the pods run",
        )
    return _port_mismatch(port, own)


def _meant_for(service: NamespacedName, orphans: Collection[EndpointSlice]) -> str:
    # The end of a sentence, or nothing.
    elsewhere = next((each for each in orphans if each.service.name == service.name), None)
    if elsewhere is not None:
        return f"; {elsewhere.name} is in another namespace"
    beside = {each.service.name: each for each in orphans if each.service.namespace == service.namespace}
    if name := nearest(service.name, beside):
        return f"; {beside[name].name} has the label of {name}, which does not exist"
    return ""


def _port_mismatch(port: ServicePort, slices: Iterable[EndpointSlice]) -> Reason:
    found = sorted({(each.name, each.protocol) for one in slices if one.endpoints for each in one.ports})
    wanted = _quoted(port.name)
    if not found:
        text, fix = f"slice has no ports, Service wants {wanted}", "check spec.ports[].targetPort and the pod's ports"
    elif names := [name for name, protocol in found if protocol is port.protocol]:
        word = "port" if len(names) == 1 else "ports"
        text = f"slice has {word} {', '.join(map(_quoted, names))}, Service wants {wanted}"
        fix = f"give the port of the slice and that of the Service the same name ({wanted})"
    else:
        shown = ", ".join(f"{_quoted(name)}/{protocol.name}" for name, protocol in found)
        text = f"slice has {shown}, Service wants {wanted}/{port.protocol.name}"
        fix = "use the same protocol in the slice and in the Service"
    return Reason(ReasonCode.PORT_MISMATCH, Verdict.REJECT, text, fix)


def _no_local(
    code: ReasonCode, policy: str, usable: Mapping[Endpoint, SliceEndpoint], unusable: int, node: Node
) -> Reason:
    here = f"{unusable} here not ready" if unusable else "0 here"
    word = "endpoint" if len(usable) == 1 else "endpoints"
    nodes = sorted({item.node_name for item in usable.values() if item.node_name})
    text = f"{len(usable)} {word} {'elsewhere' if nodes else 'without a nodeName'} ({_listed(usable)}), {here}"
    # A cloud provider may give the Node another name than the host has. An agent with the wrong name finds no local
    # endpoint, although pods of the Service run on its node.
    own = next((item for item in usable.values() if any(item.ip in block for block in node.pod_cidrs)), None)
    if not nodes:
        return Reason(code, Verdict.DROP, text, f"set nodeName of the endpoints, or {policy}: Cluster")
    if own is not None and own.node_name:
        text = f"{text}; {ip_text(own.ip)} is in a pod CIDR of {node.name}, but its nodeName is {own.node_name}"
        fix = "set --hostname-override of pyproxy, and nodeName of the endpoints, to the name of the Node"
        return Reason(code, Verdict.DROP, text, fix)
    # A client outside the cluster can use another node. A pod uses the rules of its own one.
    if code is ReasonCode.NO_LOCAL_ENDPOINTS:
        fix = f"run a pod of the Service on {node.name}, or set {policy}: Cluster"
    else:
        fix = f"send the client to {' or '.join(nodes[:_MOST_LISTED])}, or set {policy}: Cluster"
    return Reason(code, Verdict.DROP, text, fix)


def _listed(endpoints: Mapping[Endpoint, SliceEndpoint]) -> str:
    nodes = {endpoint.ip: item.node_name for endpoint, item in sorted(endpoints.items())}
    texts = [f"{ip_text(ip)} on {name}" if name else ip_text(ip) for ip, name in nodes.items()]
    more = len(texts) - _MOST_LISTED
    return ", ".join([*texts[:_MOST_LISTED], *([f"{more} more"] if more > 0 else [])])


def _quoted(name: str) -> str:
    return f'"{name}"' if name else "without a name"
