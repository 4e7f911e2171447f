"""The status of an agent as plain text, for ``curl`` and other clients that accept no HTML."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from pyproxy.serve.agent_status import AgentStatus, DoctorStatus, FamilyStatus, ServicePage, WatchStatus

# Columns are not padded beyond this width, so that one long cell does not make all lines long.
_WIDEST = 60
VERDICTS = {"ok": "OK", "warn": "WARNING", "fail": "FAILURE"}


def time_text(at: float) -> str:
    """Format a time in seconds since 1970 as RFC 3339."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration_text(seconds: float) -> str:
    """Format a duration in its two largest units."""
    whole = max(0, int(seconds))
    units = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next((index for index, (count, _) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2])


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with a noun, such as ``2 Services``; the plural is needed if it has more than an ``s``."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def headlines(status: AgentStatus) -> list[str]:
    """Return a sentence for each problem, or one that says that there is none."""
    if not status.problems:
        return ["The kernel has what the cluster wants."]
    return [f"{text[:1].upper()}{text[1:]}." for text in status.problems]


def facts(status: AgentStatus) -> Iterator[tuple[str, str]]:
    """Yield name and value of what describes the node and the agent."""
    node = status.node
    yield "Mode", f"{status.mode}, iptables-{status.variant}" if status.variant else status.mode
    yield "Node addresses", ", ".join(node.addresses) or "none"
    yield "Pod CIDRs", ", ".join(node.pod_cidrs) or "none"
    if node.cluster_cidrs:
        yield "Cluster CIDRs", ", ".join(node.cluster_cidrs)
    if node.zone:
        yield "Zone", node.zone
    yield "Version", status.version
    yield "Up", f"{duration_text(status.uptime_seconds)}, since {status.started}"
    if (earlier := status.earlier_rules) is not None:
        known = earlier.error or (
            f"rules of {counted(earlier.services, 'Service')} ({counted(earlier.service_ports, 'port')}) of an earlier run"
        )
        yield "In the kernel", known
        if earlier.services and earlier.current is not None and earlier.current_seconds is not None:
            yield "Last up to date", f"{duration_text(earlier.current_seconds)} ago ({earlier.current})"


def family_rows(families: Sequence[FamilyStatus]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table with a column for each family."""
    for kind in dict.fromkeys(kind for family in families for kind in family.programmed):
        name = kind.replace("_", " ").replace(" ip", " IP")
        yield (name, *(str(family.programmed.get(kind, 0)) for family in families))
    yield ("quarantined", *(str(family.quarantined_count) for family in families))
    synced = (
        "never" if each.last_sync_seconds is None else f"{duration_text(each.last_sync_seconds)} ago ({each.last_sync})"
        for each in families
    )
    yield ("last good sync", *synced)
    yield ("last error", *(family.error or "none" for family in families))


def watch_row(watch: WatchStatus) -> tuple[str, ...]:
    """Return the cells of a watch."""
    return (
        watch.kind,
        f"{watch.state} for {duration_text(watch.seconds)}",
        "never" if watch.heard_seconds is None else f"{duration_text(watch.heard_seconds)} ago",
        watch.reason or "-",
    )


def doctor_note(doctor: DoctorStatus) -> str:
    """Return when the checks ran, and how many found nothing."""
    if doctor.error:
        return doctor.error
    if doctor.seconds is None:
        return "The checks are running; reload for the result."
    return f"{counted(doctor.ok_count, 'check')} found nothing, {duration_text(doctor.seconds)} ago."


def services_note(page: ServicePage) -> str:
    """Return how many Services there are, and which of them are listed."""
    if page.error:
        return page.error
    what = f"{page.matches} of {page.total} Services match" if page.query else counted(page.total, "Service")
    return f"{what}; page {page.page} of {page.pages}" if page.pages > 1 else what


NO_WATCHES = "Objects come from files, or no request was sent yet."
WATCH_COLUMNS = ("kind", "state", "last heard", "reason")
QUARANTINE_COLUMNS = ("family", "Service port", "error of the kernel")
CHANGE_COLUMNS = ("time", "family", "Service port", "change")
FINDING_COLUMNS = ("severity", "finding", "evidence", "fix")
SERVICE_COLUMNS = ("Service", "frontend", "type", "policy", "endpoints (local)", "affinity", "state")


def quarantine_rows(status: AgentStatus) -> list[tuple[str, ...]]:
    """Return the quarantined Service ports."""
    return [(family.family, each.service_port, each.error) for family in status.families for each in family.quarantined]


def status_text(status: AgentStatus) -> str:
    """Return the status as text."""
    services = status.services
    sections: list[tuple[str, Iterable[Sequence[str]]]] = [
        ("Rules", [("", *(family.family for family in status.families)), *family_rows(status.families)]),
        ("Quarantine", _table(QUARANTINE_COLUMNS, quarantine_rows(status), "none")),
        ("API server", _table(WATCH_COLUMNS, map(watch_row, status.watches), NO_WATCHES)),
        (f"Problems of input objects: {status.invalid_count}", [(text,) for text in status.invalid]),
        (
            f"Doctor: {doctor_note(status.doctor)}",
            [
                (each.severity.upper(), each.text, each.evidence, each.fix and f"fix: {each.fix}")
                for each in status.doctor.findings
            ],
        ),
        (
            f"Services: {services_note(services)}",
            _table(
                SERVICE_COLUMNS,
                (
                    (each.service, each.frontend, each.type, each.policy, each.endpoints, each.affinity, each.state)
                    for each in services.items
                ),
                "none",
            ),
        ),
        (
            "Last changes",
            [(f"{duration_text(each.seconds)} ago", each.family, each.subject, each.text) for each in status.changes],
        ),
    ]
    lines = [
        f"pyproxy on {status.node.name}: {VERDICTS[status.verdict]}",
        *headlines(status),
        "",
        *_aligned(facts(status)),
    ]
    for title, rows in sections:
        lines += ["", title, *(f"  {line}" for line in _aligned(rows))]
    if services.pages > 1:
        lines += ["", "/statusz?service=TEXT&page=NUMBER lists other Services: by name, namespace or address."]
    # Text of objects and of the kernel cannot add lines or move the cursor of a terminal.
    return "".join("".join(each if each.isprintable() else "?" for each in line) + "\n" for line in lines)


def _table(head: tuple[str, ...], rows: Iterable[Sequence[str]], none: str) -> list[Sequence[str]]:
    found = list(rows)
    return [tuple(map(str.upper, head)), *found] if found else [(none,)]


def _aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    lines = list(rows)
    widths = [
        min(_WIDEST, max(len(row[column]) for row in lines if column < len(row)))
        for column in range(max(map(len, lines), default=0))
    ]
    for row in lines:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)).rstrip()
