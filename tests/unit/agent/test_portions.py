"""A first load in portions: the kernel is at one while the next is compiled, and the end is the same as with one change."""

import asyncio
from collections.abc import Mapping

import pytest

from pyproxy.agent.reconcile import SyncReport
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_plan import ServicePlan
from tests.fakes.kernel import TableKernel
from tests.fakes.node_agent import NodeAgent, TableAgent
from tests.properties.planning import succeeded
from tests.unit.agent.objects import endpoints_changed, everything, port_name

SETTINGS = IptablesSettings(family=Family.IPV4)
SERVICES = 1_000
PORTION = 400
"""More than are compiled between two turns of the loop."""
POISON = 66
"""Last octet of an endpoint that the kernel refuses."""


class SlowKernel(TableKernel):
    """One that takes its time over each change, and knows how much was compiled meanwhile."""

    plans_per_portion: int | None = PORTION

    def __init__(self) -> None:
        super().__init__(SETTINGS.family)
        self.program = CountingProgram(SETTINGS)
        self.compiled_meanwhile = 0
        self._is_at_work = False

    async def apply(self, change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> None:
        """Apply a change after a few turns of the loop; only one at a time."""
        assert not self._is_at_work
        self._is_at_work = True
        before = self.program.given
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.compiled_meanwhile += self.program.given - before
        self._is_at_work = False
        await super().apply(change)


class CountingProgram(IptablesProgram):
    """One that counts what it is given."""

    given = 0

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[RulesetKey]:
        """Count, and compile."""
        self.given += 1
        return super().put(name, plan)


class PortionAgent(NodeAgent):
    """One of such a kernel."""

    def __init__(self) -> None:
        self.kernel = SlowKernel()
        super().__init__(SETTINGS, self.kernel)
        self.reconciler.replace_program(self.kernel.program)

    def sync(self) -> SyncReport:
        """Write the staged plans to the kernel."""
        return succeeded(asyncio.run(self.reconciler.sync()))

    def in_kernel(self) -> dict[RulesetKey, str]:
        """Return what of ours the kernel has."""
        return asyncio.run(self.kernel.read())


def agent_with(*poisoned: int) -> PortionAgent:
    """Tell an agent of many Services, some of which the kernel refuses."""
    agent = PortionAgent()
    agent.apply(everything(SERVICES))
    for number in poisoned:
        agent.apply(endpoints_changed(number, [POISON]))
    return agent


def test_kernel_is_at_work_meanwhile() -> None:
    """What does not depend on Services comes first, then portion by portion; the report is that of one change."""
    agent, at_once = agent_with(), TableAgent(SETTINGS)
    at_once.apply(everything(SERVICES))
    expected = at_once.sync()

    report = agent.sync()

    assert 1 + -(-SERVICES // PORTION) == len(agent.kernel.written)
    assert agent.kernel.compiled_meanwhile
    assert agent.wanted() == agent.in_kernel() == at_once.in_kernel()
    assert expected.taken == report.taken
    assert not report.repaired
    assert not agent.reconciler.pending


@pytest.mark.parametrize("number", [0, PORTION, SERVICES - 1])
def test_refused_service_is_found(number: int) -> None:
    """A Service that the kernel rejects, in any portion, is quarantined, and all other Services are in the kernel."""
    agent = agent_with(number)
    agent.kernel.refuses = lambda line: f".{POISON}:8080" in line

    report = agent.sync()

    assert [port_name(number)] == report.refused == list(agent.reconciler.quarantined)
    assert SERVICES - 1 == len(report.taken)
    good = {name: plan for name, plan in agent.plans().items() if name != port_name(number)}
    assert good.keys() == report.taken.keys()


def test_busy_kernel() -> None:
    """Where a change fails for a reason of its own nothing counts as taken, and the next sync does it all."""
    agent = agent_with()
    agent.kernel.is_busy = True
    with pytest.raises(ApplyError):
        agent.sync()
    agent.kernel.is_busy = False

    assert SERVICES == len(agent.sync().taken)
    assert agent.wanted() == agent.in_kernel()


def test_what_is_there_is_adopted_at_once() -> None:
    """A table that has something is compared as a whole: half of a cluster would look as if the rest were to go."""
    first, second = agent_with(), agent_with()
    first.sync()
    second.kernel.tables = first.kernel.tables
    second.apply(endpoints_changed(3, [2]))

    second.sync()

    assert 1 == len(second.kernel.written)
    assert second.wanted() == second.in_kernel()
