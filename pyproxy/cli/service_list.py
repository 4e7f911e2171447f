"""The table of ``services`` for people."""

from collections.abc import Iterable

from rich.text import Text

from pyproxy.agent.service_text import COLUMNS, cells, state_text
from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import ServiceValues, SyncState

# Endpoints that a row of the wide table lists.
_MOST_ENDPOINTS = 5
_STYLES = {State.OK: "green", State.REJECT: "red", State.DROP: "red", State.NO_RULES: "yellow", State.INVALID: "red"}


def service_table(services: Iterable[ServiceValues], *, wide: bool) -> tuple[tuple[str, ...], list[list[str | Text]]]:
    """Return the headings of a table, and its rows."""
    columns = (*COLUMNS, *(("PORT", "USABLE ENDPOINTS") if wide else ()), "STATE", *(("FIX",) if wide else ()))
    lines: list[list[str | Text]] = []
    for service in services:
        line: list[str | Text] = [*cells(service)]
        if wide:
            addresses = service.endpoints.addresses
            more = len(addresses) - _MOST_ENDPOINTS
            listed = ",".join([*addresses[:_MOST_ENDPOINTS], *([f"and {more} more"] if more > 0 else [])])
            line += [service.port_name or "-", listed or "-"]
        style = "yellow" if service.sync not in {None, SyncState.PROGRAMMED} else _STYLES[service.state]
        line.append(Text(state_text(service), style=style))
        if wide:
            line.append("; ".join(reason.fix for reason in service.reasons) or "-")
        lines.append(line)
    return columns, lines
