"""Objects from a file, a directory, or standard input, read once or followed.

This module deals with paths, time and threads. `manifest` reads the content of a file, `file_objects` combines files, and
`file_changes` finds the changes. Of a directory the files `*.yaml`, `*.yml` and `*.json` are read in the order of their
names, without sub-directories and names that begin with a dot (editors and ConfigMap volumes have these).

Files are followed by the versions that `stat` returns, because notifications of the kernel depend on how a file is changed.
A notification only says when to look again; where there are none, files are polled. A file is read again when its version
has changed and is the same in two looks, so not while it is being written. If it is then incomplete or empty, its last good
objects are kept.
"""

import asyncio
import gc
import logging
import os
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Protocol

from pyproxy.errors import DecodeError, MissingInputError
from pyproxy.manifests.file_changes import FileChanges, FileIndex
from pyproxy.manifests.file_objects import FileObjects, combine
from pyproxy.manifests.file_version import FileVersion, directories_of, file_version
from pyproxy.manifests.manifest import FileProblem, Manifest, read_manifest
from pyproxy.model.change import Kind, ObjectChange, ProblemsChanged, Replaced

__all__ = ["FileObjects", "FileProblem", "FileSource", "read_objects"]

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
SUFFIXES = (".yaml", ".yml", ".json")
POLL_SECONDS = 0.2


def read_objects(
    path: str | Path,
    proxy_name: str = "",
    own_ports: Mapping[int, str] = MappingProxyType({}),
    *,
    with_pods: bool = False,
) -> FileObjects:
    """Read a file, a directory, or standard input (``-``) once.

    Args:
        path: what to read.
        proxy_name: see `decode_service`.
        own_ports: see `combine`.
        with_pods: read the names and addresses of pods, too.

    Raises:
        MissingInputError: the path cannot be read. A bad file of a directory is a problem, not an error.
    """
    if str(path) == STANDARD_INPUT:
        with _without_garbage_collection():
            data = sys.stdin.buffer.read()
            return combine((read_manifest("standard input", data, proxy_name, with_pods=with_pods),), own_ports)
    return _Folder(Path(path), proxy_name, with_pods=with_pods).read(own_ports)


class Notifications(Protocol):
    """Says when something has changed in some directories, see `pyproxy.linux.file_notifications`."""

    def cover(self, directories: Iterable[str]) -> bool:
        """Watch these directories; return whether each change in them since the last call ends the next `wait`."""
        ...

    async def wait(self) -> None:
        """Wait for a change in the directories, for some seconds at most."""
        ...


class FileSource:
    """Objects of files, as a stream of changes.

    Args:
        path: a file, a directory, or ``-`` for standard input, which is read once like any pipe.
        poll_seconds: shortest time between two looks, and the time between them without notifications.
        proxy_name: see `decode_service`.
        problems_changed: called when something is wrong with an object, or not any more.
        notifications: say when files have changed; without them files are polled.
    """

    def __init__(
        self,
        path: str | Path,
        poll_seconds: float = POLL_SECONDS,
        *,
        proxy_name: str = "",
        problems_changed: Callable[[ProblemsChanged], None] = lambda _: None,
        notifications: Notifications | None = None,
    ) -> None:
        self._path = path
        self._proxy_name = proxy_name
        self._poll_seconds = poll_seconds
        self._problems_changed = problems_changed
        self._notifications = notifications
        self.problems: set[str] = set()
        """The problems of the files as of the last change."""

    def __repr__(self) -> str:
        return f"<FileSource {self._path}: {len(self.problems)} problems>"

    async def changes(self) -> AsyncGenerator[ObjectChange, None]:
        """Yield a complete list of each kind, then each change; never ends.

        Objects are added before any are removed, and endpoints before their Service, so that no step interrupts traffic.

        Raises:
            MissingInputError: the path cannot be read at the beginning.
        """
        path = Path(self._path)
        if str(self._path) == STANDARD_INPUT or not _can_be_followed(path):
            objects = await asyncio.to_thread(read_objects, self._path, self._proxy_name)
            self._log(objects.problems)
            for change in _lists(objects):
                yield change
            await asyncio.get_running_loop().create_future()  # never done: the source stays without changes
            return
        folder = _Folder(path, self._proxy_name)
        objects = await asyncio.to_thread(folder.read)
        self._log(objects.problems)
        for change in _lists(objects):
            yield change
        del objects  # the tracker has them; this copy would stay for the life of the agent
        while True:
            news = await self._next(folder)
            self._log(news.problems, news.problems_before)
            for change in news.changes:
                yield change

    async def _next(self, folder: "_Folder") -> FileChanges:
        """Wait until files have changed and stay the same, and read them."""
        notifications = self._notifications

        def look() -> tuple[dict[str, FileVersion], bool]:
            versions, directories = folder.look()
            return versions, notifications is not None and notifications.cover(directories)

        last, is_covered, looked_at = folder.versions, False, monotonic()
        while True:
            if notifications is not None and is_covered and last == folder.versions:
                await notifications.wait()
            await asyncio.sleep(looked_at + self._poll_seconds - monotonic())
            looked_at, is_covered = monotonic(), False
            try:
                versions, is_covered = await asyncio.to_thread(look)
            except OSError:
                # A volume is not mounted, or an editor is renaming the file: keep the last good objects.
                continue
            # The same in two looks: a file that is still being written would look like one that lost its last objects.
            if versions == last != folder.versions:
                return await asyncio.to_thread(folder.read_changes, versions)
            last = versions

    def _log(self, problems: Iterable[FileProblem], before: Iterable[FileProblem] = ()) -> None:
        # A problem is logged once, not at each change of another object. Those of `before` are judged again.
        texts = {str(problem): problem for problem in problems}
        appeared = tuple(text for text in texts if text not in self.problems)
        gone = tuple(text for text in map(str, before) if text not in texts)
        for text in appeared:
            logger.warning("%s: %s", texts[text].where, texts[text].error)
        self.problems.difference_update(gone)
        self.problems.update(appeared)
        if appeared or gone:
            self._problems_changed(ProblemsChanged(appeared, gone))


class _Folder:
    """The files at a path, with the last good content of each."""

    def __init__(self, path: Path, proxy_name: str, *, with_pods: bool = False) -> None:
        self._path = path
        self._proxy_name = proxy_name
        self._with_pods = with_pods
        self.versions: dict[str, FileVersion] = {}
        """Of the files that were read."""
        self._manifests: dict[str, Manifest] = {}
        self._index = FileIndex()

    def read(self, own_ports: Mapping[int, str] = MappingProxyType({})) -> FileObjects:
        """Read all files; for `own_ports` see `combine`."""
        try:
            self._read(self.look()[0])
            return combine(self._manifests.values(), own_ports)
        except OSError as error:
            message = f"{self._path}: {error.strerror}"
            raise MissingInputError(message) from error

    def read_changes(self, versions: dict[str, FileVersion]) -> FileChanges:
        """Read the files that have other versions now."""
        before = self._manifests
        self._read(versions)
        return self._index.changes(before, self._manifests)

    def look(self) -> tuple[dict[str, FileVersion], set[str]]:
        """Return the version of each file, and the directories in which a change can be one of a file.

        Raises:
            OSError: the path does not exist or is not accessible.
        """
        # One scandir and one stat for each file: a poll must stay cheap, because it never ends.
        try:
            entries = os.scandir(self._path)
        except NotADirectoryError:
            return {str(self._path): file_version(self._path.stat())}, directories_of(str(self._path))
        versions: dict[str, FileVersion] = {}
        linked = {Path()}
        with entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIXES) or entry.name.startswith("."):
                    continue
                # The file may have been removed since the directory was listed, or be a broken link.
                with suppress(OSError):
                    if entry.is_symlink():
                        linked.add(Path(entry.path).readlink().parent)
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        versions[entry.path] = file_version(status)
        # Links of a volume lead through the same few directories.
        directories = (directories_of(str(self._path / each / "file")) for each in linked)
        return dict(sorted(versions.items())), set(chain.from_iterable(directories))

    def _read(self, versions: dict[str, FileVersion]) -> None:
        manifests: dict[str, Manifest] = {}
        with _without_garbage_collection():
            for path, version in versions.items():
                last = self._manifests.get(path)
                if last is not None and self.versions.get(path) == version:
                    manifests[path] = last
                    continue
                try:
                    data = Path(path).read_bytes()
                except OSError as error:
                    manifests[path] = _kept(last, path, error.strerror or str(error))
                    continue
                manifest = read_manifest(path, data, self._proxy_name, with_pods=self._with_pods)
                # A file that has become empty or invalid is more likely a mistake than the end of its Services: keep the
                # objects that it had before. Removing the file removes them.
                if last is not None and last.is_whole and not data.strip():
                    reason = "empty; its previous objects are kept until it has objects again or is removed"
                    manifest = _kept(last, path, reason)
                elif last is not None and last.is_whole and not manifest.is_whole:
                    manifest = replace(last, problems=manifest.problems)
                manifests[path] = manifest
        self._manifests, self.versions = manifests, versions


def _kept(last: Manifest | None, file: str, reason: str) -> Manifest:
    manifest = last or read_manifest(file, b"")
    return replace(manifest, problems=(FileProblem(file, "", DecodeError("file", "", reason)),))


def _can_be_followed(path: Path) -> bool:
    # A pipe or a device can be read only once. `read` reports a path that does not exist.
    return path.is_dir() or path.is_file() or not path.exists()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # The collector runs after a number of allocations, and would traverse the objects of a large file many times in vain:
    # they have no cycles.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _lists(objects: FileObjects) -> Iterator[ObjectChange]:
    # Services last, so that the first rules for a Service already have its endpoints.
    yield Replaced(Kind.NODE, objects.nodes)
    yield Replaced(Kind.SERVICE_CIDR, objects.service_cidrs)
    yield Replaced(Kind.ENDPOINT_SLICE, objects.slices)
    yield Replaced(Kind.SERVICE, objects.services, objects.unserved)
