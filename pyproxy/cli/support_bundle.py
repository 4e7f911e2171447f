"""The archive of ``pyproxy support``: files of limited size without secrets, and an index of what is in it and what is not."""

import asyncio
import io
import os
import signal
import tarfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from pyproxy.cli.redaction import without_secrets

INDEX = "INDEX.txt"
MOST_BYTES = 16 << 20
"""Limit for one file of the archive."""
ITEM_SECONDS = 20.0
TOTAL_SECONDS = 120.0
# Items that are collected at the same time: more would load a node that may be in trouble.
_PARALLEL = 3


class MissingError(Exception):
    """An item cannot be collected; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file of the archive."""

    path: str
    about: str
    """What it is, for the index."""
    text: Callable[[], Awaitable[str]]
    """Raises MissingError or OSError if there is none."""


@dataclass(slots=True)
class Bundle:
    """Writes a tar archive, compressed by gzip."""

    target: IO[bytes]
    folder: str
    """The only directory of the archive, which contains all files."""
    made_at: float
    """Modification time of the files."""
    secrets: Collection[str]
    """Texts that must not appear in the archive."""
    files: list[tuple[str, int, str]] = field(default_factory=list)
    """Path, size and description of each file."""
    missing: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each item that could not be collected."""

    async def collect(self, items: Sequence[Item], head: str) -> None:
        """Write all items in their order, then the index, which begins with `head`."""
        free, loop = asyncio.Semaphore(_PARALLEL), asyncio.get_running_loop()
        deadline = loop.time() + TOTAL_SECONDS

        async def text(item: Item) -> str | MissingError:
            async with free:
                try:
                    async with asyncio.timeout_at(min(deadline, loop.time() + ITEM_SECONDS)):
                        return await item.text()
                except TimeoutError:
                    return MissingError(f"not complete after {ITEM_SECONDS:g} s, or {TOTAL_SECONDS:g} s for all items")
                except (MissingError, OSError) as error:
                    return MissingError(str(error))
                except Exception as error:  # noqa: BLE001 - on a broken node, the other items are needed most
                    return MissingError(f"{type(error).__name__}: {error}")

        with tarfile.open(fileobj=self.target, mode="w:gz") as archive:
            tasks = [asyncio.create_task(text(item)) for item in items]
            # The items are collected side by side, but a tar archive is written one file after the other.
            for item, task in zip(items, tasks, strict=True):
                found = await task
                if isinstance(found, MissingError):
                    reason = without_secrets(" ".join(str(found).split()), self.secrets)
                    self.missing.append((item.path, reason))
                else:
                    self._add(archive, item.path, found, item.about)
            # The index is last, because it has the sizes and reasons of all items.
            paths = [INDEX, *(path for path, _, _ in self.files), *(path for path, _ in self.missing)]
            width = max(map(len, paths))
            lines = [head, "", "Files:"]
            lines += [f"  {path:{width}}  {size:>9}  {about}" for path, size, about in sorted(self.files)]
            lines += ["", "Not available:" if self.missing else "Not available: nothing"]
            lines += [f"  {path:{width}}  {reason}" for path, reason in sorted(self.missing)]
            self._add(archive, INDEX, "\n".join(lines) + "\n", "this file")

    def _add(self, archive: tarfile.TarFile, path: str, text: str, about: str) -> None:
        content = without_secrets(text, self.secrets).encode(errors="replace")
        if len(content) > MOST_BYTES:
            content = content[:MOST_BYTES]
            about += f" (cut after {MOST_BYTES >> 20} MiB)"
        self.files.append((path, len(content), about))
        entry = tarfile.TarInfo(f"{self.folder}/{path}")
        entry.size, entry.mtime, entry.mode = len(content), int(self.made_at), 0o644
        archive.addfile(entry, io.BytesIO(content))


async def output(argv: Sequence[str]) -> str:
    """Return the output of a program, with that on standard error at the end.

    Raises:
        MissingError: the program cannot be started, or has no output.
    """
    try:
        # LC_ALL: messages must not depend on the language of the node. A session of its own: a timeout then also ends the
        # processes that the program has started.
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        message = f"{argv[0]}: {error.strerror}"
        raise MissingError(message) from error
    try:
        assert child.stdout is not None  # noqa: S101 - the type checker cannot know
        assert child.stderr is not None  # noqa: S101 - as above
        stdout, stderr = await asyncio.gather(_limited(child.stdout), _limited(child.stderr))
        await child.wait()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if not stdout.strip():
        nothing = f"exit status {child.returncode}, no output" if child.returncode else "there are none"
        # The last line is the error; warnings come before it.
        *_, reason = stderr.strip().splitlines() or [nothing]
        raise MissingError(reason)
    return f"{stdout}\n-- standard error\n{stderr}" if stderr.strip() else stdout


async def _limited(stream: asyncio.StreamReader) -> str:
    """Read a stream to its end, so that the program does not block; return no more than shows that it has to be cut."""
    parts, left = list[bytes](), MOST_BYTES + 1
    while chunk := await stream.read(1 << 16):
        parts.append(chunk[:left])
        left -= len(parts[-1])
    return b"".join(parts).decode(errors="replace")
