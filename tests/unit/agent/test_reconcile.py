"""Memory follows the kernel: what is kept, retried and quarantined if the kernel rejects a change.

The kernel is a fake: tables in memory, which `tests.properties.test_kernel` compares with the real kernel. The property that
every sequence of changes ends in the right rules is tested there; here are single cases.
"""

import logging
import re

import pytest

from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.errors import ApplyError
from pyproxy.logs import V2
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.change import Kind, Put, Removed
from pyproxy.model.node import LocalTraffic
from tests.fakes.node_agent import TableAgent
from tests.properties.planning import run_now
from tests.unit.agent.objects import address, endpoints_changed, everything, port_name, service

SETTINGS = IptablesSettings(family=Family.IPV4)
GOOD, POISON = 1, 66
"""Last octets of endpoints; the kernel refuses the second."""


@pytest.fixture
def agent() -> TableAgent:
    """Give an agent whose kernel refuses to send anything to some endpoints."""
    made = TableAgent(SETTINGS)
    made.kernel.refuses = lambda line: f".{POISON}:8080" in line
    return made


def poisoned(agent: TableAgent, *numbers: int, count: int = 8) -> TableAgent:
    """Program a number of Services, then give some of them an endpoint that the kernel refuses."""
    agent.apply(everything(count))
    agent.sync()
    for number in numbers:
        agent.apply(endpoints_changed(number, [POISON]))
    agent.kernel.written.clear()
    return agent


def is_in_kernel(agent: TableAgent, number: int, last: int = GOOD) -> bool:
    """Return whether a Service leads to an endpoint."""
    return any(address(number, last) in rules for rules in agent.in_kernel().values())


def refused_texts(agent: TableAgent) -> list[str]:
    """Return the restore input that was rejected since the last call."""
    texts = [text for text in agent.kernel.written if f".{POISON}:8080" in text]
    agent.kernel.written.clear()
    return texts


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines that -v 2 shows since the last call, without their times."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= V2]
    caplog.clear()
    return [re.sub(r"[0-9.]+ ms", "N ms", line) for line in found]


def test_each_sync_that_does_something_is_a_line(agent: TableAgent, caplog: pytest.LogCaptureFixture) -> None:
    """With -v 2 a sync that changed something is logged with counts and time; a sync without changes is not logged."""
    caplog.set_level(V2, logger="pyproxy")
    agent.apply(everything(3))
    agent.sync()
    first = logged(caplog)
    agent.apply(endpoints_changed(1, [2]))
    agent.sync()
    second = logged(caplog)
    agent.reconciler.mark_stale()
    agent.sync()

    assert len(first) == 1
    assert first[0].startswith("IPv4: full sync done in N ms: 3 Service ports compared with the kernel, 0 refused, ")
    assert ["IPv4: partial sync done in N ms: 1 of 3 Service ports changed, 0 refused, 1 entries written"] == second
    assert [] == logged(caplog)


def test_hooks_keep_their_order(agent: TableAgent) -> None:
    """On a node without hooks each is put on top in the program's order, which decides who sees a packet first."""
    agent.apply(everything(1))
    agent.sync()
    targets = [rule.rpartition(" ")[2] for rule in agent.kernel.tables.chains["filter"]["FORWARD"]]

    assert ["KUBE-PROXY-FIREWALL", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"] == targets[:4]


def test_report(agent: TableAgent) -> None:
    """A sync tells each port's plan before and now, and how much it changed in the kernel."""
    agent.apply(everything(2))
    agent.sync()
    agent.apply([*endpoints_changed(0, [2]), Removed(Kind.SERVICE, port_name(1).service)])
    report = agent.sync()
    (before, after), (gone, nothing) = report.taken[port_name(0)], report.taken[port_name(1)]

    assert [1, 2] == [plan.cluster_endpoints[0].ip[-1] for plan in (before, after) if plan]
    assert (port_name(1), None) == (gone and gone.name, nothing)
    assert (3, []) == (report.entries_changed, report.refused)  # two chains of Services, and the dispatch


def test_report_of_a_repair(agent: TableAgent) -> None:
    """Where entries were missing, flows of all ports may be wrong; where nothing was missing, and after a change, none."""
    agent.apply(everything(2))
    started = agent.sync()
    agent.reconciler.mark_stale()
    looked = agent.sync()
    agent.kernel.tables.chains["nat"]["KUBE-SERVICES"].clear()
    agent.reconciler.mark_stale()
    agent.apply(endpoints_changed(0, [2]))
    repaired = agent.sync()
    agent.apply(endpoints_changed(0, [3]))
    changed = agent.sync()

    assert [{}, {}, {}] == [started.repaired, looked.repaired, changed.repaired]
    assert [port_name(1)] == list(repaired.repaired)
    assert {port_name(0), port_name(1)} == {plan.name for _, plan in repaired.flow_changes() if plan}
    assert [None] == [before for before, plan in repaired.flow_changes() if plan and plan.name == port_name(1)]


def test_change_that_was_taken_back(agent: TableAgent) -> None:
    """A change that is undone before it was written leaves nothing to do."""
    agent.apply(everything(1))
    agent.sync()
    agent.apply(endpoints_changed(0, [2]))
    agent.apply(endpoints_changed(0, [1]))

    assert not agent.reconciler.pending
    assert {} == agent.sync().taken


def test_heir_of_an_address(agent: TableAgent) -> None:
    """When the Service that has an address goes, the other that claims it has it after the same sync."""
    shared = (parse_ip("203.0.113.1"),)
    agent.apply([*everything(2), *(Put(service(number, external_ips=shared)) for number in range(2))])
    agent.sync()
    agent.apply([Removed(Kind.SERVICE, port_name(0).service)])
    report = agent.sync()

    assert {port_name(0), port_name(1)} == set(report.taken)
    assert any("203.0.113.1" in rules for rules in agent.in_kernel().values())


def test_refused_port_is_found_by_halving(agent: TableAgent) -> None:
    """One bad port among eight costs four refused tries; the other seven are programmed in the same sync."""
    poisoned(agent, 5)
    agent.apply([change for number in (0, 1, 2, 3, 4, 6, 7) for change in endpoints_changed(number, [2])])
    report = agent.sync()

    assert [port_name(5)] == report.refused
    assert 4 == len(refused_texts(agent))
    assert [number != 5 for number in range(8)] == [is_in_kernel(agent, number, 2) for number in range(8)]


def test_quarantined_port_keeps_its_last_good_entries(agent: TableAgent) -> None:
    """A port whose new plan is refused goes on as it was, and counts as no work."""
    poisoned(agent, 5).sync()

    assert is_in_kernel(agent, 5, GOOD)
    assert not agent.reconciler.pending


def test_error_names_what_was_refused(agent: TableAgent, caplog: pytest.LogCaptureFixture) -> None:
    """The log says once, as an error, which port was refused and why."""
    poisoned(agent, 5).sync()
    for _ in range(3):
        agent.reconciler.release_due()
        agent.sync()
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    assert 1 == len(errors)
    assert "default/web-5: refused by the kernel" in errors[0]
    assert address(5, POISON) in errors[0]


def test_times_between_tries(agent: TableAgent) -> None:
    """The periods until a refused plan is tried again double, to 32 at most."""
    poisoned(agent, 5).sync()
    refused_texts(agent)
    tried: list[int] = []
    for period in range(1, 130):
        agent.reconciler.release_due()
        agent.sync()
        if refused_texts(agent):
            tried.append(period)

    assert [1, 3, 7, 15, 31, 63, 95, 127] == tried


def test_changes_of_others_do_not_try_it_again(agent: TableAgent) -> None:
    """While a port waits in quarantine, other ports are written without it."""
    poisoned(agent, 5).sync()
    refused_texts(agent)
    agent.apply(endpoints_changed(0, [2]))
    agent.sync()

    assert is_in_kernel(agent, 0, 2)
    assert [] == refused_texts(agent)


def test_new_plan_is_tried_at_once(agent: TableAgent) -> None:
    """A port in quarantine whose plan changes is tried with the next sync, whatever time is left."""
    poisoned(agent, 5).sync()
    agent.apply(endpoints_changed(5, [2]))
    agent.sync()

    assert is_in_kernel(agent, 5, 2)
    assert {} == agent.reconciler.quarantined


def test_back_to_the_last_good_plan(agent: TableAgent) -> None:
    """A port that returns to what the kernel has leaves quarantine without a write."""
    poisoned(agent, 5).sync()
    agent.kernel.written.clear()
    agent.apply(endpoints_changed(5, [GOOD]))
    agent.sync()

    assert ({}, []) == (agent.reconciler.quarantined, agent.kernel.written)


def test_service_in_quarantine_goes(agent: TableAgent) -> None:
    """With its Service a port leaves quarantine, and its last good entries leave the kernel."""
    poisoned(agent, 5).sync()
    agent.apply([Removed(Kind.SERVICE, port_name(5).service)])
    agent.sync()

    assert {} == agent.reconciler.quarantined
    assert not is_in_kernel(agent, 5)


def test_kernel_that_learns(agent: TableAgent, caplog: pytest.LogCaptureFixture) -> None:
    """A plan that is taken at a later try is in force, and the log says so."""
    poisoned(agent, 5).sync()
    agent.kernel.refuses = lambda _line: False
    agent.reconciler.release_due()
    with caplog.at_level(logging.INFO):
        agent.sync()

    assert is_in_kernel(agent, 5, POISON)
    assert "default/web-5: accepted now, out of quarantine" in caplog.text


def test_fault_of_no_service(agent: TableAgent) -> None:
    """If rules that all Services share are rejected, that is an error: no Service is quarantined, and nothing is lost."""
    agent.kernel.refuses = lambda line: "KUBE-MARK-MASQ" in line
    agent.apply(everything(4))
    with pytest.raises(ApplyError, match="KUBE-MARK-MASQ"):
        agent.sync()

    assert {} == agent.reconciler.quarantined
    assert agent.reconciler.pending
    agent.kernel.refuses = lambda _line: False
    agent.sync()
    assert [True] * 4 == [is_in_kernel(agent, number) for number in range(4)]


def test_busy_kernel(agent: TableAgent) -> None:
    """What may work the next time is tried once, not halved, and stays to be done."""
    poisoned(agent)
    agent.apply(endpoints_changed(0, [2]))
    agent.kernel.is_busy = True
    with pytest.raises(ApplyError):
        agent.sync()

    assert 1 == len(agent.kernel.written)
    assert ({}, True) == (agent.reconciler.quarantined, agent.reconciler.pending)


def test_report_of_a_sync_that_failed(agent: TableAgent) -> None:
    """Ports that the kernel accepted before a sync failed are in its report: their old flows must go at once."""
    poisoned(agent, 5)
    agent.apply(endpoints_changed(0, [2]))
    agent.kernel.refuses = lambda line: busy_after(agent, 2, line)
    failed = run_now(agent.reconciler.sync())
    agent.kernel.refuses, agent.kernel.is_busy = (lambda _line: False), False
    agent.apply(endpoints_changed(0, [3]))
    changes = [failed.taken[port_name(0)], agent.sync().taken[port_name(0)]]

    assert failed.error
    assert [(1, 2), (2, 3)] == [
        tuple(plan.cluster_endpoints[0].ip[-1] for plan in change if plan) for change in changes
    ]


def busy_after(agent: TableAgent, count: int, line: str) -> bool:
    """Refuse the poison, and after a number of texts everything for the moment."""
    agent.kernel.is_busy = len(agent.kernel.written) >= count
    return f".{POISON}:8080" in line


def test_new_settings_reach_every_port(agent: TableAgent) -> None:
    """With another program every port is compiled again and the difference written."""
    poisoned(agent)
    agent.configure(IptablesSettings(family=Family.IPV4, local_traffic=LocalTraffic(interface="cni0")))
    agent.sync()
    marking = [rules for rules in agent.in_kernel().values() if "! -i cni0" in rules]

    assert 8 == len(marking)


def test_a_failed_repair_that_had_written(agent: TableAgent) -> None:
    """If a repair fails after it has written, flows of all ports may be wrong, although the next sync finds all entries."""
    agent.apply(everything(2))
    agent.sync()
    rules = agent.kernel.tables.chains["nat"]["KUBE-SERVICES"]
    kept = rules.copy()
    rules.clear()
    agent.kernel.is_busy = True
    agent.reconciler.mark_stale()
    with pytest.raises(ApplyError, match="busy"):
        agent.sync()
    rules.extend(kept)
    agent.kernel.is_busy = False
    retried = agent.sync()

    assert 0 == retried.entries_changed
    assert {port_name(0), port_name(1)} == {*retried.repaired}
