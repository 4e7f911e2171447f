"""Runs of doctor for the status page: the result, its age, and commands that fail. The commands are small programs."""

from __future__ import annotations

import json
import sys
import time
from itertools import count
from pathlib import Path

import click
import pytest

from pyproxy.agent import status_doctor
from pyproxy.agent.status_doctor import DoctorRuns, doctor_command
from pyproxy.cli.doctor import command
from pyproxy.config.config import Config, ProxyMode
from pyproxy.model.address import ListenAddress, parse_ip, parse_network

FINDING = {"check": "forwarding", "severity": "fail", "text": "off", "evidence": "sysctl", "fix": "set it"}
OK = {"check": "node-ip", "severity": "ok", "text": "node", "evidence": "", "fix": ""}


def runs(program: str, wait_seconds: float = 20.0) -> DoctorRuns:
    """Return the runs of a program in Python."""
    return DoctorRuns([sys.executable, "-c", program], count(1000).__next__, wait_seconds)


def printing(*findings: object) -> str:
    """Return a program that prints a report."""
    return f"print({json.dumps(json.dumps({'kind': 'DoctorReport', 'findings': findings}))}); raise SystemExit(2)"


def test_findings() -> None:
    """Findings are shown with the time of the run; checks that found nothing are counted."""
    found = runs(printing(FINDING, OK, OK)).status()

    assert (["off"], 2, "1970-01-01T00:16:40Z", "") == (
        [each.text for each in found.findings],
        found.ok_count,
        found.time,
        found.error,
    )
    assert found.seconds is not None


def test_a_fresh_result_is_shown_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks do not run again while their result is fresh, and run again once it is old."""
    log = tmp_path / "log"
    doctor = runs(f"open({str(log)!r}, 'a').write('x'); {printing(OK)}")
    for _ in range(3):
        doctor.status()
    assert "x" == log.read_text()
    monkeypatch.setattr(status_doctor, "_FRESH_SECONDS", 0.0)
    doctor.status()
    assert "xx" == log.read_text()


def test_a_slow_run_delays_a_request_for_a_limited_time() -> None:
    """A request gets the last result, or none, while the checks are running; they do not run twice at a time."""
    doctor = runs(f"import time; time.sleep(0.5); {printing(OK)}", wait_seconds=0.01)
    first = doctor.status()
    assert (None, 0) == (first.time, first.ok_count)
    deadline = time.monotonic() + 20
    while (found := doctor.status()).time is None:
        assert time.monotonic() < deadline

    assert ("1970-01-01T00:16:40Z", 1) == (found.time, found.ok_count)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("print('[]')", "pyproxy doctor failed: exit status 0"),
        ("import sys; sys.exit('Error: no rights')", "pyproxy doctor failed: Error: no rights"),
        ("import os; print(os.environ['NOTIFY_SOCKET'])", "pyproxy doctor failed: KeyError: 'NOTIFY_SOCKET'"),
    ],
)
def test_failures(program: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails is reported with its last line; it does not get the sockets of systemd."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    assert error == runs(program).status().error


def test_a_command_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that does not end is stopped, and reported."""
    monkeypatch.setattr(status_doctor, "_RUN_SECONDS", 0.1)

    assert "pyproxy doctor did not end within 0 s" == runs("import time; time.sleep(60)").status().error


def test_a_command_that_is_missing() -> None:
    """A missing program is reported."""
    doctor = DoctorRuns(["/nonexistent/python"], time.time)

    assert "pyproxy doctor cannot be started: No such file or directory" == doctor.status().error


def test_the_command_has_the_settings_of_the_agent() -> None:
    """Doctor accepts every flag, and reads from them what the agent's configuration has."""
    config = Config(
        cluster_cidr=(parse_network("10.0.0.0/8"), parse_network("fd00::/48")),
        metrics_bind_address=ListenAddress(parse_ip("127.0.0.2"), 10249),
        healthz_bind_address=None,
        control_socket="/a/b c",
    )
    argv = doctor_command(config, ProxyMode.IPVS, "node-1")
    flags = command.make_context("doctor", argv[argv.index("doctor") + 1 :]).params

    assert isinstance(command, click.Command)
    assert (ProxyMode.IPVS, "node-1", config.cluster_cidr, config.metrics_bind_address, "/a/b c") == (
        flags["proxy_mode"],
        flags["hostname_override"],
        flags["cluster_cidr"],
        flags["metrics_bind_address"],
        flags["control_socket"],
    )
    assert flags["healthz_bind_address"] is None


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a thread cannot be started, the status says so, and a later request tries again."""
    doctor = runs(printing(OK))

    def refuse(*_: object, **__: object) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread", refuse)
        refused = doctor.status()

    assert "pyproxy doctor cannot be started: can't start new thread" == refused.error
    assert (1, "") == ((later := doctor.status()).ok_count, later.error)
