"""When the agent looks for external changes."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from pyproxy.agent import agent as agent_module
from pyproxy.agent.agent import Agent
from pyproxy.agent.health import AgentHealth
from pyproxy.agent.observer import Observer
from pyproxy.agent.reconcile import Reconciler
from pyproxy.agent.sources import EventQueue
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.config.config import Config, ProxyMode
from pyproxy.model.address import Family
from pyproxy.model.change import Kind, Replaced
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.node.context import NodeContext
from pyproxy.serve.listeners import Listeners
from tests.fakes.kernel import TableKernel

LOOK_SECONDS = 0.01
SLOW_SECONDS = 20 * LOOK_SECONDS


class SlowKernel(TableKernel):
    """One that takes its time to commit, in which both families' counters already show the change, as in nf_tables."""

    unaccounted = 0
    """Commits of both families that are done and not yet accounted for."""

    async def apply(self, change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> None:
        """Carry out a change, slower in IPv6."""
        await super().apply(change)
        SlowKernel.unaccounted += 1
        await asyncio.sleep(SLOW_SECONDS * (2 if self.family is Family.IPV6 else 1))
        SlowKernel.unaccounted -= 1

    def changed_externally(self) -> bool:
        """Return whether the counter differs from the expected value."""
        return SlowKernel.unaccounted > 0


class TwoFamilies:
    """The iptables mode on tables in memory."""

    mode = ProxyMode.IPTABLES
    families = tuple(Family)
    follows_local_ips = False

    def __init__(self) -> None:
        self.kernels = {family: SlowKernel(family) for family in Family}

    def is_ready_for(self, node: Node) -> bool:  # noqa: ARG002  # nothing of it is needed
        """Say yes."""
        return True

    def settings(self, family: Family, context: NodeContext) -> IptablesSettings:  # noqa: ARG002  # see above
        """Return the family's settings."""
        return IptablesSettings(family=family)

    def program(self, settings: IptablesSettings) -> IptablesProgram:
        """Return the family's program."""
        return IptablesProgram(settings)

    def kernel(self, family: Family) -> SlowKernel:
        """Return the family's tables."""
        return self.kernels[family]

    def prepare(self) -> bool:
        """Set nothing."""
        return True

    def node_port_ips(self, family: Family, context: NodeContext) -> None:
        """Let node ports answer on all addresses."""

    def relays_localhost(self, family: Family) -> bool:  # noqa: ARG002  # see above
        """Relay nothing."""
        return False


async def run_first_sync() -> None:
    """Run an agent through its first sync."""
    backend = TwoFamilies()
    config = Config(healthz_bind_address=None)
    health = AgentHealth(config, Listeners())
    agent = Agent(config, backend, "node1", tracker=Tracker(), observer=Observer(), health=health)  # type: ignore[arg-type]  # all that an agent uses
    events = EventQueue()
    node = Node(name="node1", ips=(bytes((172, 18, 0, 2)),))
    for change in (Replaced(Kind.SERVICE, ()), Replaced(Kind.ENDPOINT_SLICE, ()), Replaced(Kind.NODE, (node,))):
        events.put_nowait(change)
    is_complete = asyncio.Event()

    async def remove_stale() -> None:
        is_complete.set()

    running = asyncio.create_task(agent.run(events, remove_stale))
    await is_complete.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def test_own_change_in_flight_is_no_disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    """One family is done while the other's commit is not accounted for; to read all of it again would be for nothing."""
    stale: list[Reconciler[Any, Any]] = []
    monkeypatch.setattr(agent_module, "_LOOK_PERIOD_SECONDS", LOOK_SECONDS)
    monkeypatch.setattr(Reconciler, "mark_stale", stale.append)

    asyncio.run(run_first_sync())

    assert [] == stale
