"""Rows of the table of Services as text for people, in ``pyproxy services`` and on the status page."""

from pyproxy.decode.fields import shown
from pyproxy.model.address import parse_ip, socket_text
from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import ServiceValues, SyncState

COLUMNS = ("SERVICE", "FRONTEND", "TYPE", "POLICY", "ENDPOINTS (local)", "AFFINITY")
"""The headings of `cells`."""
_WORDS = {
    State.OK: "ok",
    State.REJECT: "REJECT",
    State.DROP: "DROP",
    State.NO_RULES: "no rules",
    State.INVALID: "invalid",
}


def cells(service: ServiceValues) -> tuple[str, str, str, str, str, str]:
    """Return the cells of a row, without its state."""
    name = f"{shown(service.namespace)}/{shown(service.name)}"
    # A Service without rules, such as a headless one, has a row for its name and reason only.
    if service.port_name is None:
        return name, "-", "-", "-", "-", "-"
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


def state_text(service: ServiceValues) -> str:
    """Return what happens to new connections, and why."""
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
