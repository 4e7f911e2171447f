"""Drift: what counts as changed by another program, found by a full sync or by a check beside syncs."""

import asyncio

import pytest

from pyproxy.agent.drift_report import DriftReporter
from pyproxy.agent.reconcile import Reconciler
from pyproxy.backends.drift import Drift, by_service
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import ChainKey, HookKey, RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.backends.registry import open_dumper
from pyproxy.config.config import Config, ProxyMode
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from tests.fakes.kernel import TableKernel
from tests.fakes.node_agent import TableAgent
from tests.properties.planning import run_now
from tests.unit.agent.objects import endpoints_changed, everything

SETTINGS = IptablesSettings(family=Family.IPV4)
DISPATCH = ChainKey("nat", "KUBE-SERVICES")


@pytest.fixture
def agent() -> TableAgent:
    """Provide an agent that has programmed two Services."""
    made = TableAgent(SETTINGS)
    made.apply(everything(2))
    made.sync()
    return made


def disturb(agent: TableAgent) -> None:
    """Change a chain, delete one, and create one with a name of ours."""
    nat = agent.kernel.tables.chains["nat"]
    del nat[next(name for name in nat if name.startswith("KUBE-SVC-"))][0]
    nat["KUBE-SERVICES"].pop(0)
    nat["KUBE-SVC-AAAAAAAAAAAAAAAA"] = ["-j ACCEPT"]
    agent.kernel.tables.chains["filter"]["FORWARD"] = agent.kernel.tables.chains["filter"]["FORWARD"][1:]


def full_sync(agent: TableAgent) -> Drift | None:
    """Read everything, and return the drift that was repaired."""
    agent.reconciler.mark_stale()
    return agent.sync().drift


def test_full_sync_reports_each_kind(agent: TableAgent) -> None:
    """A full sync reports missing, changed and unexpected entries once, and repairs them."""
    before = agent.in_kernel()
    disturb(agent)
    drift = full_sync(agent)

    assert drift
    assert {"missing": 1, "changed": 2, "unexpected": 1} == drift.counts()
    assert {HookKey, ChainKey} == {type(key) for key in drift.changed}
    assert before == agent.in_kernel()
    assert full_sync(agent) is None


def test_drift_that_cannot_be_described(agent: TableAgent, caplog: pytest.LogCaptureFixture) -> None:
    """A report that fails is logged with its reason, as one line."""
    disturb(agent)
    drift = full_sync(agent)

    async def report() -> None:
        DriftReporter(Config(), ProxyMode.AUTO, "node1").note(Family.IPV4, drift)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    asyncio.run(report())

    (record,) = (record for record in caplog.records if record.name.endswith("drift_report"))
    assert record.getMessage().startswith(
        "IPv4: 4 entries were changed by another program, and repaired; their Services cannot be listed: --proxy-mode"
    )


def test_adoption_is_not_drift(agent: TableAgent) -> None:
    """Rules that a new agent finds in the kernel are not drift, whatever it changes."""
    disturb(agent)
    agent.reconciler = Reconciler(Family.IPV4, IptablesProgram(SETTINGS), agent.kernel)
    agent.apply_again()
    report = agent.sync()

    assert (None, True) == (report.drift, report.entries_changed > 0)


def test_changed_plan_is_not_drift(agent: TableAgent) -> None:
    """Of a full sync that also writes a new plan, only the entries that another program changed are drift."""
    agent.apply(endpoints_changed(1, [2]))
    agent.kernel.tables.chains["nat"]["KUBE-SERVICES"].pop(0)
    drift = full_sync(agent)

    assert drift
    assert [DISPATCH] == list(drift.changed)


def test_drift_that_is_repaired_late(agent: TableAgent) -> None:
    """Drift is reported by the sync that repairs it; what failed syncs left behind is not drift."""
    agent.kernel.tables.chains["nat"]["KUBE-SERVICES"].pop(0)
    agent.kernel.is_busy = True
    agent.reconciler.mark_stale()
    with pytest.raises(ApplyError):
        agent.sync()
    agent.kernel.is_busy = False
    drift = agent.sync().drift

    assert drift
    assert [DISPATCH] == list(drift.changed)

    agent.kernel.is_busy = True
    agent.apply(endpoints_changed(1, [3]))
    with pytest.raises(ApplyError):
        agent.sync()
    agent.kernel.is_busy = False
    assert agent.sync().drift is None


def test_check_writes_nothing(agent: TableAgent) -> None:
    """A check finds the same drift as a full sync, and changes nothing."""
    assert run_now(agent.reconciler.find_drift()) is None
    disturb(agent)
    disturbed = agent.in_kernel()
    drift = run_now(agent.reconciler.find_drift())

    assert drift
    assert disturbed == agent.in_kernel()
    repaired = full_sync(agent)
    assert repaired
    assert drift.changed == repaired.changed


def test_changes_during_a_check(agent: TableAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that a sync writes while a check reads the kernel are not drift."""

    class SlowKernel(TableKernel):
        async def peek(self) -> dict[RulesetKey, str]:
            found = await self.read()
            agent.apply(endpoints_changed(1, [4 + len(agent.kernel.written)]))
            await agent.reconciler.sync()
            return found

    monkeypatch.setattr(agent.kernel, "__class__", SlowKernel)
    assert asyncio.run(agent.reconciler.find_drift()) is None

    agent.kernel.tables.chains["nat"]["KUBE-SERVICES"].pop(0)
    drift = asyncio.run(agent.reconciler.find_drift())
    assert drift
    assert [DISPATCH] == list(drift.changed)


def test_services_of_drift(agent: TableAgent) -> None:
    """Each difference is named with its Service and rule; the chain of an unknown Service and hooks are shared."""
    disturb(agent)
    drift = full_sync(agent)
    assert drift
    *services, shared = by_service(open_dumper(Config()), Family.IPV4, drift)

    assert {"web-0", "web-1"} >= {item.name for item in services}  # type: ignore[union-attr]  # Services come first
    assert all(len(rule) > len("nat: -A ") for item in services for rule in item.missing)
    assert ["nat: -A KUBE-SVC-AAAAAAAAAAAAAAAA -j ACCEPT"] == shared.unexpected
    assert ["KUBE-PROXY-FIREWALL"] == [rule.rpartition(" ")[2] for rule in shared.missing]
