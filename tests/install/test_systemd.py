"""pyproxy as a service of a real systemd: what starts it again, what notices that it hangs, what is left when it stops.

The tests build on each other's machine but not on each other's state: each starts the service as it needs it.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.lab import Lab, Verdict, tcp
from tests.packets.objects import node, port, service, slices

from .conftest import ARCHIVES
from .machine import ROOT, Machine

UNIT = "pyproxy.service"
CLEANUP = "pyproxy-cleanup.service"
WEB = service("web", 10, port(80))
FLAGS = (
    "--proxy-mode=iptables --manifests=/etc/pyproxy/manifests --hostname-override=node1 --cluster-cidr=10.244.0.0/16,fd00:10:244::/48"
    # Machines that tests run on may not let anyone lower the score.
    " --conntrack-max-per-core=0 --oom-score-adj=0"
)
ACTIVE = {"ActiveState": "active", "SubState": "running"}
STOPPED = {"ActiveState": "inactive", "SubState": "dead"}


@pytest.fixture(scope="module", autouse=True)
def installed(machine: Machine) -> None:
    """Install the archive, one Service, and flags."""
    machine.run("sh", "-euc", f"tar -xzf {ARCHIVES}/pyproxy-*.tar.gz -C /root && /root/pyproxy-*/install")
    objects = [node("node1"), WEB, *slices(WEB, "pod1-1")]
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    machine.write("/etc/pyproxy/manifests/web.json", manifest)
    machine.write("/etc/default/pyproxy", f"PYPROXY_FLAGS={FLAGS}\n")


def answer(lab: Lab, *, timeout_seconds: float = 4.0) -> str:
    """Return who answers for the Service, or what else a packet to it meets."""
    [outcome] = lab.client_pod.probe(tcp("10.96.0.10", 80, timeout_seconds=timeout_seconds))
    return outcome.server or outcome.verdict.name


def is_silent(lab: Lab) -> bool:
    """Say whether nobody answers for the Service."""
    return answer(lab, timeout_seconds=0.5) == Verdict.TIMEOUT.name


def start(machine: Machine) -> int:
    """Start the service as a user does, and return its process, which is ready."""
    machine.start("pyproxy")
    return int(machine.wait_for(UNIT, **ACTIVE)["MainPID"])


def restarted(machine: Machine, before: int) -> int:
    """Wait until systemd has another process ready in place of this one; return that."""
    machine.wait_for(UNIT, **ACTIVE, NRestarts="1")
    pid = int(machine.show(UNIT, "MainPID")["MainPID"])
    assert before != pid
    return pid


@pytest.fixture
def stopped(machine: Machine) -> None:
    """Stop the service and forget how often it was restarted."""
    machine.run("systemctl", "stop", "pyproxy")
    machine.attempt("systemctl", "reset-failed", "pyproxy")
    machine.start("pyproxy-cleanup")


def test_units_are_well_formed(machine: Machine) -> None:
    """To systemd there is nothing wrong with the units."""
    units = [f"/etc/systemd/system/{path.name}" for path in sorted((ROOT / "systemd").glob("*.service"))]

    # Manual pages are not in the machine, but on nodes.
    assert "" == machine.run("systemd-analyze", "verify", "--man=no", *units)


@pytest.mark.usefixtures("stopped")
def test_start_returns_when_services_answer(machine: Machine, lab: Lab) -> None:
    """When `systemctl start` returns the first sync is done: a Service answers at once."""
    assert is_silent(lab)

    machine.start("pyproxy")

    assert "pod1-1" == answer(lab)
    assert "" == "".join(re.findall(r"^[WEF]\d.*\n", machine.journal(UNIT), re.MULTILINE))


@pytest.mark.usefixtures("stopped")
def test_it_has_few_rights(machine: Machine) -> None:
    """The running agent has two capabilities, no way to more, and cannot write to the system."""
    pid = start(machine)
    status = dict(line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").splitlines())

    assert ["0000000000003000"] * 3 == [status[name] for name in ("CapPrm", "CapEff", "CapBnd")]
    assert ("1", "2") == (status["NoNewPrivs"], status["Seccomp"])
    for path in ("/etc/pyproxy", "/usr", "/proc/sys/net/ipv4/ip_forward"):
        writable = machine.attempt("nsenter", f"--target={pid}", "--mount", "test", "-w", path)
        assert 1 == writable.returncode, path


@pytest.mark.usefixtures("stopped")
def test_a_crash_is_followed_by_a_restart(machine: Machine, lab: Lab) -> None:
    """After kill -9 the Service goes on answering, and systemd starts the agent again."""
    pid = start(machine)

    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pyproxy")

    assert "pod1-1" == answer(lab)
    restarted(machine, pid)
    assert "pod1-1" == answer(lab)


@pytest.mark.usefixtures("stopped")
def test_a_hang_is_noticed(machine: Machine, lab: Lab) -> None:
    """An agent that stands still gives no sign of life; systemd ends it and starts another."""
    machine.write(f"/run/systemd/system/{UNIT}.d/watchdog.conf", "[Service]\nWatchdogSec=4\n")
    machine.run("systemctl", "daemon-reload")
    pid = start(machine)

    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "pyproxy")

    restarted(machine, pid)
    assert "Watchdog timeout" in machine.journal(UNIT)
    assert "pod1-1" == answer(lab)


@pytest.mark.usefixtures("stopped")
def test_a_quiet_cluster_is_no_hang(machine: Machine) -> None:
    """An agent with nothing to do lives on past its watchdog's time."""
    machine.write(f"/run/systemd/system/{UNIT}.d/watchdog.conf", "[Service]\nWatchdogSec=4\n")
    machine.run("systemctl", "daemon-reload")
    pid = start(machine)
    first = machine.show(UNIT, "WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"]

    machine.run(
        *("timeout", "60", "sh", "-c"),
        f"until [ $(systemctl show --value -p WatchdogTimestampMonotonic {UNIT}) -gt {int(first) + 5_000_000} ]; do :; done",
    )

    assert (str(pid), "0") == tuple(machine.show(UNIT, "MainPID", "NRestarts").values())


@pytest.mark.usefixtures("stopped")
def test_stopping_leaves_services_alone(machine: Machine, lab: Lab) -> None:
    """After a stop all rules are there; the cleanup service removes them, and so do a second and a running agent's."""
    start(machine)

    machine.run("systemctl", "stop", "pyproxy")

    assert STOPPED | {"Result": "success"} == machine.show(UNIT, *STOPPED, "Result")
    assert "pod1-1" == answer(lab)

    machine.start("pyproxy-cleanup")

    assert is_silent(lab)
    for program in ("iptables-save", "ip6tables-save", "iptables-legacy-save"):
        assert "KUBE-SVC" not in machine.run(program)


@pytest.mark.usefixtures("stopped")
def test_cleanup_stops_the_agent_first(machine: Machine, lab: Lab) -> None:
    """Cleaning up under a running agent stops it: nobody writes back what was removed."""
    start(machine)

    machine.start("pyproxy-cleanup")

    machine.wait_for(UNIT, **STOPPED)
    assert is_silent(lab)


@pytest.mark.usefixtures("stopped")
def test_kube_proxy_and_pyproxy_exclude_each_other(machine: Machine, lab: Lab) -> None:
    """Starting pyproxy stops a service named kube-proxy, and the other way round."""
    machine.write("/run/systemd/system/kube-proxy.service", "[Service]\nExecStart=/usr/bin/sleep infinity\n")
    machine.run("systemctl", "daemon-reload")
    machine.start("kube-proxy")

    start(machine)

    machine.wait_for("kube-proxy.service", ActiveState="inactive")
    machine.start("kube-proxy")
    machine.wait_for(UNIT, **STOPPED)
    machine.run("systemctl", "stop", "kube-proxy")
    assert "pod1-1" == answer(lab)
