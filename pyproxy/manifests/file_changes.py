"""The changes of the objects when some files change, at a cost that depends on the change only.

The result is the difference between `combine` of all files before and after. To find it, only the objects are combined
that are connected with an object that differs: objects of the same kind and name, Services that claim the same frontend,
and slices and Endpoints of the same Service. `combine` makes no decision between objects that are not connected.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any

from pyproxy.manifests.file_objects import FileObjects, claims, combine
from pyproxy.manifests.manifest import FileProblem, LocatedObject, Manifest, read_manifest
from pyproxy.model.change import Kind, Object, ObjectChange, Put, Removed, Unserved
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService

Manifests = Mapping[str, Manifest]
"""By path, in the order of the paths, which is the order of precedence."""
# What connects objects: a type of name, and a name.
_Topic = tuple[str, Hashable]
_CLAIM, _ENDPOINTS = "claim", "endpoints"
_EMPTY = read_manifest("", b"")
_number = attrgetter("number")


@dataclass(frozen=True, slots=True)
class FileChanges:
    """The result of new versions of files."""

    changes: tuple[ObjectChange, ...]
    """Additions before removals, and endpoints before their Service, so that no step interrupts traffic."""
    problems: tuple[FileProblem, ...]
    """Problems of the changed files, and of all objects connected with what changed in them."""
    problems_before: tuple[FileProblem, ...]
    """Problems of the same files and objects before the change."""


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A usable object in a file."""

    path: str
    number: int
    """Its index among the usable objects of the file."""
    found: LocatedObject[Any]

    # Claims connect Services because the loser of a claim changes when the winner goes, in whatever file it is.
    @property
    def topics(self) -> list[_Topic]:
        """Return its topics; the first one identifies it."""
        match self.found.object:
            case Service() as service:
                contested = ((_CLAIM, claim) for claim in claims(service))
                return [("Service", service.name), (_ENDPOINTS, service.name), *contested]
            case EndpointSlice() as one:
                return [("EndpointSlice", one.name), (_ENDPOINTS, one.service)]
            case Node() as node:
                return [("Node", node.name)]
            case ServiceCidr() as service_cidr:
                return [("ServiceCIDR", service_cidr.name)]
            case UnservedService() as service:
                return [("Service", service.name)]
            case slices:
                return [(_ENDPOINTS, one.service) for one in slices[:1]]


class _File:
    """A version of a file, with its objects."""

    def __init__(self, path: str, manifest: Manifest) -> None:
        every: tuple[tuple[LocatedObject[Any], ...], ...] = (
            manifest.services,
            manifest.slices,
            manifest.endpoints,
            manifest.nodes,
            manifest.service_cidrs,
            manifest.unserved,
        )
        self.path = path
        self.manifest = manifest
        self.items = [_Item(path, number, found) for number, found in enumerate(chain.from_iterable(every))]

    def __repr__(self) -> str:
        return f"_File({self.path}: {len(self.items)} items)"

    def cut_down(
        self, items: Iterable[_Item], topics: AbstractSet[_Topic], problems: Iterable[FileProblem]
    ) -> Manifest:
        """Return the manifest of the file, reduced to some items and to Services in the topics."""
        found = defaultdict[type, list[LocatedObject[Any]]](list)
        for item in sorted(items, key=_number):
            found[type(item.found.object)].append(item.found)
        services = {name for sort, name in topics if sort == _ENDPOINTS}
        return replace(
            self.manifest,
            services=tuple(found[Service]),
            slices=tuple(found[EndpointSlice]),
            endpoints=tuple(found[tuple]),
            nodes=tuple(found[Node]),
            service_cidrs=tuple(found[ServiceCidr]),
            unserved=tuple(found[UnservedService]),
            controlled=frozenset(name for name in services if name in self.manifest.controlled),
            selecting=frozenset(name for name in services if name in self.manifest.selecting),
            problems=tuple(problems),
        )


class FileIndex:
    """The objects of files by their topics. The first change indexes all objects."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._items: dict[_Topic, tuple[_Item, ...]] = {}

    def __repr__(self) -> str:
        return f"FileIndex({len(self._files)} files, {len(self._items)} topics)"

    def changes(self, before: Manifests, after: Manifests) -> FileChanges:
        """Return the changes between two versions of all files."""
        # Manifests are immutable, and a file that has not changed keeps its Manifest: identity is enough.
        changed = [path for path in {**before, **after} if before.get(path) is not after.get(path)]
        if len(changed) >= len(before):  # with every file changed, as with a single file, an index saves nothing
            old, new = combine(before.values()), combine(after.values())
        else:
            self._keep({path: manifest for path, manifest in before.items() if path not in changed})
            olds, news = ([_File(path, each.get(path, _EMPTY)) for path in changed] for each in (before, after))
            topics = self._connected(olds, news)
            old, new = (combine(self._cut_down(files, topics)) for files in (olds, news))
        return FileChanges(tuple(_differences(old, new)), new.problems, old.problems)

    def _keep(self, manifests: Manifests) -> None:
        for path, file in list(self._files.items()):
            if manifests.get(path) is not file.manifest:
                del self._files[path]
                for item in file.items:
                    for topic in item.topics:
                        remaining = tuple(each for each in self._items.pop(topic, ()) if each is not item)
                        if remaining:
                            self._items[topic] = remaining
        # The first change pays for all files; each later one for the files of the change before it.
        for path, manifest in manifests.items():
            if path not in self._files:
                file = self._files[path] = _File(path, manifest)
                for item in file.items:
                    for topic in item.topics:
                        self._items[topic] = (*self._items.get(topic, ()), item)

    def _connected(self, olds: Iterable[_File], news: Iterable[_File]) -> AbstractSet[_Topic]:
        # A breadth-first search from the objects that differ, along topics: two objects are neighbours if they share one.
        in_changed = defaultdict[_Topic, list[_Item]](list)
        for file in (*olds, *news):
            for item in file.items:
                for topic in item.topics:
                    in_changed[topic].append(item)
        topics = set[_Topic]()
        todo = {topic for old, new in zip(olds, news, strict=True) for topic in _differing(old, new)}
        while todo:
            topic = todo.pop()
            if topic not in topics:
                topics.add(topic)
                for item in (*self._items.get(topic, ()), *in_changed[topic]):
                    todo.update(item.topics)
        return topics

    def _cut_down(self, changed: Iterable[_File], topics: AbstractSet[_Topic]) -> Iterator[Manifest]:
        # `combine` takes the first of equal names, so the order of files and of objects within a file must stay. Problems of
        # unchanged files were reported when they were read.
        unchanged = defaultdict[str, set[_Item]](set)
        for topic in topics:
            for item in self._items.get(topic, ()):
                unchanged[item.path].add(item)
        files = {file.path: file for file in changed}
        for path in sorted({*files, *unchanged}):
            if path in files:
                items = [item for item in files[path].items if not topics.isdisjoint(item.topics)]
                yield files[path].cut_down(items, topics, files[path].manifest.problems)
            else:
                yield self._files[path].cut_down(unchanged[path], topics, ())


def _differing(old: _File, new: _File) -> Iterator[_Topic]:
    by_name: tuple[dict[_Topic, list[_Item]], ...] = ({}, {})
    for file, known in zip((old, new), by_name, strict=True):
        for item in file.items:
            for topic in item.topics[:1]:
                known.setdefault(topic, []).append(item)
    olds, news = by_name
    for topic in {**olds, **news}:
        items = olds.get(topic, []), news.get(topic, [])
        # The places are compared as well, because problems name them.
        if [each.found for each in items[0]] != [each.found for each in items[1]]:
            yield from (topic for one in items for item in one for topic in item.topics)
    for before, after in (
        (old.manifest.controlled, new.manifest.controlled),
        (old.manifest.selecting, new.manifest.selecting),
    ):
        yield from ((_ENDPOINTS, name) for name in before ^ after)


def _differences(old: FileObjects, new: FileObjects) -> Iterator[ObjectChange]:
    olds, news = _by_name(old), _by_name(new)
    # Additions in the order of `_by_name`, removals in reverse order: a Service before its endpoints.
    for key, each in news.items():
        if olds.get(key) != each:
            yield Put(each)
    for key in reversed(olds):
        if key not in news:
            yield Removed(*key)
    # A Service may change between having rules and being unserved; `Removed` is only for a name that is in neither.
    before, after = ({one.name: one for one in objects.unserved} for objects in (old, new))
    for name in before:
        if name not in after and (Kind.SERVICE, name) not in news:
            yield Removed(Kind.SERVICE, name)
    for name, service in after.items():
        if before.get(name) != service:
            yield Unserved(service)


def _by_name(objects: FileObjects) -> dict[tuple[Kind, NamespacedName], Object]:
    # Each Service after its endpoints, so that its first rules have them.
    named: dict[tuple[Kind, NamespacedName], Object] = {}
    named |= {(Kind.NODE, NamespacedName("", node.name)): node for node in objects.nodes}
    named |= {(Kind.SERVICE_CIDR, each.name): each for each in objects.service_cidrs}
    named |= {(Kind.ENDPOINT_SLICE, each.name): each for each in objects.slices}
    named |= {(Kind.SERVICE, service.name): service for service in objects.services}
    return named
