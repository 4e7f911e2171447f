"""A guest kernel with IPVS (User-Mode Linux), for machines whose kernel has no ip_vs.

The guest uses the root file system of the host, with its programs, the virtual environment and the tests. It can write
only to the project's directory, and to /run, /tmp and /var/tmp, which are separate and empty at the start. Its only
network is its own loopback. `build.sh` builds the kernel. Starting a guest needs no root privileges: its root user is
the user of the host, and can read the same files.

Nothing on the host is changed outside the project's directory. The guest ends with the runner, however that ends.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import IO

PROJECT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).parent
_INIT = _HERE / "init.sh"
_CACHE = PROJECT / ".cache" / "guest"
_SEED_BYTES = 64
_LAST_LINES = 60
"""Lines of the console in the error of a guest without a result: a panic is one line and a long call trace."""


class GuestError(Exception):
    """The guest cannot be built, or did not complete its job; the message has the reason."""


def kernel() -> Path:
    """Return the guest kernel; build it first if this machine has none.

    Raises:
        GuestError: the kernel cannot be built.
    """
    built = subprocess.run([_HERE / "build.sh"], stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode:
        message = "the guest kernel is missing"
        raise GuestError(message)
    return Path(built.stdout.strip())


def run(argv: Sequence[str], *, memory: str = "3G", timeout_seconds: float = 600.0, init: Path = _INIT) -> int:
    """Boot a guest, run a command in it in the project's directory, and return its exit status.

    Standard output and error of the command go to standard output. The environment is not passed on.

    Raises:
        GuestError: the guest cannot be built, or ended without an exit status of the command: it did not boot, its
        kernel
            panicked, or the time limit was exceeded. The message has the last lines of its console.
    """
    linux = kernel()
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as directory:
        job, status, errors, seed = (Path(directory) / name for name in ("job", "status", "errors", "seed"))
        seed.write_bytes(os.urandom(_SEED_BYTES))
        job.write_text(f"cd {shlex.quote(str(PROJECT))}\nexport HOME=/tmp GUEST=1\n{shlex.join(argv)}\n")
        words = (
            *("rootfstype=hostfs", "ro", f"init={init}", f"mem={memory}", "quiet", "loglevel=1"),
            *("con=null", "con0=null,fd:1", "ssl=null"),
            # Unknown parameters on the kernel's command line become the environment of the first process.
            *(f"GUEST_SHARED={PROJECT}", f"GUEST_JOB={job}", f"GUEST_STATUS={status}", f"GUEST_SEED={seed}"),
        )
        with errors.open("w") as stderr:
            last_lines, seconds = _boot([linux, *words], stderr, timeout_seconds)
        if status.exists():
            return int(status.read_text())
        # Before its console works, and when the host refuses a system call, the kernel writes to standard error.
        last_lines = [*errors.read_text(errors="replace").splitlines()[-_LAST_LINES:], *last_lines]
    message = "\n".join((f"the guest ended without a result after {seconds:.0f} s; its last lines:", *last_lines))
    raise GuestError(message)


def _boot(argv: Sequence[str | Path], stderr: IO[str], timeout_seconds: float) -> tuple[list[str], float]:
    """Run the kernel until it exits, print its console, and return the last lines and the run time in seconds."""
    started = monotonic()
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        # A process group of its own: every process of the guest is also a process of the host.
        process_group=0,
    ) as process:

        def end(reason: str) -> None:
            last_lines.append(reason)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = Timer(timeout_seconds, end, [f"ended after {timeout_seconds:g} s, the time limit"])
        timer.start()
        try:
            assert process.stdout is not None
            rest = ""
            # Not line by line: a test run writes a dot for each test.
            while text := os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace"):
                sys.stdout.write(text)
                sys.stdout.flush()
                *lines, rest = (rest + text).split("\n")
                last_lines.extend(line.rstrip() for line in lines)
            process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                end("ended with its runner")
    return list(last_lines), monotonic() - started
