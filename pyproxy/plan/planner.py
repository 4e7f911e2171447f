"""From changed Services to final plans: endpoint selection, then the decision between Services with the same claim.

The planner owns all claims, so a plan that it returns needs no further decision: no two of them have the same address and
port. The agent, the offline commands and the tests all get their plans here. The cost of a change is that of the Services
that it names and of those that share a claim with them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pyproxy.model.address import Family
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName, ServicePortName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.tracker import Tracker
from pyproxy.plan.claims import Claims
from pyproxy.plan.service_plan import Claim, ServicePlan, plan_service

FinalPlans = Mapping[ServicePortName, ServicePlan | None]
"""Plans that may be programmed as they are, by Service port; None means that the port is gone."""


class PlannedService(NamedTuple):
    """A Service that was planned again."""

    name: NamespacedName
    service: Service | None
    """None means that the Service is gone."""
    slices: tuple[EndpointSlice, ...]
    plans: Mapping[Family, FinalPlans]
    """Every port whose plan may have changed by it, ports of other Services included; no entry where nothing changed."""


class Planner:
    """Plans Services in some families, and remembers which Service port has which address.

    Args:
        families: in which Services are planned.
    """

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = {family: _FamilyPlanner(family) for family in families}

    def take_changes(self, tracker: Tracker, node: Node) -> Iterator[PlannedService]:
        """Take what changed in a tracker, and yield each changed Service as it is planned; every Service if the Node changed.

        Args:
            tracker: forgets that these Services changed.
            node: this node, as plans depend on it.
        """
        names: Iterable[NamespacedName] = tracker.take_dirty()
        # Endpoint selection depends on the name and zone of the Node, source ranges on its addresses.
        if tracker.take_node_changed():
            names = {*names, *tracker.services}
        return self.plan(names, tracker, node)

    def plan(self, names: Iterable[NamespacedName], tracker: Tracker, node: Node) -> Iterator[PlannedService]:
        """Plan some Services again, and yield each with the plans that may have changed."""
        for name in names:
            service, slices = tracker.services.get(name), tracker.slices(name)
            plans: dict[Family, FinalPlans] = {}
            # Families are independent: a Service may exist in one of them, and each has its own tables.
            for family, planner in self._families.items():
                if changed := planner.update(name, service, slices, node):
                    plans[family] = changed
            yield PlannedService(name, service, slices, plans)

    def requested(self, family: Family, name: ServicePortName) -> ServicePlan | None:
        """Return the plan of a Service port before claims are resolved; None if the port does not exist."""
        return self._families[family].claims.requested(name)

    def effective(self, family: Family, name: ServicePortName) -> ServicePlan | None:
        """Return the final plan of a Service port; None if the port does not exist."""
        return self._families[family].claims.effective(name)

    def winner(self, family: Family, claim: Claim) -> ServicePortName | None:
        """Return the Service port that has a claim; None if there is none."""
        return self._families[family].claims.winner(claim)


class _FamilyPlanner:
    def __init__(self, family: Family) -> None:
        self._family = family
        self.claims = Claims()
        self._ports: dict[NamespacedName, tuple[ServicePortName, ...]] = {}

    def update(
        self, name: NamespacedName, service: Service | None, slices: Iterable[EndpointSlice], node: Node
    ) -> FinalPlans:
        # Ports of the last plan that are not in the new one, removed or renamed, are gone and give up their claims.
        before = self._ports.pop(name, ())
        requested = plan_service(service, slices, node, self._family) if service is not None else {}
        if not before and not requested:
            return {}
        if requested:
            self._ports[name] = tuple(requested)
        # Claims are compared only for ports whose plan changed, and only those with a claim in common are returned besides.
        affected: set[ServicePortName] = set()
        for port in {*before, *requested} if before else requested:
            plan = requested.get(port)
            if plan != self.claims.requested(port):
                affected.add(port)
                affected |= self.claims.update(port, plan)
        return {port: self.claims.effective(port) for port in affected}


def final_plans(tracker: Tracker, node: Node, family: Family) -> dict[ServicePortName, ServicePlan]:
    """Return the final plan of every Service port that a tracker knows; it keeps what it knows of changes."""
    plans: dict[ServicePortName, ServicePlan | None] = {}
    for planned in Planner([family]).plan(tracker.services, tracker, node):
        plans.update(planned.plans.get(family, {}))
    return {name: plan for name, plan in plans.items() if plan is not None}
