"""What the loop publishes for the status page: watches, problems of objects, and the last changes."""

from __future__ import annotations

from pyproxy.agent.reconcile import SyncReport
from pyproxy.agent.status_board import StatusBoard, WatchHealth
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.address import Family
from tests.fakes.node_agent import TableAgent
from tests.unit.agent.objects import endpoints_changed, everything, port_name

STARTED = 1_700_000_000.0


def board() -> StatusBoard:
    """Return the board of a new agent."""
    return StatusBoard("iptables", "node1", STARTED)


def test_the_loss_of_a_watch_has_one_beginning() -> None:
    """The time of a loss counts from its beginning, whatever the reason is; so does that of a working watch."""
    made, seen = board(), []
    for now, reason in enumerate(["refused", "still refused", "", ""]):
        made.set_watch("Service", reason, now)
        seen.append(made.watches["Service"])

    lost = [WatchHealth("refused", 0, None), WatchHealth("still refused", 0, None)]
    assert [*lost, WatchHealth("", 2, 2), WatchHealth("", 2, 3)] == seen


def test_a_change_is_a_sign_of_life() -> None:
    """A change of an object shows that its watch works; the time stays when the watch is lost."""
    made = board()
    made.heard("Service", 1)
    assert {} == made.watches
    made.set_watch("Service", "", 1)
    made.heard("Service", 5)
    made.set_watch("Service", "refused", 7)

    assert WatchHealth("refused", 7, 5) == made.watches["Service"]


def test_problems_come_and_go() -> None:
    """A problem is there until it is gone; an unknown one that is gone is ignored."""
    made = board()
    made.change_problems(["a", "b"], [])
    made.change_problems(["c"], ["a", "unknown"])

    assert ["b", "c"] == list(made.invalid)


def changes(agent: TableAgent, made: StatusBoard, *, is_first: bool = False) -> list[tuple[str, str]]:
    """Sync an agent and return the changes on the board."""
    made.add_changes(Family.IPV4, agent.sync(), STARTED, is_first=is_first)
    return [(each.subject, each.text) for each in made.changes]


def test_changes_are_described() -> None:
    """The first sync is one change; then each port has one with its endpoints, of which only some are named."""
    agent, made = TableAgent(IptablesSettings(family=Family.IPV4)), board()
    agent.apply(everything(30))
    [(subject, text)] = changes(agent, made, is_first=True)
    assert ("first sync", "30 Service ports, ") == (subject, text[:18])

    agent.apply(endpoints_changed(1, [2]))
    assert ("default/web-1 (TCP)", "endpoints +10.128.1.2:8080 -10.128.1.1:8080") == changes(agent, made)[0]
    agent.apply(endpoints_changed(1, range(1, 9)))
    assert "endpoints +10.128.1.1:8080 +10.128.1.3:8080 +10.128.1.4:8080 +(4 more)" == changes(agent, made)[0][1]
    agent.apply(endpoints_changed(1, range(1, 9)))
    assert 3 == len(changes(agent, made))

    agent.apply(everything(29))
    assert {"removed"} == {text for subject, text in changes(agent, made) if subject == "default/web-29 (TCP)"}
    agent.apply(everything(30))
    assert {"removed", "added, 1 endpoint"} == {
        text for subject, text in changes(agent, made) if subject == "default/web-29 (TCP)"
    }


def test_a_large_change_costs_no_more_than_the_list() -> None:
    """Of a change of thousands of ports only as many are described as are shown; a repair is one change."""
    made, described = board(), []

    class Plan:
        cluster_endpoints = local_endpoints = ()

        def __init__(self, number: int) -> None:
            self.number = number

        def __getattribute__(self, name: str) -> object:
            if name == "cluster_endpoints":
                described.append(object.__getattribute__(self, "number"))
            return object.__getattribute__(self, name)

    report = SyncReport(taken={port_name(number): (None, Plan(number)) for number in range(5000)})  # type: ignore[misc]
    made.add_changes(Family.IPV4, report, STARTED, is_first=False)
    made.add_changes(Family.IPV4, SyncReport(entries_changed=3, is_full=True), STARTED, is_first=False)

    assert (20, 20) == (len(set(described)), len(made.changes))
    assert ("full sync", "3 entries written") == made.changes[0][2:]
    assert "default/web-4999 (TCP)" == made.changes[1].subject
