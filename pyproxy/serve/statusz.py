"""The status page, for people. It works in any browser, without scripts and without further requests.

All text that is not part of this module is escaped. The agent's loop writes to the `StatusBoard`, and the threads of
requests read it; each value is replaced as a whole, so a request never sees half of one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

from pyproxy import __version__
from pyproxy.model.address import Family
from pyproxy.serve.pages import HttpPage

_MOST_ROWS = 200
"""Maximum number of quarantined Service ports that are listed: a page of megabytes would be useless."""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 1.5rem 0.25rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
.good { color: #1a7f37; }
.bad { color: #cf222e; font-weight: 600; }
@media (prefers-color-scheme: dark) { .good { color: #4ac26b; } .bad { color: #ff8182; } }
p.note { opacity: 0.75; }
"""


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """The status of one family."""

    programmed: Mapping[str, int] = field(default_factory=dict)
    """By kind, number of objects in the kernel."""
    synced_at: float | None = None
    """Time of the last successful sync, in seconds since 1970."""
    error: str = ""
    """Error of the last sync; empty if it succeeded."""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """By name of the Service port, the error with which the kernel rejected it."""


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """Whether objects of one kind arrive from the API server."""

    reason: str
    """Why they do not; empty if they do."""
    since: float
    """Start of this state, in seconds since 1970."""


class StatusBoard:
    """The values of the status page, which the agent sets.

    Args:
        mode: proxy mode.
        node_name: name of the node.
        started_at: start of the agent, in seconds since 1970.
    """

    def __init__(self, mode: str, node_name: str, started_at: float) -> None:
        self.mode = mode
        self.node_name = node_name
        self.started_at = started_at
        self.families: dict[Family, FamilyStatus] = {}
        self.watches: dict[str, WatchStatus] = {}

    def set_watch(self, kind: str, reason: str, now: float) -> None:
        """Record why objects of a kind do not arrive; an empty reason means that they do."""
        known = self.watches.get(kind)
        if known is None or known.reason != reason:
            # The time counts from the loss of the watch, even if the reason has changed since then.
            since = known.since if known and known.reason and reason else now
            self.watches[kind] = WatchStatus(reason, since)


def status_page(board: StatusBoard, now: Callable[[], float]) -> HttpPage:
    """Return the status page."""
    families = {
        str(family): status for family, status in sorted(dict(board.families).items(), key=lambda one: str(one[0]))
    }
    watches = dict(board.watches)
    title = f"pyproxy on {board.node_name}"
    parts = [
        "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        _verdict(families, watches),
        _facts(board, now()),
        "<h2>In the kernel</h2>",
        _programmed(families, now()),
        "<h2>Quarantine</h2>",
        _quarantine(families),
        "<h2>API server</h2>",
        _watches(watches, now()),
        (
            "<p class=note>For people; what a program reads is <a href=/metrics>/metrics</a> and <a href=/configz>/configz</a>."
            " Reload for new values.</p></html>\n"
        ),
    ]
    return HttpPage("\n".join(parts), "text/html; charset=utf-8")


def _verdict(families: Mapping[str, FamilyStatus], watches: Mapping[str, WatchStatus]) -> str:
    """Return a line that lists all problems, or that states that there is none."""
    wrong = []
    if not families or any(status.synced_at is None for status in families.values()):
        wrong.append("rules have not been written yet")
    if any(status.error for status in families.values()):
        wrong.append("the last sync failed")
    if any(status.quarantined for status in families.values()):
        wrong.append("Services are in quarantine")
    if any(watch.reason for watch in watches.values()):
        wrong.append("the API server is lost, the last good state is kept")
    if wrong:
        text = "; ".join(wrong)
        return f"<p class=bad>{escape(text[0].upper() + text[1:])}.</p>"
    return "<p class=good>The kernel has what the cluster wants.</p>"


def _facts(board: StatusBoard, now: float) -> str:
    rows = (
        ("Mode", board.mode),
        ("Version", __version__),
        ("Up", f"{duration_text(now - board.started_at)}, since {_time_text(board.started_at)}"),
    )
    return _table((), rows)


def _programmed(families: Mapping[str, FamilyStatus], now: float) -> str:
    kinds = list(dict.fromkeys(kind for status in families.values() for kind in status.programmed))
    rows = [
        (
            kind.replace("_", " ").replace(" ip", " IP"),
            *(str(status.programmed.get(kind, 0)) for status in families.values()),
        )
        for kind in kinds
    ]
    rows += [
        ("last good sync", *(_ago(status.synced_at, now) for status in families.values())),
        ("last error", *(status.error or "none" for status in families.values())),
    ]
    return _table(("", *families), rows)


def _quarantine(families: Mapping[str, FamilyStatus]) -> str:
    rows = [
        (family, name, why) for family, status in families.items() for name, why in sorted(status.quarantined.items())
    ]
    if not rows:
        return "<p>No Service port is in quarantine.</p>"
    more = len(rows) - _MOST_ROWS
    note = f"<p class=note>and {more} more.</p>" if more > 0 else ""
    return _table(("family", "Service port", "error of the kernel"), rows[:_MOST_ROWS]) + note


def _watches(watches: Mapping[str, WatchStatus], now: float) -> str:
    if not watches:
        return "<p>Objects come from files, or no request was sent yet.</p>"
    rows = [
        (kind, "lost" if watch.reason else "watched", duration_text(now - watch.since), watch.reason)
        for kind, watch in sorted(watches.items())
    ]
    return _table(("kind", "state", "for", "why"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; texts are escaped."""
    cells = "".join(f"<th>{escape(cell)}" for cell in head)
    lines = [f"<tr>{cells}"] if cells else []
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def _ago(at: float | None, now: float) -> str:
    return "never" if at is None else f"{duration_text(now - at)} ago ({_time_text(at)})"


def _time_text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration_text(seconds: float) -> str:
    """Format a duration in its two largest units."""
    whole = max(0, int(seconds))
    units = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next((index for index, (count, _) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2])
