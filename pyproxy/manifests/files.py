"""Objects from files: one file, a directory, or standard input; read once, or followed.

Law of this file: it knows paths, time and threads; what is in a file is `manifest`'s business, what many files make
together is `file_objects`', and what a change of some makes of that `file_changes`'. A directory stands for its files
`*.yaml`, `*.yml` and `*.json`, in the order of their names, without sub-directories and without names that begin with a
dot (editors and ConfigMap volumes have these).

Following is polling: five `stat` calls a second for each file cost less than 0.1 % of a CPU, and are right where
inotify needs care: ConfigMap volumes swap a symbolic link beside the files, editors rename, network file systems and
overlays tell nothing. A file counts as changed when it has looked the same in two polls, so that one which is being
written is left alone; if it then ends in the middle, or is empty, its last good objects stay.
"""

import asyncio
import gc
import logging
import os
import stat
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import MappingProxyType

from pyproxy.errors import DecodeError, SourceError
from pyproxy.manifests.file_changes import FileChanges, FileIndex
from pyproxy.manifests.file_objects import FileObjects, combine
from pyproxy.manifests.file_version import FileVersion, file_version
from pyproxy.manifests.manifest import FileProblem, Manifest, read_manifest
from pyproxy.model.change import Kind, ObjectChange, Replaced

__all__ = ["FileObjects", "FileProblem", "FileSource", "read_objects"]

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
SUFFIXES = (".yaml", ".yml", ".json")
POLL_SECONDS = 0.2


def read_objects(
    path: str | Path, proxy_name: str = "", own_ports: Mapping[int, str] = MappingProxyType({})
) -> FileObjects:
    """Read a file, a directory, or standard input (``-``) once.

    Args:
        path: what to read.
        proxy_name: see `decode_service`.
        own_ports: see `combine`.

    Raises:
        SourceError: there is nothing to read at the path. A bad file of a directory is a problem, not an error.
    """
    if str(path) == STANDARD_INPUT:
        with _without_garbage_collection():
            return combine((read_manifest("standard input", sys.stdin.buffer.read(), proxy_name),), own_ports)
    return _Folder(Path(path), proxy_name).read(own_ports)


class FileSource:
    """Objects of files, as changes for as long as the files change.

    Args:
        path: a file, a directory, or ``-`` for standard input, which like any pipe is read once.
        poll_seconds: time between two looks at the files; a change is seen after one to two of them.
        proxy_name: see `decode_service`.
    """

    def __init__(self, path: str | Path, poll_seconds: float = POLL_SECONDS, *, proxy_name: str = "") -> None:
        self._path = path
        self._proxy_name = proxy_name
        self._poll_seconds = poll_seconds
        self.problems: set[str] = set()
        """What cannot be used as of the last change, or not as it is."""

    def __repr__(self) -> str:
        return f"<FileSource {self._path}: {len(self.problems)} problems>"

    async def changes(self) -> AsyncGenerator[ObjectChange, None]:
        """Yield a complete list of each kind, then each change; never ends.

        What comes is put before what goes, and endpoints before their Service, so that no step of it is a gap.

        Raises:
            SourceError: there is nothing to read at the path when following begins.
        """
        if str(self._path) == STANDARD_INPUT or not _is_followed(Path(self._path)):
            objects = await asyncio.to_thread(read_objects, self._path, self._proxy_name)
            self._tell(objects.problems)
            for change in _lists(objects):
                yield change
            await asyncio.get_running_loop().create_future()
            return
        folder, stop = _Folder(Path(self._path), self._proxy_name), Event()
        try:
            objects = await asyncio.to_thread(folder.read)
            self._tell(objects.problems)
            for change in _lists(objects):
                yield change
            del objects
            while (news := await asyncio.to_thread(folder.read_next, stop, self._poll_seconds)) is not None:
                self._tell(news.problems, news.problems_before)
                for change in news.changes:
                    yield change
        finally:
            stop.set()

    def _tell(self, problems: Iterable[FileProblem], before: Iterable[FileProblem] = ()) -> None:
        """Log those problems that are new, and remember that they are in the place of those before."""
        texts = dict.fromkeys(map(str, problems))
        for text in texts:
            if text not in self.problems:
                logger.warning("%s", text)
        self.problems.difference_update(map(str, before))
        self.problems.update(texts)


class _Folder:
    """The files at a path, with what was last good in each."""

    def __init__(self, path: Path, proxy_name: str) -> None:
        self._path = path
        self._proxy_name = proxy_name
        self._versions: dict[str, FileVersion] = {}
        self._manifests: dict[str, Manifest] = {}
        self._index = FileIndex()

    def read(self, own_ports: Mapping[int, str] = MappingProxyType({})) -> FileObjects:
        """Read all files; for `own_ports` see `combine`."""
        try:
            self._read(self._look())
            return combine(self._manifests.values(), own_ports)
        except OSError as error:
            message = f"{self._path}: {error.strerror}"
            raise SourceError(message) from error

    def read_next(self, stop: Event, poll_seconds: float) -> FileChanges | None:
        """Wait for a change that has come to rest, and read it; return None once `stop` is set."""
        last = self._versions
        while not stop.wait(poll_seconds):
            try:
                versions = self._look()
            except OSError:
                # A volume that is not mounted, or an editor between two renames: the last good objects stay.
                continue
            if versions == last != self._versions:
                before = self._manifests
                self._read(versions)
                return self._index.changes(before, self._manifests)
            last = versions
        return None

    def _look(self) -> dict[str, FileVersion]:
        """Return the version of each file.

        Raises:
            OSError: the path itself cannot be looked at.
        """
        try:
            entries = os.scandir(self._path)
        except NotADirectoryError:
            return {str(self._path): file_version(self._path.stat())}
        with entries:
            return dict(sorted(_manifest_files(entries)))

    def _read(self, versions: dict[str, FileVersion]) -> None:
        with _without_garbage_collection():
            self._manifests = {
                path: self._manifests[path] if self._versions.get(path) == version else self._read_file(path)
                for path, version in versions.items()
            }
            self._versions = versions

    def _read_file(self, file: str) -> Manifest:
        """Read a file; of one that is unreadable, empty or broken since the last time, the objects of that time stay."""
        last = self._manifests.get(file)
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            return _kept(last, file, error.strerror or str(error))
        manifest = read_manifest(file, data, self._proxy_name)
        if last is None or not last.is_whole:
            return manifest
        if not data.strip():
            return _kept(last, file, "empty; its objects stay as they were until there are others, or no file")
        return manifest if manifest.is_whole else replace(last, problems=manifest.problems)


def _kept(last: Manifest | None, file: str, reason: str) -> Manifest:
    manifest = last or read_manifest(file, b"")
    return replace(manifest, problems=(FileProblem(file, "", DecodeError("file", "", reason)),))


def _is_followed(path: Path) -> bool:
    """Tell whether reading a path twice gives the same twice; a pipe or a device gives it once."""
    return path.is_dir() or path.is_file() or not path.exists()


def _manifest_files(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, FileVersion]]:
    for entry in entries:
        if not entry.name.endswith(SUFFIXES) or entry.name.startswith("."):
            continue
        try:
            status = entry.stat()
        except OSError:
            # Removed since the directory was listed, or a broken link.
            continue
        if stat.S_ISREG(status.st_mode):
            yield entry.path, file_version(status)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Hold the collector off while many objects without cycles are made; it would look through all of them for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _lists(objects: FileObjects) -> Iterator[ObjectChange]:
    yield Replaced(Kind.NODE, objects.nodes)
    yield Replaced(Kind.SERVICE_CIDR, objects.service_cidrs)
    yield Replaced(Kind.ENDPOINT_SLICE, objects.slices)
    yield Replaced(Kind.SERVICE, objects.services)
