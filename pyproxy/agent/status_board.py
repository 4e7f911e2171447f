"""What the agent's loop publishes for the status page. The threads of requests read it.

Each value is replaced as a whole, so that a request never sees half of one. Recording an event costs the same on a node
with many Services.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pyproxy.agent.reconcile import SyncReport
from pyproxy.model.address import Family
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.plan.service_plan import ServicePlan
from pyproxy.plan.service_values import ServiceList
from pyproxy.serve.status_text import counted

_MOST_CHANGES = 20
# Endpoints of a change that are listed of those added, and of those removed.
_SHOWN_ENDPOINTS = 3


@dataclass(frozen=True, slots=True)
class FamilyState:
    """The status of one family; times are in seconds since 1970."""

    programmed: Mapping[str, int] = field(default_factory=dict)
    """By kind, number of objects in the kernel."""
    synced_at: float | None = None
    """Time of the last successful sync."""
    error: str = ""
    """Error of the last sync; empty if it succeeded."""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """By name of the Service port, the error with which the kernel rejected it."""


class WatchHealth(NamedTuple):
    """Whether objects of one kind arrive from the API server; times are in seconds since 1970."""

    reason: str
    """Why they do not; empty if they do."""
    since: float
    """Start of this state."""
    heard_at: float | None
    """Time of the last change, or of the last time that a watch was opened; None if none was."""


class RuleChange(NamedTuple):
    """A change of rules, for people."""

    at: float
    family: Family
    subject: str
    text: str


class ServiceSource(Protocol):
    """Lists the Services of the agent."""

    def find(self, query: str) -> tuple[int, list[NamespacedName]]:
        """Return the number of all Services, and the names of those that match, sorted; called in any thread."""
        ...

    async def services(self, names: Iterable[NamespacedName]) -> ServiceList:
        """Return these Services; called in the agent's loop."""
        ...


class StatusBoard:
    """The values of the status page, which the agent sets.

    Args:
        mode: proxy mode.
        node_name: name of the node.
        started_at: start of the agent, in seconds since 1970.
        variant: variant of iptables, if the mode uses iptables.
    """

    def __init__(self, mode: str, node_name: str, started_at: float, variant: str = "") -> None:
        self.mode = mode
        self.variant = variant
        self.node = Node(name=node_name)
        self.started_at = started_at
        self.families: dict[Family, FamilyState] = {}
        self.watches: dict[str, WatchHealth] = {}
        self.invalid: dict[str, None] = {}
        """What is wrong with objects, in the order in which it was found."""
        self.changes: tuple[RuleChange, ...] = ()
        """The last ones, the newest first."""
        self.current_at: float | None = None
        """When the rules of an earlier run were last known to be up to date."""
        self.services: ServiceSource | None = None
        """None until the agent works."""

    def set_watch(self, kind: str, reason: str, now: float) -> None:
        """Record why objects of a kind do not arrive; an empty reason means that a watch was opened."""
        known = self.watches.get(kind)
        # The time counts from the loss of the watch, even if the reason has changed since then.
        is_same = known is not None and bool(known.reason) == bool(reason)
        heard_at = known.heard_at if known and reason else None if reason else now
        self.watches[kind] = WatchHealth(reason, known.since if known and is_same else now, heard_at)

    def heard(self, kind: str, now: float) -> None:
        """Record that a change of an object of a kind has arrived."""
        if (known := self.watches.get(kind)) is not None:
            self.watches[kind] = known._replace(heard_at=now)

    def change_problems(self, appeared: Iterable[str], gone: Iterable[str]) -> None:
        """Record what is wrong with objects, and what is not wrong any more."""
        for text in gone:
            self.invalid.pop(text, None)
        self.invalid |= dict.fromkeys(appeared)

    def add_changes(self, family: Family, report: SyncReport, now: float, *, is_first: bool) -> None:
        """Record what a sync has changed. Only the last changes are described, however many there were."""
        written = f"{counted(report.entries_changed, 'entry', 'entries')} written"
        news: list[RuleChange] = []
        if is_first:
            text = f"{counted(len(report.taken), 'Service port')}, {written}"
            news = [RuleChange(now, family, "first sync", text)]
        else:
            for name, (before, after) in reversed(list(report.taken.items())[-_MOST_CHANGES:]):
                old, new, parts = _endpoints(before), _endpoints(after), list[str]()
                for sign, these, others in (("+", new, old), ("-", old, new)):
                    changed = [each for each in these if each not in others]
                    parts += [f"{sign}{each}" for each in changed[:_SHOWN_ENDPOINTS]]
                    if len(changed) > _SHOWN_ENDPOINTS:
                        parts.append(f"{sign}({len(changed) - _SHOWN_ENDPOINTS} more)")
                text = f"endpoints {' '.join(parts)}" if parts else "changed, same endpoints"
                if after is None:
                    text = "removed"
                elif before is None:
                    text = f"added, {counted(len(new), 'endpoint')}"
                news.append(RuleChange(now, family, f"{name} ({name.protocol.name})", text))
            if not news and report.entries_changed:
                news = [RuleChange(now, family, "full sync", written)]
        self.changes = (*news, *self.changes)[:_MOST_CHANGES]


def _endpoints(plan: ServicePlan | None) -> dict[Endpoint, None]:
    return {} if plan is None else dict.fromkeys((*plan.cluster_endpoints, *plan.local_endpoints))
