"""Converts a generated cluster to plans, rules and tables with the code under test, from scratch."""

from collections.abc import Collection, Coroutine, Mapping
from typing import Any, TypeVar

from pyproxy.agent.reconcile import SyncReport
from pyproxy.backends.interface import Program, desired_entries
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.restore_text import restore_text
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.model.tracker import Tracker
from pyproxy.plan.planner import final_plans
from pyproxy.plan.service_plan import ServicePlan
from tests.fakes.tables import Tables
from tests.properties.strategies import Cluster

R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P", bound=Program[Any, Any])

Plans = Mapping[ServicePortName, ServicePlan]


def tracked(cluster: Cluster) -> Tracker:
    """Return a tracker with the objects of a cluster."""
    tracker = Tracker()
    for change in cluster.changes():
        tracker.apply(change)
    return tracker


def plans_of(cluster: Cluster, family: Family) -> dict[ServicePortName, ServicePlan]:
    """Return the plans of a cluster as they are programmed."""
    return final_plans(tracked(cluster), cluster.node, family)


def filled(program: P, plans: Plans) -> P:
    """Return a program after each plan was put into it once."""
    for name, plan in plans.items():
        program.put(name, plan)
    return program


def wanted(program: Program[K, V]) -> dict[K, V]:
    """Return everything that a program wants."""
    entries = desired_entries(program, {})
    assert entries.keys() == set(program.keys())
    return entries


def ruleset_of(plans: Plans, settings: IptablesSettings) -> dict[RulesetKey, str]:
    """Return the rules that are wanted for plans."""
    return desired_entries(IptablesProgram(settings), plans)


def difference(
    present: Mapping[RulesetKey, str], wanted: Mapping[RulesetKey, str]
) -> dict[RulesetKey, tuple[str | None, str | None]]:
    """Return the change from one ruleset to another, with the unchanged keys."""
    return {key: (present.get(key), wanted.get(key)) for key in dict.fromkeys((*wanted, *present))}


def tables_of(ruleset: Mapping[RulesetKey, str]) -> Tables:
    """Return empty tables into which a ruleset was restored."""
    tables = Tables()
    tables.restore(restore_text(difference({}, ruleset)))
    return tables


def compiled(cluster: Cluster, settings: IptablesSettings) -> Tables:
    """Return the tables of a node in a cluster."""
    return tables_of(ruleset_of(plans_of(cluster, settings.family), settings))


def succeeded(report: SyncReport) -> SyncReport:
    """Return the report of a sync that succeeded.

    Raises:
        ApplyError: why it failed.
    """
    if report.error is not None:
        raise report.error
    return report


def run_now(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that waits for nothing, but may yield to other tasks."""
    try:
        while coroutine.send(None) is None:
            pass
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the coroutine returned
    message = "the coroutine waits for something"
    raise AssertionError(message)


def names_of(plans: Collection[ServicePortName]) -> list[str]:
    """Return names of ports as text, for messages."""
    return sorted(f"{name} {name.protocol.value}" for name in plans)
