"""A running source, and the changes that it delivers."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any

from pyproxy.kubeapi.access import Access, Server
from pyproxy.kubeapi.api import ApiSource, Store, Watched
from pyproxy.kubeapi.transport import FindAccess, Timing
from pyproxy.model.change import Kind, Object, ObjectChange, ProblemsChanged, Put, Removed, Replaced, Unserved
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.request_record import RequestRecord
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from tests.fakes.apiserver import PATIENCE_SECONDS


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))

    return run


class Changes:
    """The changes that a source delivered, by kind."""

    def __init__(self) -> None:
        self._queues: dict[Kind, asyncio.Queue[ObjectChange]] = defaultdict(asyncio.Queue)
        self.watched: dict[Kind, list[str]] = defaultdict(list)
        """For each kind the reasons why it could not be watched, or an empty one if it was, without repetition."""
        self.problems: list[ProblemsChanged] = []
        """Problems of objects that were reported."""
        self.exchanges: list[RequestRecord] = []
        """Requests that were made."""

    def take_watched(self, kind: Kind, reason: str) -> None:
        """Record why a kind cannot be watched."""
        if self.watched[kind][-1:] != [reason]:
            self.watched[kind].append(reason)

    def deliver(self, change: ObjectChange) -> None:
        """Record a change."""
        match change:
            case Removed(kind=kind) | Replaced(kind=kind):
                pass
            case Put(object=item):
                kind = kind_of(item)
            case Unserved():
                kind = Kind.SERVICE
        self._queues[kind].put_nowait(change)

    async def next(self, kind: Kind = Kind.SERVICE) -> ObjectChange:
        """Return the next change of a kind."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._queues[kind].get()

    async def names(self) -> set[str]:
        """Return the names in the next change of Services, which is a complete list."""
        change = await self.next()
        assert isinstance(change, Replaced)
        return {str(item.name) for item in change.objects}


def kind_of(item: Object) -> Kind:
    """Return the kind of an object."""
    kinds = {
        Service: Kind.SERVICE,
        EndpointSlice: Kind.ENDPOINT_SLICE,
        Node: Kind.NODE,
        ServiceCidr: Kind.SERVICE_CIDR,
    }
    return kinds[type(item)]


def access_to(*urls: str, token_file: str = "") -> FindAccess:
    """Return a function that finds servers without reading files."""

    async def find_access() -> Access:
        return Access(servers=tuple(Server(url) for url in urls), token_file=token_file)

    return find_access


async def wanted() -> bool:
    """Return a result that says that ServiceCIDRs are watched."""
    return True


@asynccontextmanager
async def running(
    find_access: FindAccess,
    last_good: Callable[[Kind, NamespacedName], Object | None] = lambda _kind, _name: None,
    timing: Timing | None = None,
    *,
    service_cidrs: Awaitable[bool] | None = None,
) -> AsyncIterator[Changes]:
    """Run a source without random delays, and cancel its tasks at the end."""
    changes = Changes()
    store = Store(
        deliver=changes.deliver,
        last_good=last_good,
        watched=changes.take_watched,
        problems_changed=changes.problems.append,
        requested=changes.exchanges.append,
    )
    watched = Watched(node_name="node-1", service_cidrs=service_cidrs or asyncio.ensure_future(wanted()))
    source = ApiSource(find_access, watched, store, timing=timing, random=float)
    task = asyncio.create_task(source.run())
    try:
        yield changes
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not [left for left in asyncio.all_tasks() if left.get_name().startswith("watch ")]
