"""Log lines that become Events (``events.k8s.io/v1``) of Nodes and Services, for ``kubectl describe`` and its like.

Events are sent as best effort: the queue has a limited length, the rate is limited, and an Event is dropped after some
retries. Nothing waits for an Event or fails because of one. A refusal by the API server is logged once. The Events have
the same fields as kube-proxy's: regarding, reason, type and note.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec

from pyproxy.decode import wire
from pyproxy.decode.nesting import decode_json
from pyproxy.errors import SourceError
from pyproxy.kubeapi.transport import OVERLOADED, HttpStatusError, Transport
from pyproxy.model.event import Event

logger = logging.getLogger(__name__)

CONTROLLER = "pyproxy"
MOST_WAITING = 50
"""Length of the queue; later Events are dropped, so that the first cause is reported."""
BURST = 10
SECONDS_PER_EVENT = 6.0
"""Average interval after a burst."""
_RETRY_SECONDS = (2.0, 5.0, 10.0, 30.0, 60.0, 60.0, 60.0)
# Limit of the API server (`pkg/apis/core/validation/events.go`, `NoteLengthLimit`).
_LONGEST_NOTE_BYTES = 1024
# The same file, `ReportingInstanceLengthLimit`.
_LONGEST_INSTANCE = 128
# Part of the object's name in the name of its Event, which may have 253 characters with the random suffix.
_LONGEST_NAME = 200
# Namespace of Events about objects without a namespace.
_NODES_NAMESPACE = "default"
# Statuses that may be temporary.
_PASSING = OVERLOADED | {HTTPStatus.UNAUTHORIZED}
_LIST = msgspec.json.Decoder(wire.ObjectList[wire.Header])


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An Event in the queue."""

    event: Event
    text: str
    is_warning: bool
    at: datetime


class EventHandler(logging.Handler):
    """Puts log records with an Event into the queue, from any thread, without blocking; drops Events silently if it is full.

    Args:
        loop: event loop in which Events are sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.INFO)
        self._loop = loop
        self._waiting: deque[PendingEvent] = deque()
        self._arrived = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Put the Event of a log record into the queue."""
        event = getattr(record, "event", None)
        if not isinstance(event, Event) or self._loop.is_closed():
            return
        at = datetime.fromtimestamp(record.created, UTC)
        note = PendingEvent(event, record.getMessage(), record.levelno >= logging.WARNING, at)

        def put() -> None:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(note)
                self._arrived.set()

        # An asyncio.Event belongs to its loop, and a worker thread may be the one that logs.
        self._loop.call_soon_threadsafe(put)

    async def next(self) -> PendingEvent:
        """Wait for an Event and return the oldest one."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()


@dataclass(slots=True)
class EventSender:
    """Sends the Events of a handler."""

    handler: EventHandler
    node_name: str
    retry_seconds: tuple[float, ...] = _RETRY_SECONDS
    """Pauses between attempts."""
    seconds_per_event: float = SECONDS_PER_EVENT
    _budget: float = field(default=BURST, init=False)
    _budget_at: float = field(default=0.0, init=False)
    # Statuses that were logged.
    _said: set[int] = field(default_factory=set, init=False)

    async def run(self, transport: Transport) -> None:
        """Send until cancelled."""
        while True:
            note = await self.handler.next()
            # A token bucket: each Event costs one token. A negative budget is paid back by waiting.
            now = asyncio.get_running_loop().time()
            earned = (now - self._budget_at) / self.seconds_per_event if self._budget_at else 0.0
            self._budget, self._budget_at = min(BURST, self._budget + earned) - 1, now
            if self._budget < 0:
                await asyncio.sleep(-self._budget * self.seconds_per_event)
            await self._send(transport, note)

    async def _send(self, transport: Transport, note: PendingEvent) -> None:
        rule = 'it needs a role with apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create"]'
        for pause in (*self.retry_seconds, None):
            try:
                body = event_object(note, self.node_name, await self._uid(transport, note.event))
                path = f"/apis/events.k8s.io/v1/namespaces/{quote(body['metadata']['namespace'])}/events"
                await transport.post(path, msgspec.json.encode(body))
            except SourceError as error:
                if isinstance(error, HttpStatusError) and error.status not in _PASSING:
                    if error.status not in self._said:
                        wanted = f"; {rule}" if error.status == HTTPStatus.FORBIDDEN else ""
                        self._said.add(error.status)
                        logger.warning("an Event was refused, and is not sent again: %s%s", error, wanted)
                    return
                logger.debug("event %s of %s: %s", note.event.reason, note.event.name, error)
            else:
                return
            if pause is not None:
                await asyncio.sleep(pause)

    async def _uid(self, transport: Transport, event: Event) -> str:
        # `kubectl describe` selects Events by name, kind and uid of the object. Events of a Node have its name for the uid, as
        # those of kubelet and kube-proxy do.
        if event.kind == "Node":
            return event.name.name
        path = f"/api/v1/namespaces/{quote(event.name.namespace)}/services"
        answer = await transport.body(path, {"fieldSelector": f"metadata.name={event.name.name}"})
        try:
            found = decode_json(_LIST, answer).items or []
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
        return next((item.metadata.uid or "" for item in found if item.metadata), "")


def event_object(note: PendingEvent, node_name: str, uid: str) -> dict[str, Any]:
    """Return an Event as an API object."""
    event = note.event
    regarding: Mapping[str, str] = {
        "apiVersion": "v1",
        "kind": event.kind,
        "name": event.name.name,
        "namespace": event.name.namespace,
        "uid": uid,
    }
    # For events.k8s.io/v1 the API server requires eventTime, action, reason, reportingController and reportingInstance, and
    # that the Event is in the namespace of its object (`pkg/apis/core/validation/events.go`).
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{event.name.name[:_LONGEST_NAME]}.{secrets.token_hex(8)}",
            "namespace": event.name.namespace or _NODES_NAMESPACE,
        },
        # A MicroTime: RFC 3339 with exactly six digits, which isoformat would omit for a full second.
        "eventTime": note.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "type": "Warning" if note.is_warning else "Normal",
        "reason": event.reason,
        "action": event.action,
        "note": note.text.encode()[:_LONGEST_NOTE_BYTES].decode(errors="ignore"),
        "regarding": {name: value for name, value in regarding.items() if value},
        "reportingController": CONTROLLER,
        "reportingInstance": f"{CONTROLLER}-{node_name}"[:_LONGEST_INSTANCE],
    }
