"""The Kubernetes API as a source: lists and watches become changes.

Changes are passed on at once; the tracker keeps the objects. While the server is unavailable nothing is passed on, so
that the last good state stays in effect; a list then shows which objects were deleted. The loss of the server, each
reason, and its return are logged once, regardless of the number of retries.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from pyproxy.decode import wire
from pyproxy.decode.nesting import decode_json
from pyproxy.errors import SourceError
from pyproxy.kubeapi.events import EventHandler, EventSender
from pyproxy.kubeapi.reflector import ListPage, Reflector, Stream, Watch, delay_seconds, watch_seconds
from pyproxy.kubeapi.resource import Item, Resource, endpoint_slices, node, service_cidrs, services
from pyproxy.kubeapi.transport import OVERLOADED, FindAccess, HttpStatusError, Tell, Timing, Transport, UnreachableError
from pyproxy.model.change import Kind, Object, ObjectChange, ProblemsChanged, Put, Removed, Replaced, Unserved
from pyproxy.model.names import NamespacedName
from pyproxy.model.unserved import UnservedService

__all__ = ["ApiSource", "EventHandler", "EventSender", "Store", "Watched"]

logger = logging.getLogger(__name__)

Random = Callable[[], float]
"""Returns a number in [0, 1)."""

_EVENT = msgspec.json.Decoder(wire.WatchEvent)
_BOOKMARK = msgspec.json.Decoder(wire.Bookmark)
_STATUS = msgspec.json.Decoder(wire.Status)
# Statuses of servers that cannot stream a list: without the feature gate WatchList they forbid `sendInitialEvents`, and
# older ones `resourceVersionMatch` in a watch (apimachinery, `meta/internalversion/validation`).
_INVALID = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})
_ABSENT = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN})
# About a minute: during its start a server may not have all resources and roles yet.
_TRIES_BEFORE_ABSENCE_IS_LIKELY_TO_LAST = 8
_ABSENCE_SECONDS = 300.0
# Limit for the different reasons that are logged while the API server is lost.
_MOST_REASONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The receiver of the objects."""

    deliver: Callable[[ObjectChange], None]
    """Called in the event loop with each change; the first one of each kind is a `Replaced`."""
    last_good: Callable[[Kind, NamespacedName], Object | None] = lambda _kind, _name: None
    """Returns the last good version of an object, or None; used for an object in a list that cannot be decoded."""
    watched: Callable[[Kind, str], None] = lambda _kind, _reason: None
    """Called at each attempt with the reason why a kind cannot be watched; an empty reason if it is watched."""
    problems_changed: Callable[[ProblemsChanged], None] = lambda _: None
    """Called when something is wrong with an object, or not any more."""
    requested: Tell = lambda _: None
    """Called with the record of each request."""
    events: EventSender | None = None
    """Sends Events to the API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is watched, in addition to EndpointSlices."""

    node_name: str
    """Name of the only Node that is watched."""
    service_cidrs: Awaitable[bool]
    """Whether ServiceCIDRs are watched, once that is known."""
    proxy_name: str = ""
    """Selects Services; see `decode_service`."""


class ApiSource:
    """Services, EndpointSlices and more of a cluster; `find_access` is not called before `run`."""

    def __init__(
        self,
        find_access: FindAccess,
        watched: Watched,
        store: Store,
        *,
        timing: Timing | None = None,
        random: Random = random.random,
    ) -> None:
        self._transport = Transport(find_access, timing or Timing(), store.requested)
        self._resources = (services(watched.proxy_name), endpoint_slices(), node(watched.node_name))
        self._wants_service_cidrs = watched.service_cidrs
        self._store = store
        self._random = random
        self._availability = Availability(store.watched)

    async def run(self) -> None:
        """Deliver changes until cancelled.

        Raises:
            ConfigError: from `find_access`: the configuration cannot work.
        """
        failures = 0
        async with self._transport:
            # Retry until server and credentials are found: an exec plugin may depend on other services of the machine.
            while not self._transport.server:
                try:
                    access = await self._transport.access()
                except SourceError as error:
                    failures += 1
                    self._availability.lose(Kind.NODE, str(error), _now())
                    await asyncio.sleep(delay_seconds(failures, self._random()))
                else:
                    logger.info("API server: %s", ", else ".join(server.name for server in access.servers))
            async with asyncio.TaskGroup() as group:
                for resource in self._resources:
                    self._watch(resource, group)
                if self._store.events is not None:
                    group.create_task(self._store.events.run(self._transport), name="events")
                if await self._wants_service_cidrs:
                    self._watch(service_cidrs(), group)

    def _watch(self, resource: Resource[Any], group: asyncio.TaskGroup) -> None:
        watcher = Watcher(resource, self._transport, self._store, self._availability, self._random)
        group.create_task(watcher.run(), name=f"watch {resource.path}")


class Availability:
    """The kinds that cannot be watched; logs the loss and the return of the API server once."""

    def __init__(self, watched: Callable[[Kind, str], None]) -> None:
        self._watched = watched
        self._lost: set[Kind] = set()
        self._lost_at = 0.0
        self._reasons: set[str] = set()

    def lose(self, kind: Kind, reason: str, now: float) -> None:
        """Record that a kind cannot be watched; each reason is logged once until all kinds are back, up to a limit."""
        if not self._lost:
            self._lost_at = now
        self._lost.add(kind)
        self._watched(kind, reason)
        if reason not in self._reasons:
            if len(self._reasons) >= _MOST_REASONS:  # such as answers that have a time in them
                return
            self._reasons.add(reason)
            logger.warning("API server lost, the last good state is kept: %s", reason)

    def regain(self, kind: Kind, server: str, now: float) -> None:
        """Record that a kind is watched, and at which server."""
        self._watched(kind, "")
        if kind not in self._lost:
            return
        self._lost.remove(kind)
        if not self._lost:
            self._reasons.clear()
            logger.info("API server is back after %.1f s: %s", now - self._lost_at, server)


class BadObjects:
    """The objects of a kind that have problems; logs and reports them once for each version of an object."""

    def __init__(self, problems_changed: Callable[[ProblemsChanged], None]) -> None:
        self._problems_changed = problems_changed
        self._known: dict[NamespacedName, tuple[str, tuple[str, ...]]] = {}
        """By object, its version and its problems."""

    def record(self, item: Item) -> None:
        """Log the problems of an object, unless this version of it was recorded before."""
        if not item.problems:
            self.forget(item.name)
        elif item.name not in self._known or self._known[item.name][0] != item.resource_version:
            self.forget(item.name)
            self._known[item.name] = item.resource_version, tuple(map(str, item.problems))
            self._problems_changed(ProblemsChanged(self._known[item.name][1]))
            for problem in item.problems:
                logger.warning(
                    "%s%s", problem, "; its last good version, if any, stays in effect" if item.is_undecodable else ""
                )

    def forget(self, name: NamespacedName) -> None:
        """Record that an object is valid, or was deleted."""
        if (known := self._known.pop(name, None)) is not None:
            self._problems_changed(ProblemsChanged((), known[1]))

    def forget_all_but(self, names: Collection[NamespacedName]) -> None:
        """Record that all other objects are valid, or were deleted."""
        for name in [name for name in self._known if name not in names]:
            self.forget(name)


@dataclass(slots=True)
class Watcher:
    """Lists and watches one resource."""

    resource: Resource[Any]
    transport: Transport
    store: Store
    availability: Availability
    random: Random
    _reflector: Reflector = field(default_factory=Reflector, init=False)
    _bad: BadObjects = field(init=False)
    # Objects in the pages of the current list; None for those that are not used.
    _listed: dict[NamespacedName, Object | None] = field(default_factory=dict, init=False)
    # The Services without rules in these pages.
    _unserved: dict[NamespacedName, UnservedService] = field(default_factory=dict, init=False)
    # Whether the last response refused a resource that may be absent.
    _is_absent: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Report problems to the store."""
        self._bad = BadObjects(self.store.problems_changed)

    async def run(self) -> None:
        """Deliver changes until cancelled."""
        while True:
            try:
                match self._reflector.request:
                    case ListPage() as request:
                        delay = await self._list(request)
                    case Stream() | Watch() as request:
                        delay = await self._watch(request)
            # A server that answers has a reason for its refusal; one that does not answer only needs another attempt.
            except HttpStatusError as error:
                delay = self._refused(error)
            except UnreachableError as error:
                self._lose(str(error))
                delay = self._reflector.failed(_now(), self.random())
            except SourceError as error:  # the response cannot be used
                self._lose(str(error))
                delay = self._reflector.refused(_now(), self.random())
            await asyncio.sleep(delay)

    async def _list(self, request: ListPage) -> float:
        query = {"limit": str(request.limit)} if request.limit else {}
        if request.continue_token:
            query["continue"] = request.continue_token
        else:
            # Without a resourceVersion the first page is a consistent read. All later pages show the same moment: the
            # continue token has the resourceVersion of the first one.
            self._listed.clear()
            self._unserved.clear()
        page = self.resource.decode_page(await self.transport.body(self.resource.path, self.resource.selectors | query))
        for item in page.items:
            self._collect(item)
        if self._reflector.page_listed(page.resource_version, page.continue_token):
            self._deliver_list()
        return 0.0

    def _collect(self, item: Item) -> None:
        self._bad.record(item)
        # An object that became undecodable must not look like a deleted one: its rules would go.
        kept = self.store.last_good(self.resource.kind, item.name) if item.is_undecodable else item.object
        self._listed[item.name] = kept
        self._unserved.pop(item.name, None)
        if item.unserved is not None:
            self._unserved[item.name] = item.unserved

    def _deliver_list(self) -> None:
        self._bad.forget_all_but(self._listed.keys())
        objects = tuple(item for item in self._listed.values() if item is not None)
        unserved = tuple(self._unserved.values())
        self._listed, self._unserved = {}, {}
        self.store.deliver(Replaced(self.resource.kind, objects, unserved))

    async def _watch(self, request: Stream | Watch) -> float:
        # Bookmarks keep the resource version of a quiet watch recent, so that it can be resumed instead of listed again.
        query = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(watch_seconds(self.random()))}
        if isinstance(request, Watch):
            query["resourceVersion"] = request.resource_version
        else:
            # Without a resourceVersion this is a consistent read. The server requires the match with sendInitialEvents.
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            self._listed.clear()
            self._unserved.clear()
        async with self.transport.lines(self.resource.path, self.resource.selectors | query) as lines:
            # The server sends the status line when it has accepted the watch, which may be long before the first event.
            self._reflector.watch_opened(_now())
            self._is_absent = False
            self.availability.regain(self.resource.kind, self.transport.server, _now())
            while batch := await lines.read():
                for line in batch:
                    self._process(line)
        return self._reflector.watch_ended(_now(), self.random())

    def _process(self, line: bytes) -> None:
        try:
            event = decode_json(_EVENT, line)
            if event.type == wire.ERROR:
                # The response began with 200, so a later error, such as 410 for an expired version, comes as an event.
                status = decode_json(_STATUS, event.object)
                raise HttpStatusError(status.code or 0, status.message or status.reason or event.type)
            if isinstance(self._reflector.request, Stream):
                self._process_initial(event)
            else:
                self._reflector.observed(self._process_event(event))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"{self.resource.path}: a line of the watch is not an event: {error}"
            raise SourceError(message) from error

    def _process_initial(self, event: wire.WatchEvent) -> None:
        # Changes made while the initial events are sent arrive in between, so that an object may come twice or be deleted.
        if event.type == wire.BOOKMARK:
            bookmark = decode_json(_BOOKMARK, event.object)
            # A server that does not know sendInitialEvents ignores it, and sends ordinary bookmarks only.
            if not bookmark.ends_initial_events:
                raise HttpStatusError(HTTPStatus.BAD_REQUEST, "the server watches without the initial events")
            self._reflector.stream_completed(bookmark.resource_version)
            self._deliver_list()
        elif event.type == wire.DELETED:
            name, _ = self.resource.identify(event.object)
            self._listed.pop(name, None)
            self._unserved.pop(name, None)
        else:
            self._collect(self.resource.decode_object(event.object))

    def _process_event(self, event: wire.WatchEvent) -> str:
        """Deliver the change of an event, and return the resource version after it."""
        # A bookmark has a version and no object. The version of a DELETED is that of the deletion, not of the last change,
        # and it arrives as well if an object no longer matches the selectors.
        if event.type == wire.BOOKMARK:
            return decode_json(_BOOKMARK, event.object).resource_version
        if event.type == wire.DELETED:
            name, resource_version = self.resource.identify(event.object)
            self._bad.forget(name)
            self.store.deliver(Removed(self.resource.kind, name))
            return resource_version
        # ADDED and MODIFIED need no distinction: the tracker replaces whatever it has under the name.
        item = self.resource.decode_object(event.object)
        self._bad.record(item)
        if item.object is not None:
            self.store.deliver(Put(item.object))
        elif item.unserved is not None:
            self.store.deliver(Unserved(item.unserved))
        elif not item.problems and event.type == wire.MODIFIED:
            # Valid and without a problem, but not used any more, such as a Service that has become ExternalName.
            self.store.deliver(Removed(self.resource.kind, item.name))
        return item.resource_version

    def _refused(self, error: HttpStatusError) -> float:
        # The resource version or the continue token is older than the server's history, which is normal after a long
        # disconnection: the API server has etcd compact the history every five minutes (``--etcd-compaction-interval``).
        if error.status == HTTPStatus.GONE:
            logger.debug("%s: %s", self.resource.path, error)
            return self._reflector.expired(_now(), self.random())
        if error.status in _INVALID and isinstance(self._reflector.request, Stream):
            logger.debug("%s: listed in pages: %s", self.resource.path, error)
            self._reflector.stream_unsupported()
            return 0.0
        if error.status == HTTPStatus.BAD_REQUEST and self.resource.drop_field_selector():
            logger.info("%s: listed without a field selector: %s", self.resource.path, error)
            return 0.0
        if error.status in _ABSENT and self.resource.may_be_absent:
            # The agent continues without objects, which is not a loss; after a refused watch only if the next list is
            # refused too, because a server may forbid watching alone.
            self.availability.regain(self.resource.kind, self.transport.server, _now())
            if not (self._is_absent or isinstance(self._reflector.request, Watch)):
                self._is_absent = True
                level = logging.WARNING if error.status == HTTPStatus.FORBIDDEN else logging.INFO
                logger.log(level, "unavailable; pyproxy works without it and will retry: %s", self._refusal(error))
                self.store.deliver(Replaced(self.resource.kind, ()))
            delay = self._reflector.refused(_now(), self.random(), error.retry_after_seconds)
            return delay if self._reflector.failures <= _TRIES_BEFORE_ABSENCE_IS_LIKELY_TO_LAST else _ABSENCE_SECONDS
        if error.status in OVERLOADED or error.status == HTTPStatus.UNAUTHORIZED:
            self._lose(str(error))
            return self._reflector.failed(_now(), self.random(), error.retry_after_seconds)
        self._lose(self._refusal(error))
        return self._reflector.refused(_now(), self.random(), error.retry_after_seconds)

    def _refusal(self, error: HttpStatusError) -> str:
        wanted = f"; it needs a role with {self.resource.permission}" if error.status == HTTPStatus.FORBIDDEN else ""
        return f"{self.resource.path}: {error}{wanted}"

    def _lose(self, reason: str) -> None:
        self.availability.lose(self.resource.kind, reason, _now())


def _now() -> float:
    return asyncio.get_running_loop().time()
