"""Decides which Service answers on a health check node port that several Services have. Opens no socket.

The API server allocates each port once, but files may contain anything, and a port may be one of the agent's own. In
kube-proxy the first Service that it happens to handle gets the port. Here the order is that of `claims`, over the same
ports: health check node ports and TCP node ports. No Service gets a port of the agent.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.service import Service
from pyproxy.plan.claims import NO_TIME


class _Ports(NamedTuple):
    created: str
    health: int  # 0 means none
    node: frozenset[int]  # TCP node ports


_NONE = _Ports("", 0, frozenset())


class HealthPorts:
    """The health check node ports and TCP node ports of all Services.

    Args:
        own: the ports on which the agent itself listens, and how a message names each.
    """

    def __init__(self, own: Mapping[int, str]) -> None:
        self._own = own
        self._ports: dict[NamespacedName, _Ports] = {}
        self._claimants: dict[int, set[NamespacedName]] = {}

    def update(self, name: NamespacedName, service: Service | None) -> AbstractSet[NamespacedName]:
        """Record the ports of a Service; return the *other* Services that may have gained or lost a port.

        Args:
            name: of the Service.
            service: None means that it is gone.
        """
        # Most changes of a Service do not concern its ports.
        before, after = self._ports.get(name, _NONE), _ports(service)
        if before == after:
            return frozenset()
        affected = set[NamespacedName]()
        for port in _all(before):
            claimants = self._claimants[port]
            claimants.discard(name)
            affected |= claimants
            if not claimants:
                del self._claimants[port]
        for port in _all(after):
            claimants = self._claimants.setdefault(port, set())
            affected |= claimants
            claimants.add(name)
        if _all(after):
            self._ports[name] = after
        else:
            self._ports.pop(name, None)
        affected.discard(name)
        return affected

    def rival(self, name: NamespacedName) -> str:
        """Return what uses the health check node port of a Service instead of it; empty if the Service has its port, or has none."""
        ports = self._ports.get(name, _NONE)
        if not ports.health:
            return ""
        if ports.health in self._own:
            return self._own[ports.health]
        # The oldest Service, then the first by name.
        first = min(self._claimants[ports.health], key=lambda each: (self._ports[each].created or NO_TIME, each))
        if first != name:
            return f"Service {first}"
        return "a node port of the same Service" if ports.health in ports.node else ""


def _ports(service: Service | None) -> _Ports:
    if service is None:
        return _NONE
    # The rules of a TCP node port translate packets before they reach a socket of the node, so a health check server
    # with the same number would never be asked. Health checks are HTTP: UDP and SCTP node ports do not matter.
    node = frozenset(port.node_port for port in service.ports if port.node_port and port.protocol is Protocol.TCP)
    return _Ports(service.created, service.health_check_node_port, node)


def _all(ports: _Ports) -> AbstractSet[int]:
    return ports.node | {ports.health} if ports.health else ports.node
