"""Budgets that are counted, not timed: how many rules a Service costs, and how little is written for a change."""

import pytest

from pyproxy.backends.iptables.program import port_rules
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.change import Kind, ObjectChange, Put, Removed
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.node import LocalTraffic, Node
from pyproxy.model.service import Service
from pyproxy.plan.service_plan import ServicePlan, plan_service
from tests.fakes.node_agent import TableAgent
from tests.unit.agent.objects import endpoint_slice, endpoints_changed, everything, port_name, service

SETTINGS = IptablesSettings(family=Family.IPV4, local_traffic=LocalTraffic(parse_network("10.0.0.0/8")))
FEW, MANY = 10, 1000
"""Services in a small and in a big cluster."""


def planned(one: Service, endpoints: int) -> ServicePlan:
    """Return the plan of a Service with a number of endpoints."""
    slices: list[EndpointSlice] = [endpoint_slice(0, range(1, endpoints + 1))]
    (plan,) = plan_service(one, slices, Node(name="node1"), Family.IPV4).values()
    return plan


@pytest.mark.parametrize(("external_ips", "shared"), [(0, 2), (1, 5), (2, 6)])
@pytest.mark.parametrize("endpoints", [1, 2, 100])
def test_rules_per_service(external_ips: int, shared: int, endpoints: int) -> None:
    """A rule for each endpoint; two for the cluster IP; two and one for each address for external ones."""
    addresses = tuple(parse_ip(f"203.0.113.{number}") for number in range(1, external_ips + 1))
    texts = port_rules(planned(service(0, addresses), endpoints), SETTINGS).values()

    assert shared + endpoints == sum(text.count("\n") for text in texts)


def test_rules_of_a_service_without_endpoints() -> None:
    """A Service without endpoints is one rule."""
    assert 1 == sum(text.count("\n") for text in port_rules(planned(service(0), 0), SETTINGS).values())


def test_one_name_for_each_service() -> None:
    """The kernel keeps 256 bytes for a comment, so a port's name is in only one of its rules."""
    texts = port_rules(planned(service(0, (parse_ip("203.0.113.1"),)), 100), SETTINGS).values()

    assert 1 == sum(text.count("--comment") for text in texts)


def programmed(count: int) -> TableAgent:
    """Return an agent in a cluster of Services with three endpoints each, which has nothing to do."""
    agent = TableAgent(SETTINGS)
    agent.apply(everything(count, endpoints=(1, 2, 3)))
    agent.sync()
    agent.kernel.written.clear()
    return agent


def written(agent: TableAgent, *changes: ObjectChange) -> str:
    """Return the restore input that changes cost."""
    agent.apply(changes)
    agent.sync()
    return "".join(agent.kernel.written)


@pytest.mark.parametrize("endpoints", [(1, 2, 3, 4), (1, 2), (1, 2, 4)], ids=["more", "fewer", "other"])
def test_endpoint_change(endpoints: tuple[int, ...]) -> None:
    """What one endpoint costs does not depend on the cluster: it is one chain of its Service."""
    change = endpoints_changed(7, endpoints)
    few, many = (written(programmed(count), *change) for count in (FEW, MANY))

    assert few == many
    assert 1 == many.count("\n:")
    assert 3 + 1 + len(endpoints) == many.count("\n")  # the table and its end, the chain; its masquerade rule


def test_new_and_gone_services_write_the_dispatch() -> None:
    """A Service that comes or goes costs its own chain and the one that all share, and none of another Service."""
    agent = programmed(MANY)
    gone = written(agent, Removed(Kind.SERVICE, port_name(7).service))
    agent.kernel.written.clear()
    new = written(agent, Put(service(7)))

    assert [2, 2] == [text.count("\n:") for text in (gone, new)]


def test_nothing_new_writes_nothing() -> None:
    """Equal objects, and a look at what is in the kernel, cost no write."""
    agent = programmed(MANY)
    agent.apply_again()
    agent.reconciler.mark_stale()

    assert not written(agent)
