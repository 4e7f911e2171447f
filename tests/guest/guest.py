"""A guest kernel with IPVS on top of this one: User-Mode Linux, for machines whose own kernel has no ip_vs.

The guest shares the root file system, so programs, the virtual environment and the tests are the host's. It can only
read it, but for one directory (the project's) and for /run, /tmp and /var/tmp, which are its own and empty. It has no network
but its own loopback. Debian's package `user-mode-linux` has kernel and modules. No root needed to start it, but the host's
user is the guest's root, and what that one may not read the guest may not either.

Law: nothing of the host is changed outside the project's directory; leaving the runner, whichever way, ends the guest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
KERNEL = "linux.uml"
_MODULES = Path("/usr/lib/uml/modules")
_CACHE = PROJECT / ".cache" / "guest"
_INIT = Path(__file__).with_name("init.sh")
NO_STATUS = 125
"""Exit status where the guest ended without one: the kernel died, or time was up."""


class GuestError(Exception):
    """The guest cannot be started; the message says what is missing."""


def run(argv: Sequence[str], *, memory: str = "3G", timeout_seconds: float = 600.0) -> int:
    """Boot a guest, run a command in it in the project's directory, and return its exit status.

    Standard output and error of the command go to those of this process. The environment is not passed on.

    Raises:
        GuestError: kernel or modules are not installed.
    """
    if shutil.which(KERNEL) is None:
        message = f"{KERNEL} is not installed: Debian's package is user-mode-linux"
        raise GuestError(message)
    modprobe = _modprobe()
    with tempfile.TemporaryDirectory(dir=_CACHE) as directory:
        job, status = Path(directory) / "job", Path(directory) / "status"
        job.write_text(f"cd {shlex.quote(str(PROJECT))}\nexport HOME=/tmp GUEST=1\n{shlex.join(argv)}\n")
        _boot(memory, timeout_seconds, GUEST_JOB=job, GUEST_STATUS=status, GUEST_MODPROBE=modprobe)
        return int(status.read_text()) if status.exists() else NO_STATUS


def _boot(memory: str, timeout_seconds: float, **variables: Path) -> None:
    # What the kernel does not know on its command line becomes the environment of the first process.
    words = [f"{name}={value}" for name, value in variables.items()]
    process = subprocess.Popen(
        [
            KERNEL,
            *("rootfstype=hostfs", "ro", f"init={_INIT}", f"mem={memory}", "quiet", "loglevel=1"),
            *("con=null", "con0=null,fd:1", "ssl=null"),
            *(f"GUEST_SHARED={PROJECT}", *words),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A group of its own: every process of the guest is one of the host too.
        process_group=0,
    )
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        print(f"the guest was ended after {timeout_seconds:g} s", file=sys.stderr)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _modprobe() -> Path:
    """Return a program that loads the guest's modules, which are not where the host's would be."""
    if not _MODULES.is_dir():
        message = f"{_MODULES} is missing: Debian's package is user-mode-linux"
        raise GuestError(message)
    tree = _CACHE / "lib" / "modules"
    if not tree.is_symlink():
        tree.parent.mkdir(parents=True, exist_ok=True)
        tree.symlink_to(_MODULES)
    program = _CACHE / "modprobe"
    program.write_text(f'#!/bin/sh\nexec /sbin/modprobe -d {_CACHE} "$@"\n')
    program.chmod(0o755)
    return program
