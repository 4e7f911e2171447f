"""Final plans of changed Services: which ports a change names, what each may have, and what a change costs."""

import sys
from collections.abc import Iterable
from types import FrameType

import pytest
from msgspec.structs import replace

from pyproxy.model.address import Family, parse_ip
from pyproxy.model.change import Kind, ObjectChange, Put, Removed
from pyproxy.model.names import ServicePortName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.tracker import Tracker
from pyproxy.plan.planner import Planner, final_plans
from pyproxy.plan.service_plan import ServicePlan
from tests.unit.agent.objects import endpoints_changed, everything, port_name, service

NODE = Node(name="node1")
SHARED, OTHER = parse_ip("203.0.113.1"), parse_ip("203.0.113.2")
FEW, MANY = 10, 1000
"""Services in a small and in a big cluster."""


class Cluster:
    """A tracker and a planner of IPv4 that have seen the same changes."""

    def __init__(self, *changes: ObjectChange) -> None:
        self.tracker = Tracker()
        self.planner = Planner([Family.IPV4])
        self.change(*changes)

    def change(self, *changes: ObjectChange) -> dict[ServicePortName, ServicePlan | None]:
        """Apply changes; return the plans that they may have changed."""
        for change in changes:
            self.tracker.apply(change)
        plans: dict[ServicePortName, ServicePlan | None] = {}
        for planned in self.planner.take_changes(self.tracker, NODE):
            plans.update(planned.plans.get(Family.IPV4, {}))
        return plans


def external_ips(plan: ServicePlan | None) -> tuple[bytes, ...]:
    """Return the external IPs of a plan."""
    assert plan is not None
    return plan.external_ips


def test_a_change_plans_its_service_only() -> None:
    """A change of endpoints returns the plan of that Service's port, and nothing else."""
    cluster = Cluster(*everything(3))

    assert [port_name(1)] == list(cluster.change(*endpoints_changed(1, [2])))


def test_an_unchanged_plan_is_not_returned() -> None:
    """A change that no packet path depends on returns no plan."""
    cluster = Cluster(*everything(3))

    assert {} == cluster.change(Put(replace(service(1), health_check_node_port=0)), *endpoints_changed(1, [1]))


def test_a_removed_service() -> None:
    """The ports of a Service that is gone have no plan."""
    cluster = Cluster(*everything(3))

    assert {port_name(1): None} == cluster.change(Removed(Kind.SERVICE, port_name(1).service))


def test_a_renamed_port() -> None:
    """A port with a new name is another port: the old one is gone."""
    cluster = Cluster(*everything(1))
    port = replace(service(0).ports[0], name="web")
    changed = cluster.change(Put(replace(service(0), ports=(port,))))

    assert {"": False, "web": True} == {name.port: plan is not None for name, plan in changed.items()}


def test_a_service_that_left_the_family() -> None:
    """A Service without the planner's family has no plans."""
    cluster = Cluster(*everything(1))

    assert {port_name(0): None} == cluster.change(Put(replace(service(0), families=(Family.IPV6,))))


def test_claims_are_decided() -> None:
    """Of two Services with one external IP the plan of the loser is without it, and gets it when the winner gives it up."""
    both = [Put(service(0, (SHARED,))), Put(service(1, (SHARED, OTHER)))]
    cluster = Cluster(*everything(2))
    first = cluster.change(*both)
    then = cluster.change(Put(service(0)))

    assert ((SHARED,), (OTHER,)) == (external_ips(first[port_name(0)]), external_ips(first[port_name(1)]))
    assert {port_name(0): (), port_name(1): (SHARED, OTHER)} == {name: external_ips(then[name]) for name in then}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_order_of_changes_decides_nothing(order: tuple[int, int]) -> None:
    """Whichever Service comes first, the last plans are those of one that plans all of them at once."""
    cluster = Cluster(*everything(2))
    plans: dict[ServicePortName, ServicePlan | None] = {}
    for number in order:
        plans |= cluster.change(Put(service(number, (SHARED,))))

    assert final_plans(cluster.tracker, NODE, Family.IPV4) == plans


def test_a_changed_node_plans_everything() -> None:
    """Every plan depends on the Node, but only those that it changes are returned."""
    cluster = Cluster(*everything(3))
    ranges = Service(
        name=port_name(9).service,
        families=(Family.IPV4,),
        cluster_ips=(),
        ports=service(9).ports,
        external_policy_local=True,
        external_ips=(SHARED,),
    )
    cluster.change(Put(ranges))
    cluster.tracker.apply(Put(Node(name="node1", zone="a")))
    planned = list(cluster.planner.take_changes(cluster.tracker, Node(name="node1", zone="a")))

    assert (4, [{}] * 4) == (len(planned), [each.plans for each in planned])


def test_taken_changes_are_gone() -> None:
    """What was taken is not planned a second time."""
    cluster = Cluster(*everything(3))

    assert {} == cluster.change()


def calls_for(cluster: Cluster, changes: Iterable[ObjectChange]) -> int:
    """Return how many calls of functions, in Python and in C, changes take."""
    count = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        cluster.change(*changes)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(endpoints_changed(7, [2]), id="endpoints"),
        pytest.param([Put(service(7, (SHARED,)))], id="a claim that another Service has"),
        pytest.param([Removed(Kind.SERVICE, port_name(7).service)], id="a Service that goes"),
        pytest.param([Put(service(5000))], id="a Service that comes"),
    ],
)
def test_cost_of_a_change(changes: list[ObjectChange]) -> None:
    """A change costs as many calls in a big cluster as in a small one."""
    clusters = [Cluster(*everything(count), Put(service(3, (SHARED,)))) for count in (FEW, MANY)]
    few, many = (calls_for(cluster, changes) for cluster in clusters)

    assert few == many
