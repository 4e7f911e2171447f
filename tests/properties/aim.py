"""Packets to all addresses of a cluster's Services, from all sources on and around one of its nodes."""

from collections.abc import Iterator
from itertools import product

from pyproxy.backends.explanation import Host, Packet
from pyproxy.model.address import Family
from pyproxy.model.names import Protocol
from pyproxy.model.service import Service
from tests.properties.strategies import Cluster
from tests.properties.world import WORLD, ips, of_families

LOOPBACK_IPS = ips("127.0.0.1", "127.0.0.9", "::1")
IN_INTERFACES = ("", "eth0", "cni0", "veth12")
"""Incoming interfaces: none (sent by the node), the node's network, the pod bridge, and a veth pair of a pod."""


def sources(host: Host, family: Family, in_interface: str) -> set[bytes]:
    """Return possible source addresses of packets from an interface, including endpoints."""
    match in_interface:
        case "":
            return {*host.ips, *of_families(LOOPBACK_IPS, (family,))}
        case "eth0":
            return {ip for ip in of_families((*WORLD.clients, *WORLD.endpoint_ips), (family,)) if not is_here(host, ip)}
        case _:
            return set(of_families(WORLD.pods, (family,)))


def is_here(host: Host, ip: bytes) -> bool:
    """Return whether an address belongs to the node or one of its pods."""
    return host.is_local(ip) or any(ip in block for block in WORLD.pod_cidrs)


def claims(service: Service, host: Host, family: Family) -> Iterator[tuple[bytes, Protocol, int]]:
    """Yield every address, protocol and port of the Services in a family."""
    addresses = of_families((*service.cluster_ips, *service.external_ips, *service.load_balancer_ips), (family,))
    for port in service.ports:
        yield from ((ip, port.protocol, port.port) for ip in addresses)
        if port.node_port:
            at_node = {*host.ips, *of_families(LOOPBACK_IPS, (family,))}
            yield from ((ip, port.protocol, port.node_port) for ip in sorted(at_node))


def aimed_packets(cluster: Cluster, host: Host, family: Family) -> Iterator[Packet]:
    """Yield packets from all sources to all frontends of Services."""
    for service, in_interface in product(cluster.services, IN_INTERFACES):
        here = sorted(sources(host, family, in_interface))
        for (ip, protocol, port), source in product(claims(service, host, family), here):
            if in_interface == "" or ip not in LOOPBACK_IPS:
                yield Packet(source, ip, protocol, port, in_interface)
