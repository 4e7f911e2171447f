"""After any history the kernel has what a newly started agent would program."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.backends.iptables.program import port_rules
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family, ip_text
from pyproxy.model.change import ObjectChange, Put
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import ServicePortName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.plan.service_plan import ServicePlan
from tests.fakes.node_agent import TableAgent
from tests.fakes.tables import HOOKS
from tests.properties.planning import names_of, ruleset_of, tables_of
from tests.properties.strategies import Cluster, changes, clusters, iptables_settings
from tests.properties.world import WORLD, of_families

MOST_PERIODS = 40
"""More sync periods than the longest time between two retries in quarantine."""
TRIES_IN_MOST_PERIODS = 5
"""Retries after 1, 3, 7, 15 and 31 periods: the time between two retries doubles."""


@st.composite
def walks(draw: st.DrawFn, *, contested: bool = True) -> list[list[ObjectChange]]:
    """Draw changes between several states of a cluster, grouped as they reach the agent."""
    states = [draw(clusters(contested=contested)) for _ in range(draw(st.integers(1, 3)))]
    groups = draw(st.lists(st.lists(changes(states), min_size=1, max_size=4), min_size=1, max_size=5))
    return [list(states[0].changes()), *groups]


@given(walks(), iptables_settings())
def test_every_walk_ends_where_a_fresh_start_ends(walk: list[list[ObjectChange]], settings: IptablesSettings) -> None:
    """After every group of changes the kernel has the rules of a new program, and all foreign rules."""
    agent = TableAgent(settings)
    for group in walk:
        agent.apply(group)
        agent.sync()

        assert agent.wanted() == agent.in_kernel()
        assert agent.kernel.has_foreign_rules()
        assert not agent.reconciler.pending


@given(walks(), iptables_settings())
def test_a_second_sync_writes_nothing(walk: list[list[ObjectChange]], settings: IptablesSettings) -> None:
    """Without a change a sync writes nothing, also after everything is processed, read or compiled again."""
    agent = TableAgent(settings)
    agent.follow(walk)
    agent.kernel.written.clear()
    agent.apply_again()
    agent.sync()
    agent.reconciler.mark_stale()
    agent.sync()
    agent.configure(settings)
    agent.sync()

    assert [] == agent.kernel.written


@given(walks(), iptables_settings())
def test_a_restart_writes_nothing(walk: list[list[ObjectChange]], settings: IptablesSettings) -> None:
    """An agent that starts with the rules of another run for the same cluster writes nothing."""
    first, second = TableAgent(settings), TableAgent(settings)
    for group in walk:
        first.apply(group)
        second.apply(group)
    first.sync()
    second.kernel.tables = first.kernel.tables
    second.sync()

    assert [] == second.kernel.written


@given(walks(), iptables_settings())
def test_one_group_or_many(walk: list[list[ObjectChange]], settings: IptablesSettings) -> None:
    """Changes that accumulate while the agent is busy have the same result as changes that are synced one by one."""
    at_once, one_by_one = TableAgent(settings), TableAgent(settings)
    at_once.apply([change for group in walk for change in group])
    at_once.sync()
    one_by_one.follow([change] for group in walk for change in group)

    assert at_once.in_kernel() == one_by_one.in_kernel()


@given(st.data(), clusters(), iptables_settings())
def test_order_of_events_does_not_matter(data: st.DataObject, cluster: Cluster, settings: IptablesSettings) -> None:
    """Objects that arrive one by one, in any order and with syncs in between, result in the same rules as full lists."""
    one_by_one, at_once = TableAgent(settings), TableAgent(settings)
    at_once.apply(cluster.changes())
    at_once.sync()
    objects: list[Service | EndpointSlice | Node] = [*cluster.services, *cluster.slices, cluster.node]
    one_by_one.follow([Put(item)] for item in data.draw(st.permutations(objects)))

    assert at_once.in_kernel() == one_by_one.in_kernel()


@given(st.data(), walks(), st.sampled_from(Family))
def test_settings_may_change_on_the_way(data: st.DataObject, walk: list[list[ObjectChange]], family: Family) -> None:
    """New settings have the same result as a new start with them, whatever changes are staged at the time."""
    agent = TableAgent(data.draw(iptables_settings(family)))
    for group in walk:
        agent.apply(group)
        if data.draw(st.booleans()):
            agent.configure(data.draw(iptables_settings(family)))
        agent.sync()

        assert agent.wanted() == agent.in_kernel()


@given(st.data(), walks(), iptables_settings())
def test_external_changes_are_repaired(
    data: st.DataObject, walk: list[list[ObjectChange]], settings: IptablesSettings
) -> None:
    """Flushed chains and hooks are restored after the next check, together with staged changes."""
    agent = TableAgent(settings)
    for group in walk:
        agent.apply(group)
        agent.sync()
        for _ in range(data.draw(st.integers(1, 3))):
            table = data.draw(st.sampled_from(sorted(HOOKS)))
            chain = data.draw(st.sampled_from(sorted(agent.kernel.tables.chains[table])))
            agent.kernel.tables.flush(table, chain)
        agent.reconciler.mark_stale()
    agent.sync()

    assert agent.wanted() == agent.in_kernel()


@given(walks(), iptables_settings())
def test_order_of_hooks(walk: list[list[ObjectChange]], settings: IptablesSettings) -> None:
    """On a new node the hooks have kube-proxy's order, which determines what is dropped before it is accepted."""
    agent = TableAgent(settings)
    agent.apply(walk[0])
    agent.sync()
    expected = tables_of(ruleset_of({}, settings)).chains

    for table, chains in HOOKS.items():
        for chain in chains:
            hooks = expected[table][chain]
            assert hooks == agent.kernel.tables.chains[table][chain][: len(hooks)]


@given(st.data(), walks(), iptables_settings())
def test_a_busy_kernel_loses_nothing(
    data: st.DataObject, walk: list[list[ObjectChange]], settings: IptablesSettings
) -> None:
    """Syncs with transient errors lose nothing: the next successful sync catches up."""
    agent = TableAgent(settings)
    for group in walk:
        agent.apply(group)
        agent.kernel.is_busy = data.draw(st.booleans())
        before = agent.in_kernel()
        if agent.kernel.is_busy and before != agent.wanted():
            with pytest.raises(ApplyError):
                agent.sync()
            assert before == agent.in_kernel()
            assert agent.reconciler.pending
        else:
            agent.sync()
    agent.kernel.is_busy = False
    agent.sync()

    assert agent.wanted() == agent.in_kernel()


class Refusal:
    """A kernel that refuses to translate to an address, and the plans that are expected in it nevertheless."""

    def __init__(self, agent: TableAgent, poison: bytes) -> None:
        self._agent = agent
        self._text = f"--to-destination {ip_text(poison)}" if len(poison) == 4 else f"[{ip_text(poison)}]"
        self.good: dict[ServicePortName, ServicePlan] = {}
        """The last accepted plan of each port."""
        self.refused: set[ServicePortName] = set()

    def refuses(self, line: str) -> bool:
        """Return whether a line is refused."""
        return self._text in line

    def note(self) -> None:
        """Compute which ports are refused now, and which plans are in effect."""
        plans = self._agent.plans()
        self.good = {name: plan for name, plan in self.good.items() if name in plans}
        self.refused = {name for name, plan in plans.items() if self._is_refused(plan)}
        self.good |= {name: plan for name, plan in plans.items() if name not in self.refused}

    def _is_refused(self, plan: ServicePlan) -> bool:
        return any(self.refuses(text) for text in port_rules(plan, self._agent.settings).values())


def refusing(settings: IptablesSettings, which: int) -> tuple[TableAgent, Refusal]:
    """Return an agent whose kernel refuses to translate to one of the world's endpoints."""
    agent = TableAgent(settings)
    refusal = Refusal(agent, of_families(WORLD.endpoint_ips, (settings.family,))[which])
    agent.kernel.refuses = refusal.refuses
    return agent, refusal


def try_again(agent: TableAgent) -> None:
    """Advance the time so far that every port in quarantine is retried."""
    for _ in range(MOST_PERIODS):
        agent.reconciler.release_due()
        agent.sync()


@given(walks(contested=False), iptables_settings(), st.integers(0, 3))
def test_a_refused_port_changes_no_other(
    walk: list[list[ObjectChange]], settings: IptablesSettings, which: int
) -> None:
    """All accepted ports are programmed; a refused port keeps its last good rules, and is not pending work."""
    agent, refusal = refusing(settings, which)
    for group in walk:
        agent.apply(group)
        agent.sync()
        refusal.note()

        assert names_of(refusal.refused) == names_of(agent.reconciler.quarantined)
        assert ruleset_of(refusal.good, settings) == agent.in_kernel()
        assert not agent.reconciler.pending
    try_again(agent)
    assert ruleset_of(refusal.good, settings) == agent.in_kernel()


@given(walks(contested=False), iptables_settings(), st.integers(0, 3))
def test_a_refused_port_comes_back(walk: list[list[ObjectChange]], settings: IptablesSettings, which: int) -> None:
    """When the kernel accepts the refused plan, the port leaves quarantine with its newest plan."""
    agent, _ = refusing(settings, which)
    agent.follow(walk)
    agent.kernel.refuses = lambda _line: False
    try_again(agent)

    assert {} == agent.reconciler.quarantined
    assert agent.wanted() == agent.in_kernel()


@given(clusters(contested=False), iptables_settings(), st.integers(0, 3))
def test_a_quarantined_port_is_tried_alone(cluster: Cluster, settings: IptablesSettings, which: int) -> None:
    """A quarantined plan never shares a transaction with another port, and is retried at growing intervals."""
    agent, refusal = refusing(settings, which)
    agent.apply(cluster.changes())
    agent.sync()
    agent.kernel.written.clear()
    quarantined = len(agent.reconciler.quarantined)
    try_again(agent)
    refused = [text for text in agent.kernel.written if refusal.refuses(text)]

    assert [] == [text for text in refused if len(own_suffixes(text)) != 1]
    assert quarantined * TRIES_IN_MOST_PERIODS == len(refused)


def own_suffixes(text: str) -> set[str]:
    """Return the suffixes of the names of Service chains that a restore text declares."""
    prefixes = (":KUBE-SVC-", ":KUBE-SVL-")
    return {line.split(" ")[0][-16:] for line in text.splitlines() if line.startswith(prefixes)}
