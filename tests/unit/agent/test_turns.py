"""The loop gets a turn while a big cluster is compiled: what happens between two turns is counted, not timed."""

from collections.abc import Collection, Coroutine
from typing import Any

from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.model.node import LocalTraffic
from pyproxy.plan.service_plan import ServicePlan
from tests.fakes.node_agent import TableAgent
from tests.properties.planning import run_now
from tests.unit.agent.objects import endpoints_changed, everything

SETTINGS = IptablesSettings(family=Family.IPV4)
SERVICES = 5_000
AT_ONCE = 200
"""Service ports that may be compiled between two turns: some 10 ms of work."""


class CountingProgram(IptablesProgram):
    """One that knows how much it was given since it was last asked."""

    given = 0

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[RulesetKey]:
        """Count, and compile."""
        self.given += 1
        return super().put(name, plan)


def counts_between_turns(work: Coroutine[Any, Any, object], program: CountingProgram) -> Collection[int]:
    """Do the work and return how many ports were compiled before each turn."""
    counts = []
    try:
        while work.send(None) is None:
            counts.append(program.given)
            program.given = 0
    except StopIteration:
        return [*counts, program.given]
    raise AssertionError(counts)


def test_start() -> None:
    """The first sync of a big cluster lets other tasks run in between."""
    agent = TableAgent(SETTINGS)
    program = CountingProgram(SETTINGS)
    agent.reconciler.replace_program(program)
    agent.apply(everything(SERVICES))

    counts = counts_between_turns(agent.reconciler.sync(), program)

    assert (SERVICES, True) == (sum(counts), max(counts) <= AT_ONCE)


def test_new_settings() -> None:
    """Settings on which all rules depend are taken over without a standstill."""
    agent = TableAgent(SETTINGS)
    agent.apply(everything(SERVICES))
    agent.sync()
    program = CountingProgram(IptablesSettings(family=Family.IPV4, local_traffic=LocalTraffic(interface="cni0")))
    agent.reconciler.replace_program(program)
    at_once = program.given

    counts = counts_between_turns(agent.reconciler.sync(), program)

    assert (0, SERVICES, True) == (at_once, sum(counts), max(counts) <= AT_ONCE)


def test_marked_stale_during_a_sync() -> None:
    """An external change during a sync is examined in the next one, and does not affect this one."""
    agent = TableAgent(SETTINGS)
    agent.apply(everything(SERVICES))
    agent.sync()
    agent.apply(change for number in range(SERVICES) for change in endpoints_changed(number, [2]))
    agent.kernel.written.clear()
    work = agent.reconciler.sync()
    work.send(None)
    agent.reconciler.mark_stale()
    run_now(work)

    [text] = agent.kernel.written
    assert (True, False) == (agent.reconciler.pending, "-I " in text)
    agent.sync()
    assert ([text], agent.wanted()) == (agent.kernel.written, agent.in_kernel())
