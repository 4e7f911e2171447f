"""How the hosts of a lab are connected: lines for `ip -batch`, and sysctls.

Pure: nothing is run here. Every line configures one namespace, or creates a device directly inside namespaces, so that
no device ever appears in the namespace of the caller.

Pods have single addresses (/32, /128) and reach other pods of their node through the node. So the answer to a pod of
the same node is translated without bridge-netfilter, which not every kernel has. The pods are still ports of a bridge,
for rules that match its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .shape import (
    EXTERNAL_CIDRS,
    SECOND_SEGMENT,
    SEGMENT,
    SERVICE_CIDRS,
    ExternalHostPlan,
    IPNetwork,
    NodePlan,
    Plan,
    PodPlan,
)
from .values import IPAddress

SWITCH = "switch"
"""The namespace that holds the segment's bridge and the router's address."""
POD_BRIDGE = "cni0"
UPLINK = "eth0"
"""The name of the only external interface of every host."""
FIRST_UPLINK_INDEX = 1000
FIRST_PORT_INDEX = 10000


def host_names(plan: Plan) -> list[str]:
    """Return the name of every namespace of the lab, the switch first."""
    pods = [pod.name for node in plan.nodes for pod in node.pods]
    return [SWITCH, *_names_on_segment(plan), *pods]


def links(plan: Plan, namespace: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that create all veth pairs; `namespace` has the namespace name of each host."""
    pairs = [(name, SWITCH, name) for name in _names_on_segment(plan)]
    pairs += [(pod.name, node.name, port_of(pod)) for node in plan.nodes for pod in node.pods]
    for number, (host, bridge, port) in enumerate(pairs, start=1):
        # If both ends of a pair have the same index, the kernel treats the port as an ordinary device, and may report
        # its carrier to the bridge a second late (linkwatch_urgent_event); frames are lost until then.
        here, there = FIRST_UPLINK_INDEX + number, FIRST_PORT_INDEX + number
        yield (
            f"link add name {UPLINK} netns {namespace[host]} index {here}"
            f" type veth peer name {port} netns {namespace[bridge]} index {there}"
        )


def configurations(plan: Plan) -> dict[str, list[str]]:
    """Return, for each host, the lines to run inside its namespace."""
    lines = {SWITCH: [*_switch(plan)]}
    lines |= {node.name: [*_node(plan, node)] for node in plan.nodes}
    lines |= {pod.name: [*_pod(node, pod)] for node in plan.nodes for pod in node.pods}
    return lines | {host.name: [*_external_host(plan, host)] for host in plan.external_hosts}


def port_of(pod: PodPlan) -> str:
    """Return the name of the pod's port in its node's namespace."""
    return f"veth-{pod.name}"


def sysctls(plan: Plan) -> dict[str, dict[str, str]]:
    """Return, for each host, what to write below /proc/sys; files that this kernel does not have are ignored."""
    of_any = _of_any_host(ipv6=6 in plan.shape.versions)
    nodes = {node.name for node in plan.nodes}
    return {name: of_any | (_OF_A_NODE if name in nodes else {}) for name in host_names(plan)}


def _of_any_host(*, ipv6: bool) -> dict[str, str]:
    values = {
        # The kernel limits ICMP errors to one per second and address, and a thousand per second in total: most of a
        # batch of probes to REJECT rules would time out. These masks limit no type (IPv4), or only type 0, which is not
        # an error (IPv6).
        "net/ipv4/icmp_ratemask": "0",
        "net/ipv6/icmp/ratemask": "0",
        # Frames between the ports of a bridge are not routed, so they should not pass netfilter's IP hooks.
        "net/bridge/bridge-nf-call-iptables": "0",
        "net/bridge/bridge-nf-call-ip6tables": "0",
    }
    for scope in ("all", "default"):
        # A new namespace inherits the IPv4 settings of the host.
        values[f"net/ipv4/conf/{scope}/rp_filter"] = "0"
        values[f"net/ipv6/conf/{scope}/disable_ipv6"] = "0" if ipv6 else "1"
        # Without duplicate address detection an address is usable immediately, not after a second.
        values[f"net/ipv6/conf/{scope}/accept_dad"] = "0"
        values[f"net/ipv6/conf/{scope}/accept_ra"] = "0"
        # A pod that accepted a redirect from its node would answer its neighbour directly, without translation. For
        # IPv4 the nodes send no redirects; for IPv6 they always do, so the hosts ignore them.
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
    return [*(node.name for node in plan.nodes), *(host.name for host in plan.external_hosts)]


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
    # The node also needs this route to reach Service addresses: the route is looked up before translation.
    yield from (f"route add default via {router}" for router in plan.router)


def _pod(node: NodePlan, pod: PodPlan) -> Iterator[str]:
    yield "link set dev lo up"
    yield f"link set dev {UPLINK} up"
    for address in pod.addresses:
        yield _address(address, address.max_prefixlen, UPLINK)
    for gateway in node.gateways:
        yield f"route add {gateway} dev {UPLINK}"
        yield f"route add default via {gateway} dev {UPLINK} onlink"


def _external_host(plan: Plan, host: ExternalHostPlan) -> Iterator[str]:
    yield "link set dev lo up"
    yield from _uplink(host.addresses, host.second_addresses)
    for node in plan.nodes:
        yield from _routes(node.pod_cidrs, node.addresses)
    if host.via:
        yield from _routes((*SERVICE_CIDRS, *EXTERNAL_CIDRS), host.via.addresses)


def _bridge(name: str, addresses: Iterable[IPAddress], networks: Iterable[IPNetwork]) -> Iterator[str]:
    yield "link set dev lo up"
    yield f"link add name {name} up type bridge mcast_snooping 0"
    yield from _addresses(addresses, networks, name)


def _uplink(addresses: Iterable[IPAddress], second_addresses: Iterable[IPAddress]) -> Iterator[str]:
    yield f"link set dev {UPLINK} up"
    lines = [*_addresses(addresses, SEGMENT, UPLINK), *_addresses(second_addresses, SECOND_SEGMENT, UPLINK)]
    # As a source the kernel prefers the IPv4 address added first, but the IPv6 address added last. The first address
    # should be preferred in both families.
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
