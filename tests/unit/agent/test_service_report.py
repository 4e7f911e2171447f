"""What the agent answers about its Services: whether the kernel has the rules of each, before, during and after syncs."""

import asyncio

import msgspec
import pytest

from pyproxy.agent.service_report import ServiceReporter
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.change import Put, Unserved
from pyproxy.model.names import NamespacedName
from pyproxy.model.service import NoPacketPath
from pyproxy.model.unserved import UnservedService
from pyproxy.plan.agent_objects import AgentObjects
from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import ServiceList, SyncState
from tests.fakes.node_agent import TableAgent
from tests.unit.agent.objects import endpoint_slice, endpoints_changed, everything, service

POISON = 66
"""Last octet of an endpoint whose rules the kernel refuses."""


@pytest.fixture
def agent() -> TableAgent:
    """Provide an agent with three Services, whose kernel refuses one endpoint."""
    made = TableAgent(IptablesSettings(family=Family.IPV4))
    made.kernel.refuses = lambda line: f".{POISON}:8080" in line
    made.apply(everything(3))
    return made


def report(agent: TableAgent) -> ServiceList:
    """Return the report of an agent."""
    reporter = ServiceReporter(agent.tracker, agent.planner, {Family.IPV4: agent.reconciler})
    return asyncio.run(reporter.report(agent.node, "iptables", {Family.IPV4: None}))


def test_objects(agent: TableAgent) -> None:
    """All objects and settings of the agent can be read back as they are."""
    reporter = ServiceReporter(agent.tracker, agent.planner, {Family.IPV4: agent.reconciler})
    text = asyncio.run(reporter.objects(agent.node, "iptables", {"cluster_cidr": "10.244.0.0/16"}))
    found = msgspec.json.decode(text, type=AgentObjects)

    assert (agent.node, "iptables", {"cluster_cidr": "10.244.0.0/16"}) == (found.node, found.mode, found.settings)
    assert [*agent.tracker.services.values()] == found.services
    assert [each for name in agent.tracker.services for each in agent.tracker.slices(name)] == found.slices
    assert 3 == len(found.slices)


def sync_states(agent: TableAgent) -> dict[str, SyncState | None]:
    """Return the sync state of each Service."""
    return {item.name: item.sync for item in report(agent).items}


def test_before_the_first_sync_all_is_pending(agent: TableAgent) -> None:
    """Until the first sync succeeds no Service is programmed, and there is no time of a sync."""
    found = report(agent)

    assert [SyncState.PENDING] * 3 == [item.sync for item in found.items]
    assert [None] == [family.last_sync_seconds for family in found.families]


def test_after_a_sync_all_is_programmed(agent: TableAgent) -> None:
    """After a sync every Service is programmed, with the state of its plan, and the sync has just been."""
    agent.sync()
    found = report(agent)

    assert [(SyncState.PROGRAMMED, State.OK)] * 3 == [(item.sync, item.state) for item in found.items]
    [family] = found.families
    assert family.last_sync_seconds is not None
    assert (0 <= family.last_sync_seconds < 60, "") == (True, family.error)


def test_a_planned_change_is_pending(agent: TableAgent) -> None:
    """A Service whose change waits for the next sync is pending, and no other one is."""
    agent.sync()
    agent.apply(endpoints_changed(1, [2]))

    assert {
        "web-0": SyncState.PROGRAMMED,
        "web-1": SyncState.PENDING,
        "web-2": SyncState.PROGRAMMED,
    } == sync_states(agent)


def test_an_unplanned_change_is_pending(agent: TableAgent) -> None:
    """A change that has not been planned yet makes its Service pending, a new Service included."""
    agent.sync()
    for change in (*endpoints_changed(1, [2]), Put(service(3)), Put(endpoint_slice(3))):
        agent.tracker.apply(change)

    assert {
        "web-0": SyncState.PROGRAMMED,
        "web-1": SyncState.PENDING,
        "web-2": SyncState.PROGRAMMED,
        "web-3": SyncState.PENDING,
    } == sync_states(agent)


def test_after_an_external_change_all_is_stale(agent: TableAgent) -> None:
    """After an external change the kernel may lack any rule, until the next sync has read it."""
    agent.sync()
    agent.reconciler.mark_stale()

    assert {SyncState.STALE} == set(sync_states(agent).values())
    agent.sync()
    assert {SyncState.PROGRAMMED} == set(sync_states(agent).values())


def test_a_refused_service_is_quarantined(agent: TableAgent) -> None:
    """A Service that the kernel refused is quarantined with the kernel's error; other Services are programmed."""
    agent.sync()
    agent.apply(endpoints_changed(1, [POISON]))
    agent.sync()

    found = {item.name: item for item in report(agent).items}
    assert SyncState.QUARANTINED is found["web-1"].sync
    assert f".{POISON}:8080" in found["web-1"].sync_error
    assert [SyncState.PROGRAMMED] * 2 == [found[name].sync for name in ("web-0", "web-2")]


def test_a_failed_sync_is_reported(agent: TableAgent) -> None:
    """After a sync that failed as a whole the error is reported, and the time is that of the last success."""
    agent.sync()
    agent.kernel.is_busy = True
    agent.apply(endpoints_changed(1, [2]))
    with pytest.raises(ApplyError):
        agent.sync()

    [family] = report(agent).families
    assert family.error
    assert family.last_sync_seconds is not None


def test_services_without_rules_are_reported(agent: TableAgent) -> None:
    """A headless Service is reported without a sync state; an invalid one also has the rows of its last good version."""
    agent.sync()
    agent.apply(
        [
            Unserved(UnservedService(NamespacedName("default", "headless"), NoPacketPath.HEADLESS)),
            Unserved(UnservedService(NamespacedName("default", "web-1"), problem="spec: wrong")),
        ]
    )

    found = [(item.name, item.state, item.sync) for item in report(agent).items]
    assert [
        ("headless", State.NO_RULES, None),
        ("web-0", State.OK, SyncState.PROGRAMMED),
        ("web-1", State.OK, SyncState.PROGRAMMED),
        ("web-1", State.INVALID, None),
        ("web-2", State.OK, SyncState.PROGRAMMED),
    ] == found


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["headless", "web-0", "web-1", "web-2"]),
        (" Default/WEB-1", ["web-1"]),
        ("web", ["web-0", "web-1", "web-2"]),
        ("10.96.0.2", ["web-2"]),
        ("10.96.0.77", []),
        ("nothing", []),
    ],
)
def test_services_are_found(agent: TableAgent, query: str, found: list[str]) -> None:
    """A query finds Services by a part of the name or by an address, and says how many there are."""
    agent.apply([Unserved(UnservedService(NamespacedName("default", "headless"), NoPacketPath.HEADLESS))])
    reporter = ServiceReporter(agent.tracker, agent.planner, {Family.IPV4: agent.reconciler})

    total, names = reporter.find(query)

    assert (4, found) == (total, [name.name for name in names])


def test_some_services_are_reported(agent: TableAgent) -> None:
    """Only the Services that are named are reported; one that is gone is left out."""
    names = [NamespacedName("default", name) for name in ("web-1", "gone")]
    reporter = ServiceReporter(agent.tracker, agent.planner, {Family.IPV4: agent.reconciler})

    found = asyncio.run(reporter.report(agent.node, "iptables", {Family.IPV4: None}, names))

    assert ["web-1"] == [item.name for item in found.items]
