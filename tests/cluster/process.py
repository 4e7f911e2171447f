"""The programs that the tests run: their paths, and starting, measuring, waiting for and ending them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.lab.waiting import wait_until

from .namespace import command_inside

BINARIES = Path(__file__).parents[2] / ".cache" / "bin"
_STOP_SECONDS = 10.0
_LOG_LINES = 30


class ClusterError(Exception):
    """A tool of the cluster tests failed; this is not a result about the tested program."""


def binary(name: str) -> str:
    """Return the path of a program built by build.sh."""
    path = BINARIES / name
    if not path.exists():
        message = f"{path} is missing: run tests/cluster/build.sh"
        raise ClusterError(message)
    return str(path)


def run_kubectl(
    command: Sequence[str], arguments: Sequence[str], kubeconfig: Path, stdin: str | None, timeout_seconds: float
) -> str:
    """Run kubectl, after the words that enter a namespace, and return its output; its files go beside the kubeconfig.

    Raises:
        ClusterError: it failed; the message has its error output.
    """
    result = subprocess.run(
        [*command, *arguments],
        input=stdin,
        env={**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(kubeconfig.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )
    if result.returncode:
        message = f"kubectl {' '.join(arguments)}: exit {result.returncode}: {result.stderr.strip()}"
        raise ClusterError(message)
    return result.stdout


class Process:
    """A program that runs until it is stopped, or until the thread that started it ends for any reason.

    It may not load kernel modules (kube-proxy in nftables mode would load ip_vs), so that the host does not change.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        namespace: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the command in a namespace, in the directory of its log, to which both its outputs are appended."""
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
                process_group=0,  # Ctrl-C should reach only the test process, which stops all programs in order
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        """Return the running process."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process."""
        self.stop()

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout_seconds: float) -> None:
        """Wait for a condition that the process causes; fail immediately with its log if it exits."""

        def holds() -> bool:
            if self._process.poll() is not None:
                message = f"exit code {self._process.returncode}, still waiting for: {what}"
                raise ClusterError(message)
            return condition()

        try:
            wait_until(holds, what, timeout_seconds=timeout_seconds)
        except (ClusterError, TimeoutError) as error:
            lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            message = "\n".join([f"{self._name}: {error}", *lines])
            raise ClusterError(message) from error

    def stop(self) -> int:
        """Terminate the process, kill it if that takes too long, and return its exit status."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()
        return self._process.returncode

    def wait(self, timeout_seconds: float) -> int:
        """Wait until the process exits, and return its exit status."""
        return self._process.wait(timeout_seconds)

    def suspend(self) -> None:
        """Stop the process, like a suspended machine, until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the process."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the CPU time so far, including that of finished children (iptables-restore, nft)."""
        # The CPU clock of a process is exact and includes ended threads; /proc has ticks of 10 ms.
        own = time.clock_gettime(~self.pid << 3 | 2)
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        children = int(fields[13]) + int(fields[14])
        return own + children / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Return the current resident memory, including shared pages."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """Return the peak resident memory of this process, without its children."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
