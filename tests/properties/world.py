"""The names and addresses of generated objects: few, so that objects overlap and conflict.

The address plan is that of the lab (`tests.lab.shape`), so that a generated cluster can be run there.
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address

from pyproxy.model.address import Family, Network, family_of, parse_ip, parse_network
from pyproxy.model.names import NamespacedName


def ips(*texts: str) -> tuple[bytes, ...]:
    """Return packed addresses."""
    return tuple(map(parse_ip, texts))


def networks(*texts: str) -> tuple[Network, ...]:
    """Parse CIDR blocks."""
    return tuple(map(parse_network, texts))


def of_families(pool: Collection[bytes], families: Collection[Family]) -> list[bytes]:
    """Return the addresses of some families."""
    return [ip for ip in pool if family_of(ip) in families]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Pools to choose from, IPv4 and IPv6 mixed."""

    service_names: tuple[NamespacedName, ...] = (
        NamespacedName("default", "web"),
        NamespacedName("kube-system", "dns"),
        NamespacedName("default", "dns"),
        NamespacedName("shop", "db-0"),
    )
    port_names: tuple[str, ...] = ("http", "dns", "p-9100")
    port_numbers: tuple[int, ...] = (80, 53, 30000)
    """30000 is also a node port, because an external IP can be an address of the node."""
    node_ports: tuple[int, ...] = (30000, 30001, 30002)
    cluster_ips: tuple[bytes, ...] = ips(
        *("10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.13"),
        *("fd00:10:96::10", "fd00:10:96::11", "fd00:10:96::12", "fd00:10:96::13"),
    )
    """One address per family and Service, in the order of the Service names."""
    external_ips: tuple[bytes, ...] = ips(
        *("203.0.113.1", "203.0.113.2", "172.18.0.11"), *("2001:db8:113::1", "2001:db8:113::2", "fd00:172:18::11")
    )
    load_balancer_ips: tuple[bytes, ...] = ips(
        *("203.0.113.2", "203.0.113.3", "203.0.113.4"), *("2001:db8:113::2", "2001:db8:113::3", "2001:db8:113::4")
    )
    source_ranges: tuple[Network, ...] = networks(
        *("172.18.0.96/27", "172.18.0.0/28", "10.244.1.0/24", "203.0.113.0/30", "0.0.0.0/0"),
        *("fd00:172:18::100/120", "fd00:172:18::/120", "fd00:10:244:1::/64", "2001:db8:113::/126", "::/0"),
    )
    endpoint_ips: tuple[bytes, ...] = ips(
        *("10.244.1.11", "10.244.1.12", "10.244.2.11", "10.244.2.12", "172.18.0.11", "172.18.0.12", "172.18.0.200"),
        *("fd00:10:244:1::11", "fd00:10:244:1::12", "fd00:10:244:2::11", "fd00:10:244:2::12"),
        *("fd00:172:18::11", "fd00:172:18::12", "fd00:172:18::200"),
    )
    """Pods of this node and of another, the nodes themselves (host network), and a host outside the cluster."""
    endpoint_ports: tuple[int, ...] = (8080, 8081, 53)
    node_name: str = "node1"
    node_names: tuple[str, ...] = ("node1", "node2")
    node_ips: tuple[bytes, ...] = ips("172.18.0.11", "172.19.0.11", "fd00:172:18::11", "fd00:172:19::11")
    """The addresses of this node."""
    gateways: tuple[bytes, ...] = ips("10.244.1.1", "fd00:10:244:1::1")
    """This node's own addresses on its pod bridge."""
    pod_cidrs: tuple[Network, ...] = networks("10.244.1.0/24", "fd00:10:244:1::/64")
    """The pod CIDRs of this node."""
    cluster_cidrs: tuple[Network, ...] = networks("10.244.0.0/16", "fd00:10:244::/48")
    zones: tuple[str, ...] = ("a", "b")
    clients: tuple[bytes, ...] = ips("172.18.0.101", "10.244.2.13", "fd00:172:18::101", "fd00:10:244:2::13")
    """An external host and a pod of another node, whose packets arrive through the node's network."""
    pods: tuple[bytes, ...] = ips("10.244.1.11", "10.244.1.13", "fd00:10:244:1::11", "fd00:10:244:1::13")
    """Pods of this node; the first one of each family is also an endpoint."""

    def cluster_ip(self, index: int, family: Family) -> bytes:
        """Return the unique cluster IP of the Service with this index."""
        return of_families(self.cluster_ips, (family,))[index]


WORLD = World()
TIGHT_WORLD = World(
    service_names=WORLD.service_names[:2],
    port_names=("http", "dns"),
    port_numbers=(80,),
    node_ports=(80, 30000),
    external_ips=ips("10.96.0.10", "203.0.113.2", "fd00:10:96::10", "2001:db8:113::2"),
    load_balancer_ips=ips("203.0.113.2", "2001:db8:113::2"),
    source_ranges=networks("172.18.0.0/28", "fd00:172:18::/120"),
    endpoint_ips=ips("10.244.1.11", "172.18.0.11", "fd00:10:244:1::11", "fd00:172:18::11"),
    endpoint_ports=(80, 8080),
    node_ips=ips("172.18.0.11", "fd00:172:18::11"),
    zones=("a",),
)
"""A world with many conflicts: Services share addresses, endpoints are the node itself, and so on."""


def shown(ip: bytes) -> str:
    """Return an address as text."""
    return str(ip_address(ip))
