"""A Debian with a real systemd, booted on a node of a lab: with the node's network, and its own processes and files.

It boots from .cache/debian/machine without changing that; writes stay in memory. Commands run inside it as in a root
shell. It ends with its ``with`` block, or with the test run, even if that is killed.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.lab import Host, LabError, Process
from tests.lab.waiting import wait_until

ROOT = Path(__file__).parents[2]
TREE = ROOT / ".cache" / "debian" / "machine"
PATIENCE_SECONDS = 60.0
"""Far longer than any wait here takes; exceeded only after a bug."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """A booted machine; a context manager."""

    def __init__(self, host: Host, shared: Mapping[str, Path]) -> None:
        """Plan a machine with the network of a node, and read-only bind mounts of these directories."""
        self.host = host
        self._shared = shared
        self._init = 0

    def __enter__(self) -> Self:
        """Boot, and wait until booting is complete."""
        binds = [f"--bind-ro={ours}:{theirs}" for theirs, ours in self._shared.items()]
        self._nspawn: Process = self.host.start(
            *("setpriv", "--pdeathsig=KILL", "--", "systemd-nspawn", "--quiet", f"--directory={TREE}"),
            *("--volatile=overlay", "--boot", "--notify-ready=yes", "--console=pipe"),
            # The host may have no systemd that could register the machine.
            *("--register=no", "--keep-unit", f"--machine={self.host.namespace.name}", f"--hostname={self.host.name}"),
            *("--capability=CAP_NET_ADMIN", f"--network-namespace-path={self.host.namespace.path}"),
            *binds,
            env={"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
        )
        try:
            self._nspawn.wait_until_ready(PATIENCE_SECONDS)
            self._init = _child(self._nspawn.pid)
            # The machine can survive nspawn: two at the same time share a control group, which confuses both.
            self._init_descriptor = os.pidfd_open(self._init)
        except BaseException:
            self._nspawn.stop(PATIENCE_SECONDS)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Shut it down."""
        try:
            self._nspawn.stop(PATIENCE_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_descriptor, signal.SIGKILL)
            os.close(self._init_descriptor)

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a command inside and return its output; raises an error with the output if it fails."""
        result = self.attempt(*argv, stdin=stdin)
        if result.returncode:
            message = f"exit {result.returncode}: {shlex.join(argv)}\n{result.stdout}{result.stderr}"
            raise LabError(message)
        return result.stdout

    def attempt(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command inside and return the result with any exit status."""
        return subprocess.run(
            ["nsenter", f"--target={self._init}", "--all", "--", *argv],
            input=stdin,
            env={"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file inside, and create its parent directories."""
        self.run("mkdir", "-p", os.path.dirname(path))  # noqa: PTH120 - a path in the machine, not on the host
        self.run("tee", path, stdin=text)

    def start(self, unit: str) -> None:
        """Start a unit as a user does, and wait for it; raises an error with the log of the unit if it fails."""
        if self.attempt("systemctl", "start", unit).returncode:
            raise LabError(self.run("journalctl", "--no-pager", "--lines=60", f"--unit={unit}"))

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit."""
        lines = self.run("systemctl", "show", *(f"--property={name}" for name in names), unit).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def wait_for(self, unit: str, **wanted: str) -> dict[str, str]:
        """Wait until properties of a unit have these values, and return them and the main process."""
        try:
            wait_until(
                lambda: self.show(unit, *wanted) == wanted, f"{unit} with {wanted}", timeout_seconds=PATIENCE_SECONDS
            )
        except Exception as error:
            message = f"{error}\n{self.run('systemctl', 'status', '--full', '--lines=50', unit)}"
            raise LabError(message) from error
        return self.show(unit, *wanted, "MainPID")

    def journal(self, unit: str) -> str:
        """Return the log of a unit."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


def run(*argv: Sequence[str] | str, stdin: str = "") -> str:
    """Run a short command on the host and return its output; raises an error with the output if it fails."""
    words = [word for item in argv for word in ([item] if isinstance(item, str) else item)]
    result = subprocess.run(words, input=stdin, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        message = f"exit {result.returncode}: {shlex.join(words)}\n{result.stdout}{result.stderr}"
        raise LabError(message)
    return result.stdout


def _child(pid: int) -> int:
    """Return the init process of the machine, a child of nspawn."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
            return int(child)
    message = f"nspawn {pid} has no init"
    raise LabError(message)
