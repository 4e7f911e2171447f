"""What is worth an Event of the API: a log line that says whom it is about.

Whoever logs gives the line an `Event` by ``extra=event_extra(...)``; the line is logged as any other, and where there is an API
server it becomes an Event as well, with the line's text as its note. Nobody who logs depends on that.
"""

from dataclasses import dataclass

from pyproxy.model.names import NamespacedName


@dataclass(frozen=True, slots=True)
class Event:
    """What an Event says beside its note."""

    kind: str
    """``Node`` or ``Service``: of the object that it is about."""
    name: NamespacedName
    reason: str
    """Why, in UpperCamelCase: what people filter by."""
    action: str
    """What was done or tried, in UpperCamelCase."""


def event_extra(kind: str, name: NamespacedName, reason: str, action: str) -> dict[str, Event]:
    """Return the ``extra`` of a log line that is to become an Event."""
    return {"event": Event(kind, name, reason, action)}
