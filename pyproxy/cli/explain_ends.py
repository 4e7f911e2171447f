"""The two ends of a connection, as ``explain`` takes them: names of pods, nodes and Services become addresses."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from pyproxy.backends.explanation import Packet
from pyproxy.errors import ConfigError
from pyproxy.manifests.pods import Pod
from pyproxy.model.address import LOOPBACK_IPS, Family, family_of, ip_text, is_loopback, parse_ip
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import Service

_OUTSIDE = {Family.IPV4: parse_ip("192.0.2.7"), Family.IPV6: parse_ip("2001:db8::7")}
"""The client of ``outside``; addresses for documentation (RFC 5737, RFC 3849)."""
# The domain of the cluster is not known here, so any domain after "svc" is accepted.
_DNS_NAME = re.compile(r"(?P<name>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)\.svc(\.[a-z0-9.-]+)?")
_PROTOCOL = re.compile(r"(?P<rest>.+)/(?P<protocol>tcp|udp|sctp)", re.IGNORECASE)
_HIGHEST_PORT = 65535


class EndKind(Enum):
    """What a source is; values are those of output."""

    NODE = "node"
    POD = "pod"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Source:
    """A client."""

    label: str
    """Its name, or how it was written; empty for an address."""
    kind: EndKind
    ips: Mapping[Family, bytes]
    node_name: str = ""
    """The node that it is on; empty if that is not known, or if it is on none."""


@dataclass(frozen=True, slots=True)
class Destination:
    """What the client connects to."""

    ips: Mapping[Family, bytes]
    """The preferred family first."""
    port: int
    protocol: Protocol


class NoSuchServiceError(Exception):
    """A Service was named that has no rules, or that does not exist."""

    def __init__(self, name: NamespacedName) -> None:
        super().__init__(str(name))
        self.name = name


@dataclass(frozen=True, slots=True)
class KnownNames:
    """The objects whose names can be used."""

    services: Mapping[NamespacedName, Service]
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    is_live: bool = False
    """The names are those that the agent of this node knows, and not those of files."""

    def source(self, text: str) -> Source:
        """Return the client that a text names.

        Raises:
            ConfigError: there is none.
        """
        if text == "outside":
            return Source(text, EndKind.OUTSIDE, _OUTSIDE)
        if text == "localhost":
            return Source(text, EndKind.NODE, LOOPBACK_IPS)
        try:
            return self._address(parse_ip(text))
        except ValueError:
            pass
        node = next((node for node in self.nodes if node.name == text), None)
        if node is not None:
            return Source(text, EndKind.NODE, _by_family(node.ips), node.name)
        pods = [pod for pod in self.pods if text in {str(pod.name), pod.name.name}]
        if len(pods) > 1:
            message = f"SRC: there are {len(pods)} pods {text}; write NAMESPACE/NAME"
            raise ConfigError(message)
        if not pods:
            known = "of this node; the agent does not know pods: give the address (kubectl get pods -A -o wide)"
            if not self.is_live:
                known = "of a node or a pod among the files (kubectl get services,endpointslices,nodes,pods -A -o yaml)"
            message = f"SRC: {text} is not an address, outside, localhost, or the name {known}"
            raise ConfigError(message)
        return Source(f"pod {pods[0].name}", EndKind.POD, _by_family(pods[0].ips), pods[0].node_name)

    def _address(self, ip: bytes) -> Source:
        ips = {family_of(ip): ip}
        if is_loopback(ip):
            return Source("", EndKind.NODE, ips)
        for node in self.nodes:
            if ip in node.ips:
                return Source(node.name, EndKind.NODE, ips, node.name)
        for pod in self.pods:
            if ip in pod.ips:
                return Source(f"pod {pod.name}", EndKind.POD, ips, pod.node_name)
        for node in self.nodes:
            if any(ip in block for block in node.pod_cidrs):
                return Source("", EndKind.POD, ips, node.name)
        return Source("", EndKind.OUTSIDE, ips)

    def node_with(self, ips: Iterable[bytes]) -> str:
        """Return the name of the node that has one of some addresses, or nothing."""
        wanted = set(ips)
        return next((node.name for node in self.nodes if wanted & set(node.ips)), "")

    def destination(self, text: str, node_ips: Iterable[bytes]) -> Destination:
        """Return what a text names.

        Args:
            text: an address, a node name or ``localhost`` with a port, a Service, or a node port.
            node_ips: the addresses of the node that ``localhost`` and a node port without an address mean.

        Raises:
            ConfigError: the text cannot be understood, or it needs a port.
            NoSuchServiceError: there are no rules for a Service of this name.
        """
        rest, protocol = text, None
        found = _PROTOCOL.fullmatch(text)
        # A Service may be named tcp, udp or sctp: default/udp is then that Service, and not a protocol.
        if found and NamespacedName(*text.partition("/")[::2]) not in self.services:
            rest, protocol = found["rest"], Protocol(found["protocol"].lower())
        if rest.isdigit():
            number = _number(rest)
            return Destination(_by_family(node_ips), number, protocol or self._node_port_protocol(number))
        host, port = _split(rest)
        if (service := self._service(host, port, protocol)) is not None:
            return service
        if host == "localhost":
            ips: Mapping[Family, bytes] = LOOPBACK_IPS
        elif node := next((node for node in self.nodes if node.name == host), None):
            ips = _by_family(node.ips)
        else:
            try:
                ips = _by_family([parse_ip(host)])
            except ValueError:
                message = (
                    f"DST: {text} is not ADDRESS:PORT, NAMESPACE/NAME[:PORT], a DNS name such as web.default.svc, or a"
                    " node port"
                )
                raise ConfigError(message) from None
        if not port:
            return self._only_port(text, ips, protocol)
        number = _number(port)
        return Destination(ips, number, protocol or self._node_port_protocol(number))

    def _service(self, host: str, text: str, protocol: Protocol | None) -> Destination | None:
        """Return the address and port of a Service; None if the text has not the form of its name."""
        if found := _DNS_NAME.fullmatch(host):
            name = NamespacedName(found["namespace"], found["name"])
        elif host.count("/") == 1 and all(host.split("/")):
            name = NamespacedName(*host.split("/"))
        else:
            return None
        service = self.services.get(name)
        if service is None:
            raise NoSuchServiceError(name)
        # The cluster IPs first: the DNS name of the Service resolves to them.
        ips = service.cluster_ips or service.external_ips or service.load_balancer_ips
        if not ips:
            message = f"DST: {name} has no address; write the node port"
            raise ConfigError(message)
        if text.isdigit():
            ports = [port for port in service.ports if port.port == int(text)]
            if not ports:
                return Destination(_by_family(ips), _number(text), protocol or Protocol.TCP)
        else:
            ports = [port for port in service.ports if not text or port.name == text]
        # Without a port of this protocol all ports stay: the packet then shows what happens to the wrong protocol.
        ports = [port for port in ports if protocol in {None, port.protocol}] or list(ports)
        if len(ports) != 1:
            listed = ", ".join(f"{port.name or port.port}/{port.protocol.name}" for port in service.ports)
            message = f"DST: {name} has the ports {listed}; write NAMESPACE/NAME:PORT/PROTOCOL"
            raise ConfigError(message)
        return Destination(_by_family(ips), ports[0].port, protocol or ports[0].protocol)

    def _only_port(self, text: str, ips: Mapping[Family, bytes], protocol: Protocol | None) -> Destination:
        """Return the only port of the Service that has an address."""
        wanted = set(ips.values())
        for service in self.services.values():
            addresses = {*service.cluster_ips, *service.external_ips, *service.load_balancer_ips}
            if wanted & addresses and len(service.ports) == 1:
                return Destination(ips, service.ports[0].port, protocol or service.ports[0].protocol)
        message = f"DST: {text} needs a port: ADDRESS:PORT"
        raise ConfigError(message)

    def _node_port_protocol(self, number: int) -> Protocol:
        """Return the protocol of a node port, TCP if several Services or none have the number."""
        ports = (port for service in self.services.values() for port in service.ports if port.node_port == number)
        protocols = {port.protocol for port in ports}
        return protocols.pop() if len(protocols) == 1 else Protocol.TCP


def _split(text: str) -> tuple[str, str]:
    """Split ``HOST:PORT``, where HOST may be an IPv6 address with or without brackets; the port may be missing."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    if text.count(":") > 1:
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= _HIGHEST_PORT):
        message = f"DST: {text} is not a port number"
        raise ConfigError(message)
    return int(text)


def _by_family(ips: Iterable[bytes]) -> dict[Family, bytes]:
    """Return the first address of each family."""
    found: dict[Family, bytes] = {}
    for ip in ips:
        found.setdefault(family_of(ip), ip)
    return found


def common_family(source: Source, destination: Destination) -> Family:
    """Return the family of the connection.

    Raises:
        ConfigError: source and destination have none in common.
    """
    # The preferred family of the destination decides, as for a client that gets both addresses from DNS.
    for family in destination.ips:
        if family in source.ips:
            return family
    texts = [", ".join(map(ip_text, end.ips.values())) or "no address" for end in (source, destination)]
    message = f"SRC ({texts[0]}) and DST ({texts[1]}) have no address family in common"
    raise ConfigError(message)


def packet_of(client: Source, target: Destination, node: Node, in_interface: str) -> Packet:
    """Return the first packet of a connection.

    Args:
        client: who connects.
        target: to what.
        node: the node that gets the packet.
        in_interface: the interface by which it arrives there, unless the node sends it.

    Raises:
        ConfigError: the ends have no address family in common.
    """
    family = common_family(client, target)
    source, to = client.ips[family], target.ips[family]
    is_own = client.kind is EndKind.NODE and client.node_name in {"", node.name}
    if is_own and is_loopback(source) and not is_loopback(to):
        # The kernel chooses the address of the route.
        source = to if to in node.ips else node.ip(family) or LOOPBACK_IPS[family]
    return Packet(source, to, target.protocol, target.port, "" if is_own else in_interface)
