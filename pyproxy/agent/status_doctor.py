"""Runs ``pyproxy doctor`` for the status page, at most twice a minute.

The checks run in a child process: they read whole tables of rules and import what the agent does not need, so that in the
agent they would cost memory, and time of its loop. The threads of requests wait for a result for a few seconds only.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

import msgspec
from msgspec import Struct

from pyproxy.config.config import OPTIONS, Config, ProxyMode
from pyproxy.serve.agent_status import MOST_ITEMS, DoctorStatus, Finding
from pyproxy.serve.status_text import time_text

_ATTRIBUTES = (
    *("hostname_override", "proxy_mode", "service_proxy_name", "bind_address", "cluster_cidr", "nodeport_addresses"),
    *("metrics_bind_address", "healthz_bind_address", "control_socket"),
)
"""The options that the checks depend on."""
# Age up to which a result is shown without a new run.
_FRESH_SECONDS = 30.0
# Time for which a request waits for a run; one check takes a second.
_WAIT_SECONDS = 4.0
_RUN_SECONDS = 60.0


class _Report(Struct):
    findings: list[Finding]


def doctor_command(config: Config, mode: ProxyMode, node_name: str) -> list[str]:
    """Return the command line that checks the node of an agent."""
    config = replace(config, proxy_mode=mode, hostname_override=node_name)
    values = ((OPTIONS[name], OPTIONS[name].value(config)) for name in _ATTRIBUTES)
    flags = [f"--{about.flag}={about.grammar.write(value)}" for about, value in values if value is not None]
    return [sys.executable, "-P", "-m", "pyproxy", "doctor", "--output=json", *flags]


class DoctorRuns:
    """The last result of the checks. Call `status` in any thread.

    Args:
        command: prints the report as JSON.
        clock: returns the time in seconds since 1970.
    """

    def __init__(self, command: list[str], clock: Callable[[], float], wait_seconds: float = _WAIT_SECONDS) -> None:
        self._command = command
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._last = DoctorStatus(None, None, "", 0, [])
        self._ended_at: tuple[float, float] | None = None
        """Time of the last result on the clock, and as `monotonic` counts."""
        self._ended = threading.Event()
        self._ended.set()
        self._patient_until = 0.0
        """Until when requests wait for the run, as `monotonic` counts."""

    def status(self) -> DoctorStatus:
        """Return the last result. If it is old, start a run first, and wait until some seconds after its start."""
        with self._lock:
            is_fresh = self._ended_at is not None and monotonic() - self._ended_at[1] < _FRESH_SECONDS
            # The event is cleared under the lock, so that two requests at the same time start one run.
            if not is_fresh and self._ended.is_set():
                self._ended.clear()
                self._patient_until = monotonic() + self._wait_seconds
                try:
                    threading.Thread(target=self._run, name="doctor", daemon=True).start()
                except RuntimeError as error:  # no more threads: RLIMIT_NPROC, or the limit of the cgroup
                    self._last = msgspec.structs.replace(self._last, error=f"pyproxy doctor cannot be started: {error}")
                    self._ended.set()
        if not is_fresh:
            self._ended.wait(max(0.0, self._patient_until - monotonic()))
        with self._lock:
            last, ended_at = self._last, self._ended_at
        if ended_at is None:
            return last
        return msgspec.structs.replace(last, time=time_text(ended_at[0]), seconds=round(monotonic() - ended_at[1], 1))

    def _run(self) -> None:
        # systemd's variables are for the agent alone.
        env = {name: text for name, text in os.environ.items() if name not in {"NOTIFY_SOCKET", "WATCHDOG_USEC"}}
        error, findings = "", list[Finding]()
        try:
            done = subprocess.run(
                self._command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_RUN_SECONDS,
                check=False,
                env=env,
            )
            findings = msgspec.json.decode(done.stdout, type=_Report).findings
        except subprocess.TimeoutExpired:
            error = f"pyproxy doctor did not end within {_RUN_SECONDS:.0f} s"
        except OSError as failure:
            error = f"pyproxy doctor cannot be started: {failure.strerror}"
        except msgspec.MsgspecError:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            error = f"pyproxy doctor failed: {lines[-1]}"
        serious = [each for each in findings if each.severity != "ok"]
        result = DoctorStatus(None, None, error, len(findings) - len(serious), serious[:MOST_ITEMS])
        # The lock covers the two values only: a request that came during the run waits for the event, not for the lock.
        with self._lock:
            self._last, self._ended_at = result, (self._clock(), monotonic())
        self._ended.set()
