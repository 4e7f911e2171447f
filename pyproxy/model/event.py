"""Log lines that also become Events of the API.

A line that is logged with ``extra=event_extra(...)`` is written to the log like any other. If objects come from an API
server, it also becomes an Event whose note is the text of the line.
"""

from dataclasses import dataclass

from pyproxy.model.names import NamespacedName


@dataclass(frozen=True, slots=True)
class Event:
    """The fields of an Event besides its note."""

    kind: str
    """Kind of the object that the Event is about: ``Node`` or ``Service``."""
    name: NamespacedName
    reason: str
    """In UpperCamelCase; users filter by it."""
    action: str
    """The operation that was done or attempted, in UpperCamelCase."""


def event_extra(kind: str, name: NamespacedName, reason: str, action: str) -> dict[str, Event]:
    """Return the ``extra`` for a log line that becomes an Event."""
    return {"event": Event(kind, name, reason, action)}
