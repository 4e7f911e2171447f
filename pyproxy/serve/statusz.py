"""The status of an agent as a page for a browser. It works without scripts and without further requests.

All text that is not part of this module is escaped.
"""

from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import urlencode

from pyproxy.serve.agent_status import AgentStatus, ServicePage
from pyproxy.serve.status_text import (
    CHANGE_COLUMNS,
    FINDING_COLUMNS,
    NO_WATCHES,
    QUARANTINE_COLUMNS,
    SERVICE_COLUMNS,
    VERDICTS,
    WATCH_COLUMNS,
    doctor_note,
    duration_text,
    facts,
    family_rows,
    headlines,
    quarantine_rows,
    services_note,
    watch_row,
)

# All tables have the same first column. In a narrow window each row of a list becomes a block with the headings beside its
# cells.
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --warn: #9a6700; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --warn: #d4a72c; --bad: #ff8182; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 78rem; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.25rem 0 0.5rem; }
h2 small { font-size: 0.85rem; font-weight: normal; opacity: 0.75; margin-left: 0.5rem; }
.banner { border: 1px solid; border-left-width: 0.5rem; border-radius: 0.4rem; padding: 0.6rem 1rem; margin: 0 0 1.5rem; }
.ok { color: var(--good); } .warn, .stale { color: var(--warn); } .fail, .lost { color: var(--bad); }
.banner p { color: CanvasText; margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 1.25rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; font-size: 0.85rem; white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 5rem; }
td:first-child, th:first-child { width: 13rem; min-width: 13rem; }
td:last-child, th:last-child { padding-right: 0; }
p { margin: 0.5rem 0; }
.note { opacity: 0.75; }
form { display: flex; gap: 0.5rem; margin: 0.5rem 0 0.75rem; max-width: 36rem; }
input { flex: 1; min-width: 0; } input, button { font: inherit; padding: 0.25rem 0.6rem; }
nav a { margin-right: 1rem; }
@media (max-width: 48rem) {
  body { padding: 1rem 1rem 3rem; }
  td:first-child, th:first-child { width: 9rem; min-width: 9rem; } td { min-width: 0; }
  .list, .list tbody, .list tr, .list td { display: block; width: auto; }
  .list .head { display: none; }
  .list tr { border-bottom: 1px solid var(--line); padding: 0.35rem 0; }
  .list td { border: 0; padding: 0.1rem 0; min-width: 0; }
  .list td[data-label] { display: grid; grid-template-columns: 9rem 1fr; gap: 0.75rem; }
  .list td[data-label]::before { content: attr(data-label); color: CanvasText; opacity: 0.7; }
  .list td:empty, .list td[data-label]:empty { display: none; }
  .list td:first-child:not([class]) { font-weight: 600; }
  .list td:first-child:last-child { font-weight: inherit; }
}
"""
Cell = str | tuple[str, str]
"""A text, or a class of the style and a text."""


def status_page(status: AgentStatus) -> str:
    """Return the page."""
    title = f"pyproxy on {status.node.name}"
    families, doctor = status.families, status.doctor
    findings = [((each.severity, each.severity), each.text, each.evidence, each.fix) for each in doctor.findings]
    changes = [(f"{duration_text(each.seconds)} ago", each.family, each.subject, each.text) for each in status.changes]
    watches: list[tuple[Cell, ...]] = []
    for watch in status.watches:
        kind, state, heard, reason = watch_row(watch)
        watches.append((kind, (watch.state, state), heard, reason))
    parts = [
        "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        (
            f"<div class='banner {status.verdict}' role=status><b>{VERDICTS[status.verdict]}</b>"
            + "".join(f"<p>{escape(text)}" for text in headlines(status))
            + "</div>"
        ),
        table((), facts(status)),
        "<h2>Rules</h2>",
        table(("", *(family.family for family in families)), family_rows(families)),
    ]
    if quarantined := quarantine_rows(status):
        parts.append(section("Quarantine", QUARANTINE_COLUMNS, quarantined, ""))
    parts.append(section("API server", WATCH_COLUMNS, watches, NO_WATCHES))
    if status.invalid_count:
        parts.append(
            section(
                "Problems of input objects", (), [(text,) for text in status.invalid], "", str(status.invalid_count)
            )
        )
    parts += [
        section("Doctor", FINDING_COLUMNS, findings, "", doctor_note(doctor)),
        _services(status.services),
        section("Last changes", CHANGE_COLUMNS, changes, "No rule has changed since the start."),
        (
            "<p class=note>The same for programs: <code>curl -H 'Accept: application/json'</code>."
            " All pages: <a href=/>/</a>. Reload for new values.</p></html>\n"
        ),
    ]
    return "\n".join(parts)


def section(title: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], none: str, note: str = "") -> str:
    """Return a heading with a note, and a table, or a text if it has no rows."""
    found = list(rows)
    small = f"<small>{escape(note)}</small>" if note else ""
    body = table(head, found, "list") if found else f"<p>{escape(none)}</p>" if none else ""
    return f"<h2>{escape(title)}{small}</h2>{body}"


def _services(page: ServicePage) -> str:
    rows = [
        (
            *(each.service, each.frontend, each.type, each.policy, each.endpoints, each.affinity),
            ("warn" if each.is_problem else "ok", each.state),
        )
        for each in page.items
    ]
    links = [
        f"<a href='?{escape(urlencode({'service': page.query, 'page': number}))}#services'>{text}</a>"
        for number, text in ((page.page - 1, "previous"), (page.page + 1, "next"))
        if 1 <= number <= page.pages
    ]
    return (
        f"<h2 id=services>Services<small>{escape(services_note(page))}</small></h2>"
        "<form action='#services'><input type=search name=service aria-label='Search Services' placeholder='namespace, name or address'"
        f" value='{escape(page.query)}'><button>Search</button></form>"
        + (table(SERVICE_COLUMNS, rows, "list") if rows else "")
        + (f"<nav><p>{' '.join(links)}</p></nav>" if links else "")
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], style: str = "") -> str:
    """Return a table; texts are escaped."""
    lines = ["<tr class=head>" + "".join(f"<th>{escape(cell)}" for cell in head)] if head else []
    for row in rows:
        cells = ["<tr>"]
        for number, cell in enumerate(row):
            kind, text = cell if isinstance(cell, tuple) else ("", cell)
            label = f" data-label='{escape(head[number])}'" if number < len(head) and (number or kind) else ""
            cells.append(f"<td{f' class={kind}' if kind else ''}{label}>{escape(text)}")
        lines.append("".join(cells))
    return f"<table{f' class={style}' if style else ''}>" + "\n".join(lines) + "</table>"
