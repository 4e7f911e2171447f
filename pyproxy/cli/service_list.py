"""The table of ``services`` for people."""

from collections.abc import Iterable

from rich.text import Text

from pyproxy.decode.fields import shown
from pyproxy.model.address import parse_ip, socket_text
from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import ServiceValues, SyncState

_COLUMNS = ("SERVICE", "FRONTEND", "TYPE", "POLICY", "ENDPOINTS (local)", "AFFINITY")
# Endpoints that a row of the wide table lists.
_MOST_ENDPOINTS = 5
_STYLES = {State.OK: "green", State.REJECT: "red", State.DROP: "red", State.NO_RULES: "yellow", State.INVALID: "red"}
_WORDS = {
    State.OK: "ok",
    State.REJECT: "REJECT",
    State.DROP: "DROP",
    State.NO_RULES: "no rules",
    State.INVALID: "invalid",
}


def service_table(services: Iterable[ServiceValues], *, wide: bool) -> tuple[tuple[str, ...], list[list[str | Text]]]:
    """Return the headings of a table, and its rows."""
    columns = (*_COLUMNS, *(("PORT", "USABLE ENDPOINTS") if wide else ()), "STATE", *(("FIX",) if wide else ()))
    lines: list[list[str | Text]] = []
    for service in services:
        line: list[str | Text] = [*_cells(service)]
        if wide:
            addresses = service.endpoints.addresses
            more = len(addresses) - _MOST_ENDPOINTS
            listed = ",".join([*addresses[:_MOST_ENDPOINTS], *([f"and {more} more"] if more > 0 else [])])
            line += [service.port_name or "-", listed or "-"]
        style = "yellow" if service.sync not in {None, SyncState.PROGRAMMED} else _STYLES[service.state]
        line.append(Text(_state_text(service), style=style))
        if wide:
            line.append("; ".join(reason.fix for reason in service.reasons) or "-")
        lines.append(line)
    return columns, lines


def _cells(service: ServiceValues) -> tuple[str, ...]:
    name = f"{shown(service.namespace)}/{shown(service.name)}"
    # A Service without rules, such as a headless one, has a row for its name and reason only.
    if service.port_name is None:
        return (name, *["-"] * (len(_COLUMNS) - 1))
    frontend, type_, endpoints = "-", "-", service.endpoints
    if service.frontend is not None:
        type_ = service.frontend.type.value
        address = socket_text(parse_ip(service.frontend.address), service.frontend.port)
        frontend = f"{address}/{service.frontend.protocol}"
    return (
        name,
        frontend,
        type_,
        service.traffic_policy.lower() if service.traffic_policy else "-",
        f"{endpoints.usable}/{endpoints.total} ({endpoints.local})",
        "-" if service.affinity_seconds is None else f"{service.affinity_seconds}s",
    )


def _state_text(service: ServiceValues) -> str:
    # What the kernel has comes before what it should have: a quarantined port works or fails by its last good rules.
    text = _WORDS[service.state]
    if service.reasons:
        text += ", but " if service.state is State.OK else ": "
        text += "; ".join(reason.text for reason in service.reasons)
    elif service.source_ranges:
        text = f"{text}, only from {', '.join(service.source_ranges)}"
    match service.sync:
        case SyncState.QUARANTINED:
            return f"quarantined, keeps its last good rules: {' '.join(service.sync_error.split())}"
        case SyncState.PENDING | SyncState.STALE:
            return f"{service.sync.value}; will be {text}"
        case _:
            return text
