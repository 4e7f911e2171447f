"""Named network namespaces: made, entered by commands, and removed, also those of a run that died.

Law: nothing here changes the namespace of the caller. A name carries the pid of its maker; a name whose maker is gone
is debris, and so are the processes in it. (A guest kernel that shares this file system mounts its own /run: it cannot
tell whether a maker lives.)
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .values import LabError

DIRECTORY = Path("/run/netns")
_NAME = re.compile(r"pyp-(?P<pid>\d+)-(?P<number>\d+)-.+")
_numbers = itertools.count(1)
_used_prefixes: set[str] = set()


@dataclass(frozen=True, slots=True)
class Namespace:
    """One named network namespace."""

    name: str

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return DIRECTORY / self.name

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs argv inside; it replaces itself, so the pid is argv's own."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, argv: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run a short command inside and return its standard output; a failure raises with what it said."""
        return _run(self.command(argv), stdin=stdin, env=env)

    def ip_batch(self, lines: Iterable[str]) -> Batch:
        """Start one `ip` process that runs the lines inside."""
        return ip_batch(lines, "-netns", self.name)


@dataclass(frozen=True, slots=True)
class Batch:
    """One `ip` process at work on its lines."""

    process: subprocess.Popen[str]
    lines: Sequence[str]

    def failure(self) -> str | None:
        """Wait for the end; None if all went well, else what `ip` said and the lines it named."""
        assert self.process.stderr
        with self.process.stderr as stderr:
            said = stderr.read().strip()
        if not self.process.wait():
            return None
        named = [self.lines[int(number) - 1] for number in re.findall(r"^Command failed -:(\d+)$", said, re.MULTILINE)]
        return "\n".join([f"{self.process.args!r}: {said}", *named])


def new_prefix() -> str:
    """Return the beginning of the names of one lab: unique among all runs on this machine."""
    prefix = f"pyp-{os.getpid()}-{next(_numbers)}-"
    _used_prefixes.add(prefix)
    return prefix


def create(names: Sequence[str]) -> list[Namespace]:
    """Create the namespaces in one go."""
    finish([ip_batch(f"netns add {name}" for name in names)])
    return [Namespace(name) for name in names]


def remove(prefix: str) -> None:
    """Remove all namespaces whose names begin so; the kernel frees each one after its last process is gone."""
    _delete([path.name for path in _entries() if path.name.startswith(prefix)])


def is_debris(name: str) -> bool:
    """Say whether the name was given by a run that is gone."""
    match = _NAME.fullmatch(name)
    if not match:
        return False
    pid = int(match["pid"])
    if pid == os.getpid():  # of an earlier process with the same pid, unless we made it ourselves
        return f"pyp-{pid}-{match['number']}-" not in _used_prefixes
    return not Path(f"/proc/{pid}").exists()


def remove_debris() -> None:
    """Remove the namespaces of runs that died, and what still runs in them."""
    names = [path.name for path in _entries() if is_debris(path.name)]
    for name in names:
        with suppress(LabError, ProcessLookupError):  # another run may be doing the same
            for pid in _run(["ip", "netns", "pids", name]).split():
                os.kill(int(pid), signal.SIGKILL)
    _delete(names)


def ip_batch(lines: Iterable[str], *options: str) -> Batch:
    """Start one `ip` process for all the lines; `finish` waits for it."""
    batch = Batch(
        subprocess.Popen(["ip", *options, "-batch", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        list(lines),
    )
    assert batch.process.stdin
    with batch.process.stdin as stdin:
        stdin.writelines(f"{line}\n" for line in batch.lines)
    return batch


def finish(batches: Iterable[Batch]) -> None:
    """Wait for all the batches, then raise for those that failed."""
    failures = [failure for batch in batches if (failure := batch.failure())]
    if failures:
        raise LabError("\n".join(failures))


def _entries() -> list[Path]:
    return list(DIRECTORY.iterdir()) if DIRECTORY.is_dir() else []


def _delete(names: Sequence[str]) -> None:
    """Delete the namespaces; it is no fault if another run was quicker."""
    if not names:
        return
    try:
        finish([ip_batch((f"netns delete {name}" for name in names), "-force")])
    except LabError:
        if any((DIRECTORY / name).exists() for name in names):
            raise


def _run(argv: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    result = subprocess.run(
        argv, input=stdin, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        message = f"exit {result.returncode} of {argv!r}: {result.stderr.strip() or result.stdout.strip()}"
        raise LabError(message)
    return result.stdout
