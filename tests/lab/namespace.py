"""Named network namespaces: creating them, running commands in them, removing them.

Nothing here changes the namespace of the caller. A name contains the pid of the process that created it. If that
process no longer runs, the namespace is abandoned: it is removed, with the processes in it. (A guest kernel that shares
this file system mounts its own /run, because pids of the host mean nothing there.)
"""

from __future__ import annotations

import ctypes
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
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
_used_prefixes: set[str] = set()


@dataclass(frozen=True, slots=True)
class Namespace:
    """One named network namespace."""

    name: str

    @property
    def path(self) -> Path:
        """The file by which the namespace can be entered."""
        return DIRECTORY / self.name

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs argv inside; it calls exec, so its pid becomes that of argv."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, argv: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run a short command inside and return its standard output; raises LabError with its error output."""
        return _run(self.command(argv), stdin=stdin, env=env)

    def ip_batch(self, lines: Iterable[str]) -> Batch:
        """Start one `ip` process that runs the lines inside."""
        return ip_batch(lines, "-netns", self.name)


@dataclass(frozen=True, slots=True)
class Batch:
    """One running `ip` process with its input lines."""

    process: subprocess.Popen[str]
    lines: Sequence[str]

    def failure(self) -> str | None:
        """Wait until it exits; return None for success, else the error output and the lines that failed."""
        assert self.process.stderr
        with self.process.stderr as stderr:
            said = stderr.read().strip()
        if not self.process.wait():
            return None
        named = [self.lines[int(number) - 1] for number in re.findall(r"^Command failed -:(\d+)$", said, re.MULTILINE)]
        return "\n".join([f"{self.process.args!r}: {said}", *named])


def enter(descriptor: int) -> None:
    """Move the calling thread into the network namespace of a file descriptor."""
    # Python has os.setns only since 3.12.
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def new_prefix() -> str:
    """Return a prefix for the names of one lab, unique among all runs on this machine."""
    prefix = f"pyp-{os.getpid()}-{next(_numbers)}-"
    _used_prefixes.add(prefix)
    return prefix


def create(names: Sequence[str]) -> list[Namespace]:
    """Create the namespaces with one `ip` process."""
    finish([ip_batch(f"netns add {name}" for name in names)])
    return [Namespace(name) for name in names]


def remove(prefix: str) -> None:
    """Remove all namespaces with this prefix; the kernel frees each one after its last process has exited."""
    _delete([path.name for path in _entries() if path.name.startswith(prefix)])


def is_abandoned(name: str) -> bool:
    """Return whether the name belongs to a run that no longer exists."""
    match = _NAME.fullmatch(name)
    if not match:
        return False
    pid = int(match["pid"])
    if pid == os.getpid():  # from an earlier process with the same pid, unless this one created it
        return f"pyp-{pid}-{match['number']}-" not in _used_prefixes
    return not Path(f"/proc/{pid}").exists()


def remove_abandoned() -> None:
    """Kill the processes in the namespaces of dead runs, and remove the namespaces."""
    names = [path.name for path in _entries() if is_abandoned(path.name)]
    for name in names:
        with suppress(LabError, ProcessLookupError):  # another run may be cleaning up at the same time
            for pid in _run(["ip", "netns", "pids", name]).split():
                os.kill(int(pid), signal.SIGKILL)
    _delete(names)


def ip_batch(lines: Iterable[str], *options: str) -> Batch:
    """Start one `ip` process for all lines; `finish` waits for it."""
    batch = Batch(
        subprocess.Popen(["ip", *options, "-batch", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        list(lines),
    )
    assert batch.process.stdin
    with batch.process.stdin as stdin:
        stdin.writelines(f"{line}\n" for line in batch.lines)
    return batch


def finish(batches: Iterable[Batch]) -> None:
    """Wait for all batches, then raise LabError if any failed."""
    failures = [failure for batch in batches if (failure := batch.failure())]
    if failures:
        raise LabError("\n".join(failures))


def _entries() -> list[Path]:
    return list(DIRECTORY.iterdir()) if DIRECTORY.is_dir() else []


def _delete(names: Sequence[str]) -> None:
    """Delete the namespaces; succeeds if another run has deleted them already."""
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
