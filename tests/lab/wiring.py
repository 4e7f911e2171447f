"""How the hosts of a lab are wired: the text for `ip -batch` and the sysctls.

Law: text only; nothing is run here. Every line works on the namespace it is for, or creates a device directly inside
namespaces, so that the namespace of the caller never sees one.

Pods have single addresses (/32, /128) and reach even their neighbours through the node. So a Service reached from a pod
of the same node is translated on the way back without bridge-netfilter, which not every kernel has; and the pod
bridge is still a bridge, for the rules that ask for its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .shape import (
    EXTERNAL_CIDRS,
    SECOND_SEGMENT,
    SEGMENT,
    SERVICE_CIDRS,
    IPNetwork,
    NodePlan,
    Plan,
    PodPlan,
    StrangerPlan,
)
from .values import IPAddress

SWITCH = "switch"
"""The namespace that holds the segment's bridge and the router's address."""
POD_BRIDGE = "cni0"
UPLINK = "eth0"
"""Every host calls its only way out so."""
FIRST_UPLINK_INDEX = 1000
FIRST_PORT_INDEX = 10000


def host_names(plan: Plan) -> list[str]:
    """Return the name of every namespace of the lab, the switch first."""
    pods = [pod.name for node in plan.nodes for pod in node.pods]
    return [SWITCH, *_names_on_segment(plan), *pods]


def links(plan: Plan, namespace: Mapping[str, str]) -> Iterator[str]:
    """Write the lines that create all veth pairs, each end in its own namespace; namespace names by host name."""
    pairs = [(name, SWITCH, name) for name in _names_on_segment(plan)]
    pairs += [(pod.name, node.name, port_of(pod)) for node in plan.nodes for pod in node.pods]
    for number, (host, bridge, port) in enumerate(pairs, start=1):
        # Where both ends of a pair have the same index, the kernel takes the port for an ordinary device and
        # may tell its bridge a second later that it has carrier (linkwatch_urgent_event); frames are lost until then.
        here, there = FIRST_UPLINK_INDEX + number, FIRST_PORT_INDEX + number
        yield (
            f"link add name {UPLINK} netns {namespace[host]} index {here}"
            f" type veth peer name {port} netns {namespace[bridge]} index {there}"
        )


def configurations(plan: Plan) -> dict[str, list[str]]:
    """Write, for each host, the lines to run inside its namespace."""
    lines = {SWITCH: [*_switch(plan)]}
    lines |= {node.name: [*_node(plan, node)] for node in plan.nodes}
    lines |= {pod.name: [*_pod(node, pod)] for node in plan.nodes for pod in node.pods}
    return lines | {stranger.name: [*_stranger(plan, stranger)] for stranger in plan.strangers}


def port_of(pod: PodPlan) -> str:
    """Return the name of the pod's port in its node's namespace."""
    return f"veth-{pod.name}"


def sysctls(plan: Plan) -> dict[str, dict[str, str]]:
    """Return, for each host, what to write below /proc/sys; a file this kernel does not have is passed over."""
    of_any = _of_any_host(ipv6=6 in plan.shape.versions)
    nodes = {node.name for node in plan.nodes}
    return {name: of_any | (_OF_A_NODE if name in nodes else {}) for name in host_names(plan)}


def _of_any_host(*, ipv6: bool) -> dict[str, str]:
    values = {
        # The kernel sends one ICMP error per second to an address, and a thousand in all: a batch of probes that
        # meets REJECT rules would see mostly silence. No type is limited here, or only type 0, which is no error.
        "net/ipv4/icmp_ratemask": "0",
        "net/ipv6/icmp/ratemask": "0",
        # Frames between the ports of a bridge are not routed, so netfilter's IP hooks shall not see them.
        "net/bridge/bridge-nf-call-iptables": "0",
        "net/bridge/bridge-nf-call-ip6tables": "0",
    }
    for scope in ("all", "default"):
        # A new namespace copies the host's IPv4 settings, whatever they are.
        values[f"net/ipv4/conf/{scope}/rp_filter"] = "0"
        values[f"net/ipv6/conf/{scope}/disable_ipv6"] = "0" if ipv6 else "1"
        # An address is usable at once, instead of after a second of looking for another owner.
        values[f"net/ipv6/conf/{scope}/accept_dad"] = "0"
        values[f"net/ipv6/conf/{scope}/accept_ra"] = "0"
        # A pod that its node has told of a shorter way to its neighbour would answer past the node, untranslated. For
        # IPv4 the nodes do not tell; for IPv6 they always do, so the others do not listen.
        values[f"net/ipv6/conf/{scope}/accept_redirects"] = "0"
    return values


_OF_A_NODE = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/default/forwarding": "1",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
}


def _names_on_segment(plan: Plan) -> list[str]:
    return [*(node.name for node in plan.nodes), *(stranger.name for stranger in plan.strangers)]


def _switch(plan: Plan) -> Iterator[str]:
    yield from _bridge("segment", plan.router, SEGMENT)
    for name in _names_on_segment(plan):
        yield f"link set dev {name} master segment up"


def _node(plan: Plan, node: NodePlan) -> Iterator[str]:
    yield from _bridge(POD_BRIDGE, node.gateways, node.pod_cidrs)
    for pod in node.pods:
        yield f"link set dev {port_of(pod)} master {POD_BRIDGE} up"
        yield f"link set dev {port_of(pod)} type bridge_slave hairpin on"
    yield from _uplink(node.addresses, node.second_addresses)
    for other in plan.nodes:
        if other is not node:
            yield from _routes(other.pod_cidrs, other.addresses)
    # Also what makes a Service address reachable for the node itself: the route is looked up before translation.
    yield from (f"route add default via {router}" for router in plan.router)


def _pod(node: NodePlan, pod: PodPlan) -> Iterator[str]:
    yield "link set dev lo up"
    yield f"link set dev {UPLINK} up"
    for address in pod.addresses:
        yield _address(address, address.max_prefixlen, UPLINK)
    for gateway in node.gateways:
        yield f"route add {gateway} dev {UPLINK}"
        yield f"route add default via {gateway} dev {UPLINK} onlink"


def _stranger(plan: Plan, stranger: StrangerPlan) -> Iterator[str]:
    yield "link set dev lo up"
    yield from _uplink(stranger.addresses, stranger.second_addresses)
    for node in plan.nodes:
        yield from _routes(node.pod_cidrs, node.addresses)
    if stranger.via:
        yield from _routes((*SERVICE_CIDRS, *EXTERNAL_CIDRS), stranger.via.addresses)


def _bridge(name: str, addresses: Iterable[IPAddress], networks: Iterable[IPNetwork]) -> Iterator[str]:
    yield "link set dev lo up"
    yield f"link add name {name} up type bridge mcast_snooping 0"
    yield from _addresses(addresses, networks, name)


def _uplink(addresses: Iterable[IPAddress], second_addresses: Iterable[IPAddress]) -> Iterator[str]:
    yield f"link set dev {UPLINK} up"
    lines = [*_addresses(addresses, SEGMENT, UPLINK), *_addresses(second_addresses, SECOND_SEGMENT, UPLINK)]
    # The kernel prefers the oldest IPv4 address as a source, but the youngest IPv6 address; the first shall be it.
    yield from (line for line in lines if "nodad" not in line)
    yield from (line for line in reversed(lines) if "nodad" in line)


def _addresses(addresses: Iterable[IPAddress], networks: Iterable[IPNetwork], device: str) -> Iterator[str]:
    prefix_lengths = {network.version: network.prefixlen for network in networks}
    yield from (_address(address, prefix_lengths[address.version], device) for address in addresses)


def _address(address: IPAddress, prefix_length: int, device: str) -> str:
    no_duplicate_detection = " nodad" if address.version == 6 else ""
    return f"address add {address}/{prefix_length} dev {device}{no_duplicate_detection}"


def _routes(networks: Iterable[IPNetwork], gateways: Iterable[IPAddress]) -> Iterator[str]:
    by_version = {gateway.version: gateway for gateway in gateways}
    for network in networks:
        if network.version in by_version:
            yield f"route add {network} via {by_version[network.version]}"
