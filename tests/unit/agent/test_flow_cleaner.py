"""When the flow cleaner walks through conntrack, and what it requests. `tests.packets.test_flows` tests what it deletes.

The conntrack table is that of an empty network namespace.
"""

import asyncio
from collections.abc import Collection, Iterator

import pytest
from msgspec.structs import replace

from pyproxy.agent.flow_cleaner import FlowCleaner
from pyproxy.model.address import Family, Network
from pyproxy.model.names import Protocol
from pyproxy.plan.service_plan import ServicePlan
from tests.packets.own_namespace import own_namespace
from tests.unit.plan.building import PLAN, endpoints, ips, port_name

pytestmark = pytest.mark.usefixtures("needs_root")

DNS = replace(PLAN, name=port_name("dns", protocol=Protocol.UDP), port=53, cluster_ip=ips("10.96.0.53")[0])
SERVED = replace(DNS, serving_endpoints=frozenset(endpoints("10.244.1.11:53")))
AT_NODE_PORT = replace(SERVED, node_port=30053)
IN_IPV6 = replace(SERVED, family=Family.IPV6, cluster_ip=ips("fd00:10:96::53")[0])


class Work:
    """What a cleaner did by the time that it has nothing to do."""

    def __init__(self) -> None:
        self.cleaned: list[tuple[Family, int]] = []
        self.asked = 0
        self._is_done = asyncio.Event()

    def note_cleaned(self, family: Family, count: int, _seconds: float) -> None:
        """Record a walk through conntrack."""
        self.cleaned.append((family, count))
        self._is_done.set()

    async def node_networks(self, _: Family) -> Collection[Network]:
        """Return the node's addresses, of which there are none."""
        self.asked += 1
        return ()

    async def follow(self, *looks: list[list[tuple[ServicePlan | None, ServicePlan | None]]]) -> None:
        """Have a cleaner work off the notes for one look after the other; a change of IPv6 says when each is over."""
        cleaner = FlowCleaner(self.note_cleaned)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(cleaner.run(self.node_networks))
            for count, notes in enumerate(looks, start=1):
                for note in notes:
                    cleaner.note(note)
                cleaner.note([(None, IN_IPV6)])
                while count > sum(family is Family.IPV6 for family, _ in self.cleaned):
                    await self._is_done.wait()
                    self._is_done.clear()
            running.cancel()


@pytest.fixture
def work() -> Iterator[Work]:
    """Give an empty record, in a network namespace of the test's own."""
    with own_namespace():
        yield Work()


def test_one_look_for_many_notes(work: Work) -> None:
    """What gathered since the last look is worked off in one look for each family."""
    other = replace(SERVED, name=port_name("other", protocol=Protocol.UDP), cluster_ip=ips("10.96.0.54")[0])
    asyncio.run(work.follow([[(DNS, SERVED)], [(None, other)], [(SERVED, DNS)]]))

    assert [(Family.IPV4, 0), (Family.IPV6, 0)] == work.cleaned


@pytest.mark.parametrize(
    "note", [[], [(SERVED, replace(SERVED, affinity_seconds=9))]], ids=["no change", "frontends as before"]
)
def test_no_look_without_a_reason(work: Work, note: list[tuple[ServicePlan | None, ServicePlan | None]]) -> None:
    """The table is not looked through for changes that make no flow stale."""
    asyncio.run(work.follow([[(None, SERVED)]], [note]))

    assert [(Family.IPV4, 0), (Family.IPV6, 0), (Family.IPV6, 0)] == work.cleaned


@pytest.mark.parametrize(("plan", "asked"), [(SERVED, 0), (AT_NODE_PORT, 1)], ids=["without", "with"])
def test_addresses_of_the_node(work: Work, plan: ServicePlan, asked: int) -> None:
    """The node's addresses are read only if a node port changed."""
    asyncio.run(work.follow([[(DNS, plan)]]))

    assert asked == work.asked
