"""Derives from plans which localhost node ports the relay serves, and with which endpoints."""

from collections.abc import Iterable
from dataclasses import dataclass

from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.plan.service_plan import ServicePlan

LocalPort = tuple[Protocol, int]
"""A node port on localhost."""
_RELAYED = (Protocol.TCP, Protocol.UDP)


@dataclass(frozen=True, slots=True)
class RelayTarget:
    """The endpoints for connections and flows to one localhost node port."""

    endpoints: tuple[Endpoint, ...]
    affinity_seconds: int | None
    service: NamespacedName
    serving: frozenset[Endpoint] = frozenset()
    """UDP only: endpoints, in addition to those for new flows, to which existing flows may stay."""


def relay_target(plan: ServicePlan) -> RelayTarget | None:
    """Return the target of a plan's node port; None without a node port or endpoints, and for SCTP."""
    if not plan.node_port or plan.protocol not in _RELAYED or not plan.external_endpoints:
        return None
    return RelayTarget(plan.external_endpoints, plan.affinity_seconds, plan.name.service, plan.serving_endpoints)


def relay_changes(
    taken: Iterable[tuple[ServicePlan | None, ServicePlan | None]],
) -> dict[LocalPort, RelayTarget | None]:
    """Return the new target of each node port that plans had or have; None means that the port is no longer relayed.

    A port that moves from one Service to another is in the result once, with its new target.
    """
    # What plans had comes first, so that a port which another Service has now keeps its new target.
    pairs = tuple(taken)
    before = {_local_port(plan): None for plan, _ in pairs if plan is not None and relay_target(plan) is not None}
    now = {_local_port(plan): target for _, plan in pairs if plan is not None and (target := relay_target(plan))}
    return {**before, **now}


def _local_port(plan: ServicePlan) -> LocalPort:
    return plan.protocol, plan.node_port
