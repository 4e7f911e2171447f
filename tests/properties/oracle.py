"""The expected outcome of the first packet of a connection, derived from Services and EndpointSlices.

The oracle implements the behaviour of kube-proxy's iptables mode independently: it uses no rules, and of `pyproxy.plan`
only the type of the settings. Where two Services claim one address, `docs/differences.md` decides. It is simple and
slow on purpose.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pyproxy.backends.explanation import Host, Packet
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.address import Family, Network, family_of, parse_network
from pyproxy.model.endpoint import Endpoint, SliceEndpoint
from pyproxy.model.names import Protocol
from pyproxy.model.service import Service, ServicePort
from tests.properties.packet import Fate, Outcome
from tests.properties.strategies import Cluster

_LOOPBACK = parse_network("127.0.0.0/8")
_LOOPBACK6 = parse_network("::1/128")
_YOUNGEST = "9999"


@dataclass(frozen=True, slots=True)
class _Port:
    """One port of one Service in one family, with the endpoints that this node uses."""

    service: Service
    port: ServicePort
    family: Family
    cluster_ips: tuple[bytes, ...]
    external_ips: tuple[bytes, ...]
    load_balancer_ips: tuple[bytes, ...]
    source_ranges: tuple[Network, ...]
    cluster: frozenset[Endpoint]
    local: frozenset[Endpoint]

    has_any: bool
    """Whether any endpoint on any node could answer."""

    @property
    def is_external_local(self) -> bool:
        return self.service.external_policy_local

    @property
    def internal(self) -> frozenset[Endpoint]:
        return self.local if self.service.internal_policy_local else self.cluster

    @property
    def external(self) -> frozenset[Endpoint]:
        return self.local if self.is_external_local else self.cluster

    @property
    def has_firewall(self) -> bool:
        return bool(self.has_any and self.source_ranges and self.load_balancer_ips)

    def refusal(self, endpoints: frozenset[Endpoint]) -> Fate | None:
        """Return how traffic without usable endpoints is refused: DROP if other nodes have endpoints, else REJECT."""
        if not self.has_any:
            return Fate.REJECTED
        return None if endpoints else Fate.DROPPED


class Oracle:
    """The oracle for one cluster."""

    def __init__(self, cluster: Cluster, settings: IptablesSettings, host: Host) -> None:
        self._settings = settings
        self._host = host
        self._node = cluster.node
        self._ports = [
            _read_port(cluster, service, port, settings.family)
            for service in sorted(cluster.services, key=lambda service: service.name)
            if settings.family in service.families
            for port in sorted(service.ports, key=lambda port: (port.name, port.protocol.value))
        ]

    def outcomes(self, packet: Packet) -> frozenset[Outcome]:
        """Return all possible outcomes of the packet."""
        chosen = self._translation(packet)
        if chosen is None:
            fate = self._filtered(packet, packet.destination, packet.port, is_marked=False, is_translated=False)
            return frozenset({Outcome(fate)})
        endpoints, is_marked = chosen
        return frozenset(self._towards(packet, endpoint, is_marked=is_marked) for endpoint in endpoints)

    def _towards(self, packet: Packet, endpoint: Endpoint, *, is_marked: bool) -> Outcome:
        is_own = packet.source == endpoint.ip
        if is_own and not self._settings.hairpin_by_packet:
            is_marked = True
        fate = self._filtered(packet, endpoint.ip, endpoint.port, is_marked=is_marked, is_translated=True)
        if fate is not Fate.ARRIVES:
            return Outcome(fate)
        if packet.in_interface and self._host.is_local(endpoint.ip):
            return Outcome(fate, endpoint)  # it never leaves, so its source is not translated
        leaves_by_lo = self._host.is_local(endpoint.ip)
        return Outcome(fate, endpoint, is_masqueraded=is_marked or (is_own and not leaves_by_lo))

    # Destination

    def _translation(self, packet: Packet) -> tuple[frozenset[Endpoint], bool] | None:
        """Return the possible endpoints, and whether to masquerade; None if the packet is not translated."""
        owner = self._owner(packet.destination, packet.protocol, packet.port)
        if owner is not None:
            found = self._by_address(packet, owner)
            if found is not None:
                return found
        if self._is_node_port_address(packet.destination):
            owner = self._node_port_owner(packet.protocol, packet.port)
            return self._external(packet, owner) if owner is not None else None
        return None

    def _by_address(self, packet: Packet, port: _Port) -> tuple[frozenset[Endpoint], bool] | None:
        found = None
        if packet.destination in port.cluster_ips and port.internal:
            found = port.internal, self._settings.masquerade_all or self._is_from_elsewhere(packet)
        if found is None and packet.destination in port.external_ips:
            found = self._external(packet, port)
        if found is None and packet.destination in port.load_balancer_ips and self._is_let_in(packet, port):
            found = self._external(packet, port)
        return found

    def _external(self, packet: Packet, port: _Port) -> tuple[frozenset[Endpoint], bool] | None:
        if not port.has_any:
            return None
        if not port.is_external_local:
            return port.cluster, True
        if self._is_from_pod(packet):
            return port.cluster, False
        if self._host.is_local(packet.source):
            return port.cluster, True
        return (port.local, False) if port.local else None

    def _is_let_in(self, packet: Packet, port: _Port) -> bool:
        if not port.source_ranges or any(packet.source in block for block in port.source_ranges):
            return True
        node_ip = next((ip for ip in self._node.ips if family_of(ip) is port.family), None)
        is_node_inside = node_ip is not None and any(node_ip in block for block in port.source_ranges)
        own = [ip for ip in port.load_balancer_ips if self._owner(ip, port.port.protocol, port.port.port) is port]
        return is_node_inside and packet.source in own

    def _is_from_pod(self, packet: Packet) -> bool:
        traffic = self._settings.local_traffic
        if traffic is None:
            return False
        if traffic.cidr is not None:
            return packet.source in traffic.cidr
        if traffic.interface:
            return packet.in_interface == traffic.interface
        return packet.in_interface.startswith(traffic.interface_prefix)

    def _is_from_elsewhere(self, packet: Packet) -> bool:
        return self._settings.local_traffic is not None and not self._is_from_pod(packet)

    def _is_node_port_address(self, ip: bytes) -> bool:
        if self._settings.node_port_ips is not None:
            return ip in self._settings.node_port_ips
        if ip in _LOOPBACK6 or (ip in _LOOPBACK and not self._settings.localhost_node_ports):
            return False
        return self._host.is_local(ip)

    # Owners of addresses

    def _owner(self, ip: bytes, protocol: Protocol, number: int) -> _Port | None:
        rivals = [
            port
            for port in self._ports
            if (port.port.protocol, port.port.port) == (protocol, number)
            and ip in (*port.cluster_ips, *port.external_ips, *port.load_balancer_ips)
        ]
        return min(rivals, key=lambda port: (ip not in port.cluster_ips, *_age(port)), default=None)

    def _node_port_owner(self, protocol: Protocol, number: int) -> _Port | None:
        rivals = [port for port in self._ports if (port.port.protocol, port.port.node_port) == (protocol, number)]
        return min(rivals, key=_age, default=None)

    # Filtering

    def _filtered(self, packet: Packet, ip: bytes, number: int, *, is_marked: bool, is_translated: bool) -> Fate:
        """Return the fate of a new connection to its current address, regardless of the original one."""
        verdicts = self._verdicts(packet, ip, number, is_marked=is_marked, is_translated=is_translated)
        return next((fate for fate in verdicts if fate is not None), Fate.ARRIVES)

    def _verdicts(
        self, packet: Packet, ip: bytes, number: int, *, is_marked: bool, is_translated: bool
    ) -> Iterator[Fate | None]:
        """Yield the verdicts of the filters in order; the first one that is not None applies."""
        where = ip, packet.protocol, number
        is_local = self._host.is_local(ip)
        spoofed = Fate.DROPPED if self._is_spoofed(packet, ip, is_translated=is_translated) else None
        firewalled = Fate.DROPPED if self._is_firewalled(*where) else None
        if not packet.in_interface:  # OUTPUT
            yield from (spoofed, firewalled, self._cluster_ip_refusal(*where))
        elif not is_local:  # FORWARD
            yield from (firewalled, Fate.ARRIVES if is_marked else None)
            yield from (self._cluster_ip_refusal(*where), self._external_refusal(*where))
        if is_local:  # INPUT; packets of the node to itself have passed OUTPUT and lo before
            yield from (spoofed, firewalled, Fate.ARRIVES if self._is_health_check(packet.protocol, number) else None)
            yield self._external_refusal(*where)

    def _is_spoofed(self, packet: Packet, ip: bytes, *, is_translated: bool) -> bool:
        """Return whether a packet from elsewhere goes to a loopback address, which route_localnet must not allow."""
        is_guarded = self._settings.localhost_node_ports and self._settings.family is Family.IPV4
        return is_guarded and ip in _LOOPBACK and packet.source not in _LOOPBACK and not is_translated

    def _is_firewalled(self, ip: bytes, protocol: Protocol, number: int) -> bool:
        owner = self._owner(ip, protocol, number)
        return owner is not None and owner.has_firewall and ip in owner.load_balancer_ips

    def _is_health_check(self, protocol: Protocol, number: int) -> bool:
        return protocol is Protocol.TCP and any(number == port.service.health_check_node_port for port in self._ports)

    def _cluster_ip_refusal(self, ip: bytes, protocol: Protocol, number: int) -> Fate | None:
        owner = self._owner(ip, protocol, number)
        return owner.refusal(owner.internal) if owner is not None and ip in owner.cluster_ips else None

    def _external_refusal(self, ip: bytes, protocol: Protocol, number: int) -> Fate | None:
        """Return the refusal of the first port, by name, with the address or the node port."""
        owner = self._owner(ip, protocol, number)
        node_port_owner = self._node_port_owner(protocol, number) if self._host.is_local(ip) else None
        for port in self._ports:
            is_addressed = port is owner and ip in (*port.external_ips, *port.load_balancer_ips)
            if is_addressed or port is node_port_owner:
                fate = port.refusal(port.external)
                if fate is not None:
                    return fate
        return None


def _age(port: _Port) -> tuple[str, str, str, str, str]:
    name = port.service.name
    return port.service.created or _YOUNGEST, name.namespace, name.name, port.port.name, port.port.protocol.value


# Endpoints


def _read_port(cluster: Cluster, service: Service, port: ServicePort, family: Family) -> _Port:
    external_ips = tuple(ip for ip in service.external_ips if family_of(ip) is family)
    load_balancer_ips = tuple(ip for ip in service.load_balancer_ips if family_of(ip) is family)
    found = dict(_endpoints(cluster, service, port, family))
    usable = [item for item in found.values() if item.ready or (item.serving and item.terminating)]
    return _Port(
        service=service,
        port=port,
        family=family,
        cluster_ips=tuple(ip for ip in service.cluster_ips if family_of(ip) is family),
        external_ips=external_ips,
        load_balancer_ips=load_balancer_ips,
        source_ranges=tuple(block for block in service.load_balancer_source_ranges if block.family is family),
        cluster=_cluster_endpoints(found, cluster.node.name, cluster.node.zone),
        local=_first_usable({at: item for at, item in found.items() if item.node_name == cluster.node.name}),
        has_any=bool(usable),
    )


def _endpoints(
    cluster: Cluster, service: Service, port: ServicePort, family: Family
) -> Iterator[tuple[Endpoint, SliceEndpoint]]:
    """Yield the endpoints of a port, one per address and port number: the last one, unless it is terminating."""
    seen: dict[Endpoint, SliceEndpoint] = {}
    for one in sorted(cluster.slices, key=lambda one: one.name):
        if (one.service, one.family) != (service.name, family):
            continue
        numbers = [entry.port for entry in one.ports if (entry.name, entry.protocol) == (port.name, port.protocol)]
        for number in numbers:
            for item in one.endpoints:
                at = Endpoint(item.ip, number)
                seen[at] = seen[at] if at in seen and item.terminating else item
    yield from seen.items()


def _first_usable(found: dict[Endpoint, SliceEndpoint]) -> frozenset[Endpoint]:
    """Return the ready endpoints, or if there are none, those that are terminating and still serve."""
    ready = frozenset(at for at, item in found.items() if item.ready)
    return ready or frozenset(at for at, item in found.items() if item.serving and item.terminating)


def _cluster_endpoints(found: dict[Endpoint, SliceEndpoint], node_name: str, zone: str) -> frozenset[Endpoint]:
    ready = {at: item for at, item in found.items() if item.ready}
    hinted_here = frozenset(at for at, item in ready.items() if node_name in item.node_hints)
    if hinted_here and all(item.node_hints for item in ready.values()):
        return hinted_here
    hinted_zone = frozenset(at for at, item in ready.items() if zone and zone in item.zone_hints)
    if hinted_zone and all(item.zone_hints for item in ready.values()):
        return hinted_zone
    return _first_usable(found)
