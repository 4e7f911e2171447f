"""The programs that the tests run: where they are, how they are started, measured, waited for and ended."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from .namespace import command_inside

BINARIES = Path(__file__).parents[2] / ".cache" / "bin"
_POLL_SECONDS = 0.02
_STOP_SECONDS = 10.0
_LOG_LINES = 30


class ClusterError(Exception):
    """A tool of the cluster tests could not do its work; nothing is said about what is tested."""


def binary(name: str) -> str:
    """Return the path of a program that build.sh made."""
    path = BINARIES / name
    if not path.exists():
        message = f"{path} is missing: run tests/cluster/build.sh"
        raise ClusterError(message)
    return str(path)


def wait_until(
    condition: Callable[[], bool], what: str, *, timeout_seconds: float, poll_seconds: float = _POLL_SECONDS
) -> None:
    """Wait for something in another process, which can only be polled."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            message = f"not within {timeout_seconds} s: {what}"
            raise ClusterError(message)
        time.sleep(poll_seconds)


class Process:
    """A program that runs until it is stopped, or until the thread that started it ends, by whatever accident.

    It may not load kernel modules (kube-proxy in nftables mode would load ip_vs), so the host stays as it is.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        namespace: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the command inside a namespace, in the folder of its log, to which both its outputs are appended."""
        guard = ["setpriv", "--pdeathsig=KILL", "--bounding-set=-sys_module", "--"]
        self.log = log
        self._name = Path(command[0]).name
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command_inside(namespace, [*guard, *command]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, **(environment or {})},
                process_group=0,  # Ctrl-C is for the tests, which then stop it in the right order
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        """Return the running process."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process."""
        self.stop()

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout_seconds: float) -> None:
        """Wait for a condition that the process brings about; give up at once when it ends, and show its log."""

        def met() -> bool:
            if self._process.poll() is not None:
                message = f"exit code {self._process.returncode}, still waiting for: {what}"
                raise ClusterError(message)
            return condition()

        try:
            wait_until(met, what, timeout_seconds=timeout_seconds)
        except ClusterError as error:
            lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            message = "\n".join([f"{self._name}: {error}", *lines])
            raise ClusterError(message) from error

    def stop(self) -> int:
        """Ask the process to end, kill it when it takes too long over that, and return its exit status."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()
        return self._process.returncode

    def wait(self, timeout_seconds: float) -> int:
        """Wait until the process has ended by itself, and return its exit status."""
        return self._process.wait(timeout_seconds)

    def suspend(self) -> None:
        """Let it stand still, as on a machine that sleeps, until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process without asking."""
        self._process.kill()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the processor time used so far, that of finished children (iptables-restore, nft) included."""
        # The kernel's clock of a process is exact and counts ended threads; /proc has ticks of 10 ms.
        own = time.clock_gettime(~self.pid << 3 | 2)
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        children = int(fields[13]) + int(fields[14])
        return own + children / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Return the memory that is resident now, pages shared with others included."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """Return the most memory that was resident at one time; of this process, not of its children."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
