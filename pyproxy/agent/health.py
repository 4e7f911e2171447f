"""Serves the health of the agent, on ``--healthz-bind-address`` and on the health check node port of each Service.

The agent reports its work here, and never depends on it. One set of servers covers both families.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pyproxy.backends.interface import Backend
from pyproxy.config.config import Config
from pyproxy.model.address import Family, ListenAddress
from pyproxy.model.change import Kind
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.event import Event
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.node.context import NodeContext
from pyproxy.plan.health_ports import HealthPorts
from pyproxy.plan.topology import count_local_endpoints
from pyproxy.serve.health import Answered, Health, health_application, service_application
from pyproxy.serve.listeners import HttpService, Listeners

logger = logging.getLogger(__name__)

_TIMEOUT_SYNC_PERIODS = 2
"""Time for which work may be pending (``cmd/kube-proxy/app/server.go``)."""
_EVERY_ADDRESS = {Family.IPV4: bytes(4), Family.IPV6: bytes(16)}


@dataclass(frozen=True, slots=True)
class _Check:
    """A health check node port."""

    port: int
    local_endpoints: int


class AgentHealth:
    """The health of one agent. Call its methods in the agent's loop.

    Args:
        config: has the address, and the sync period, on which the time-out depends.
        listeners: serve it.
    """

    def __init__(self, config: Config, listeners: Listeners) -> None:
        self._config = config
        self._listeners = listeners
        self._health = Health(_TIMEOUT_SYNC_PERIODS * config.sync_period_seconds)
        self._health.set_node_eligible(bool(config.manifests))  # files need not contain a Node
        self._lost: set[Kind] = set()
        self._backend: Backend | None = None
        self._checks: dict[NamespacedName, _Check] = {}
        """The health checks that Services request; those of `_stale` are still served as before."""
        self._ports = HealthPorts(config.own_ports)
        self._refused: dict[NamespacedName, str] = {}
        """By Service, what uses its port instead, as it was logged."""
        self._stale: set[NamespacedName] = set()
        self._counts: dict[NamespacedName, int] = {}
        """The counts that are served, read by the threads of requests."""
        self._ips: list[bytes] = []

    def serve(self, answered: Answered, failed: Callable[[str], None] | None) -> None:
        """Start to serve health.

        Args:
            answered: called with path and status of each answer.
            failed: called in another thread, instead of a log line, if the address cannot be used.
        """
        if self._config.healthz_bind_address is not None:
            application = health_application(self._health, answered)
            self._listeners.serve(
                "health", HttpService(application, [self._config.healthz_bind_address], failed=failed)
            )

    def watched(self, kind: Kind, reason: str) -> None:
        """Record why objects of a kind do not arrive; an empty reason means that they do."""
        (self._lost.add if reason else self._lost.discard)(kind)
        self._health.set_watching(not self._lost)

    @property
    def is_watching(self) -> bool:
        """Return whether objects of all kinds arrive."""
        return not self._lost

    def begin(self, backend: Backend) -> None:
        """Record that the agent starts to work."""
        self._backend = backend
        self._health.begin(backend.families)

    def knows_node(self, node: Node | None) -> None:
        """Record the Node. If it is deleted, its last version counts, as in kube-proxy."""
        if node is not None:
            self._health.set_node_eligible(node.is_eligible)

    def queued(self) -> None:
        """Record that there is work to do."""
        self._health.queued()

    def plan(self, name: NamespacedName, service: Service | None, slices: Iterable[EndpointSlice], node: Node) -> None:
        """Record a changed or deleted Service, for the next successful sync."""
        check = None
        if service is not None and service.health_check_node_port:
            check = _Check(service.health_check_node_port, count_local_endpoints(slices, node.name))
        self._stale.update(self._checks.keys() & self._ports.update(name, service))
        if check == self._checks.get(name):
            return
        self._stale.add(name)
        if check is None:
            del self._checks[name]
        else:
            self._checks[name] = check

    def synced(self, families: Collection[Family], context: NodeContext) -> None:
        """Record a sync, and the families in which it succeeded.

        Health checks change once the rules are in the kernel, in all families, because one server covers all.
        """
        self._health.synced(families)
        if self._backend is None or len(families) < len(self._backend.families):
            return
        ips: list[bytes] = []
        for family in self._backend.families:
            found = self._backend.node_port_ips(family, context)
            ips += (_EVERY_ADDRESS[family],) if found is None else found
        # Health checks listen where node ports are served, which changes with the Node object and with interfaces.
        if ips != self._ips:
            self._ips = ips
            self._stale.update(self._checks)
        if self._stale:
            services = {
                f"health check of Service {name}": self._health_check_server(name) for name in sorted(self._stale)
            }
            self._listeners.serve_all(services)
            self._stale.clear()

    def _health_check_server(self, name: NamespacedName) -> HttpService | None:
        check, rival = self._checks.get(name), self._ports.rival(name)
        # A rival is logged once, and not at each sync; it is logged again after it was away.
        # Reason and action are kube-proxy's (``service_health.go``, SyncServices).
        event = Event("Service", name, "FailedToStartServiceHealthcheck", "Listen")
        if check is not None and rival and rival != self._refused.get(name):
            logger.warning(
                "health check of Service %s is not served: port %d is used by %s",
                *(name, check.port, rival),
                extra={"event": event},
            )
        if rival:
            self._refused[name] = rival
        else:
            self._refused.pop(name, None)
        if check is None or rival:
            self._counts.pop(name, None)
            return None
        self._counts[name] = check.local_endpoints
        # The count is looked up at each request, and with a default: a request may still run when the Service is gone.
        application = service_application(name, lambda: self._counts.get(name, 0), self._health)
        addresses = [ListenAddress(ip, check.port) for ip in self._ips]
        return HttpService(application, addresses, both_families=False, event=event)
