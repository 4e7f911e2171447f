"""Which localhost node ports the relay serves, and with which endpoints: from plans to targets."""

from collections.abc import Iterable
from dataclasses import dataclass

from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol
from pyproxy.plan.service_plan import ServicePlan


@dataclass(frozen=True, slots=True)
class RelayTarget:
    """Where connections to one localhost node port go."""

    endpoints: tuple[Endpoint, ...]
    affinity_seconds: int | None


def relay_target(plan: ServicePlan) -> RelayTarget | None:
    """Return the target of a plan's node port; None if it has none, no TCP, or no endpoint for external traffic."""
    if not plan.node_port or plan.protocol is not Protocol.TCP or not plan.external_endpoints:
        return None
    return RelayTarget(plan.external_endpoints, plan.affinity_seconds)


def relay_changes(
    taken: Iterable[tuple[ServicePlan | None, ServicePlan | None]],
) -> dict[int, RelayTarget | None]:
    """Return by node port what plans before and now change; None: the port is not relayed any more.

    Ports that move between Services are in the result once, with what they have become.
    """
    pairs = tuple(taken)
    before = {plan.node_port: None for plan, _ in pairs if plan is not None and relay_target(plan) is not None}
    now = {plan.node_port: target for _, plan in pairs if plan is not None and (target := relay_target(plan))}
    return {**before, **now}
