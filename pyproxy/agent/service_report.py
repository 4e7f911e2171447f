"""The Services as the agent serves them, for the control socket: the planner's decisions, and whether the kernel has them."""

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

import msgspec

from pyproxy.agent.reconcile import Reconciler
from pyproxy.model.address import Family, ip_text, parse_ip
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.plan.planner import Planner
from pyproxy.plan.service_table import NodePortIps, ServiceRow, service_rows, unserved_row
from pyproxy.plan.service_values import (
    API_VERSION,
    FAMILIES,
    KIND,
    FamilyValues,
    NodeValues,
    ServiceList,
    ServiceValues,
    SyncState,
    service_values,
)

_SERVICES_PER_SLICE = 100
"""Services reported before the loop gets a turn: about 10 ms."""


class ServiceReporter:
    """Makes reports from the state of an agent, which it only reads.

    Args:
        tracker: the objects.
        planner: the plans.
        reconcilers: by family, what is in the kernel.
    """

    def __init__(self, tracker: Tracker, planner: Planner, reconcilers: Mapping[Family, Reconciler[Any, Any]]) -> None:
        self._tracker = tracker
        self._planner = planner
        self._reconcilers = reconcilers

    def find(self, query: str) -> tuple[int, list[NamespacedName]]:
        """Return the number of all Services, and the names of those that match, sorted. Call it in any thread.

        Args:
            query: a part of namespace and name, or an address of the Service; empty for all.
        """
        # Copies, made without Python code, so that the loop cannot change the dictionaries meanwhile.
        services, unserved = dict(self._tracker.services), dict(self._tracker.unserved)
        names, query = {**services, **unserved}.keys(), query.strip().lower()
        if not query:
            return len(names), sorted(names)
        try:
            ip = parse_ip(query)
        except ValueError:
            return len(names), sorted(name for name in names if query in str(name))
        found = [
            name
            for name, each in services.items()
            if ip in each.cluster_ips or ip in each.external_ips or ip in each.load_balancer_ips
        ]
        return len(names), sorted(found)

    async def report(
        self, node: Node, mode: str, node_port_ips: NodePortIps, names: Iterable[NamespacedName] | None = None
    ) -> ServiceList:
        """Return Services. Objects may change meanwhile; each Service is reported as it is at one moment.

        Args:
            node: this node.
            mode: the proxy mode.
            node_port_ips: where node ports are served, for each family of the agent.
            names: of the Services to return; None: all.
        """
        tracker, items = self._tracker, list[ServiceValues]()
        orphans = tracker.orphans()
        names = {*tracker.services, *tracker.unserved} if names is None else names
        for count, name in enumerate(sorted(names), start=1):
            service, unserved = tracker.services.get(name), tracker.unserved.get(name)
            if service is not None:
                rows = service_rows(service, tracker.slices(name), node, self._planner, node_port_ips, orphans=orphans)
                items += map(self._values, rows)
            if unserved is not None:
                items.append(service_values(unserved_row(unserved, has_rules=service is not None)))
            if count % _SERVICES_PER_SLICE == 0:
                await asyncio.sleep(0)
        own = NodeValues([*map(ip_text, node.ips)], [*map(str, node.pod_cidrs)], node.zone)
        families = [
            FamilyValues(
                FAMILIES[family],
                None if reconciler.synced_at is None else round(monotonic() - reconciler.synced_at, 3),
                reconciler.error,
            )
            for family, reconciler in self._reconcilers.items()
        ]
        return ServiceList(API_VERSION, KIND, node.name, mode, "agent", families, items, own if tracker.node else None)

    async def objects(self, node: Node, mode: str, settings: dict[str, str]) -> bytes:
        """Return `AgentObjects` as JSON. Objects may change meanwhile; a Service and its slices belong together."""
        tracker = self._tracker
        encode = msgspec.json.encode
        services, slices = list[bytes](), list[bytes]()
        for count, (name, service) in enumerate([*tracker.services.items()], start=1):
            services.append(encode(service))
            slices += map(encode, tracker.slices(name))
            if count % _SERVICES_PER_SLICE == 0:
                await asyncio.sleep(0)
        fields = {
            "node": node,
            "mode": mode,
            "settings": settings,
            "services": msgspec.Raw(b"[%b]" % b",".join(services)),
            "slices": msgspec.Raw(b"[%b]" % b",".join(slices)),
            "unserved": [*tracker.unserved.values()],
            "service_cidrs": tracker.service_cidrs,
        }
        return encode(fields)

    def _values(self, row: ServiceRow) -> ServiceValues:
        if self._tracker.is_dirty(row.service) or row.port is None:
            return service_values(row, SyncState.PENDING if self._tracker.is_dirty(row.service) else None)
        # A node port without an address has no frontend; its plan is the same in each family.
        family = row.frontend.family if row.frontend else next(iter(self._reconcilers), None)
        plan = self._planner.effective(family, row.port) if family is not None else None
        if family is None or plan is None:
            return service_values(row, SyncState.PENDING)
        return service_values(row, *self._reconcilers[family].sync_state(row.port, plan))
