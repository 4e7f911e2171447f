"""pyproxy as a service of a real systemd: restarts, the watchdog, stopping and cleanup.

The tests share a machine, but do not depend on each other: each starts the service as it needs it.
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
    # Machines on which the tests run may not allow lowering the score.
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
    """Return the server that answers for the Service, or the outcome of the probe."""
    [outcome] = lab.client_pod.probe(tcp("10.96.0.10", 80, timeout_seconds=timeout_seconds))
    return outcome.server or outcome.verdict.name


def is_silent(lab: Lab) -> bool:
    """Return whether the Service does not answer."""
    return answer(lab, timeout_seconds=0.5) == Verdict.TIMEOUT.name


def start(machine: Machine) -> int:
    """Start the service as a user does, and return its process when it is ready."""
    machine.start("pyproxy")
    return int(machine.wait_for(UNIT, **ACTIVE)["MainPID"])


def restarted(machine: Machine, before: int) -> int:
    """Wait until systemd has replaced this process by a new one that is ready; return the new one."""
    machine.wait_for(UNIT, **ACTIVE, NRestarts="1")
    pid = int(machine.show(UNIT, "MainPID")["MainPID"])
    assert before != pid
    return pid


@pytest.fixture
def stopped(machine: Machine) -> None:
    """Stop the service and reset its restart counter."""
    machine.run("systemctl", "stop", "pyproxy")
    machine.attempt("systemctl", "reset-failed", "pyproxy")
    machine.start("pyproxy-cleanup")


def test_units_are_well_formed(machine: Machine) -> None:
    """`systemd-analyze verify` finds no problem in the units."""
    units = [f"/etc/systemd/system/{path.name}" for path in sorted((ROOT / "systemd").glob("*.service"))]

    # Nodes have manual pages, the machine has none.
    assert "" == machine.run("systemd-analyze", "verify", "--man=no", *units)


@pytest.mark.usefixtures("stopped")
def test_start_returns_when_services_answer(machine: Machine, lab: Lab) -> None:
    """`systemctl start` returns after the first sync: a Service answers at once."""
    assert is_silent(lab)

    machine.start("pyproxy")

    assert "pod1-1" == answer(lab)
    assert "" == "".join(re.findall(r"^[WEF]\d.*\n", machine.journal(UNIT), re.MULTILINE))


@pytest.mark.usefixtures("stopped")
def test_root_can_ask_the_agent(machine: Machine) -> None:
    """`pyproxy services` shows what the running agent has programmed; the socket is root's, and is gone after a stop."""
    start(machine)

    listed = json.loads(machine.run("pyproxy", "services", "default/web", "-o", "json"))

    assert "agent" == listed["source"]
    assert {("ok", "programmed")} == {(item["state"], item["sync"]) for item in listed["items"]}
    assert "600 root" == machine.run("stat", "--format=%a %U", "/run/pyproxy/control.sock").strip()
    machine.run("systemctl", "stop", "pyproxy")
    assert 1 == machine.attempt("test", "-e", "/run/pyproxy/control.sock").returncode


@pytest.mark.usefixtures("stopped")
def test_it_has_few_privileges(machine: Machine) -> None:
    """The running agent has two capabilities, cannot gain more, and cannot write to the system."""
    pid = start(machine)
    status = dict(line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").splitlines())

    assert ["0000000000003000"] * 3 == [status[name] for name in ("CapPrm", "CapEff", "CapBnd")]
    assert ("1", "2") == (status["NoNewPrivs"], status["Seccomp"])
    for path in ("/etc/pyproxy", "/usr", "/proc/sys/net/ipv4/ip_forward"):
        writable = machine.attempt("nsenter", f"--target={pid}", "--mount", "test", "-w", path)
        assert 1 == writable.returncode, path


@pytest.mark.usefixtures("stopped")
def test_a_crash_is_followed_by_a_restart(machine: Machine, lab: Lab) -> None:
    """After kill -9 the Service still answers, and systemd restarts the agent."""
    pid = start(machine)

    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pyproxy")

    assert "pod1-1" == answer(lab)
    restarted(machine, pid)
    assert "pod1-1" == answer(lab)


@pytest.mark.usefixtures("stopped")
def test_a_hang_is_detected(machine: Machine, lab: Lab) -> None:
    """A stopped agent sends no watchdog messages; systemd kills it and starts a new one."""
    machine.write(f"/run/systemd/system/{UNIT}.d/watchdog.conf", "[Service]\nWatchdogSec=4\n")
    machine.run("systemctl", "daemon-reload")
    pid = start(machine)

    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "pyproxy")

    restarted(machine, pid)
    assert "Watchdog timeout" in machine.journal(UNIT)
    assert "pod1-1" == answer(lab)


@pytest.mark.usefixtures("stopped")
def test_a_quiet_cluster_is_not_a_hang(machine: Machine) -> None:
    """An idle agent keeps running beyond the watchdog time-out."""
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
def test_stopping_keeps_services(machine: Machine, lab: Lab) -> None:
    """After a stop all rules stay; the cleanup service removes them, also when it is repeated."""
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
    """The cleanup service stops a running agent first, so that the rules are not restored."""
    start(machine)

    machine.start("pyproxy-cleanup")

    machine.wait_for(UNIT, **STOPPED)
    assert is_silent(lab)


@pytest.mark.usefixtures("stopped")
def test_kube_proxy_and_pyproxy_exclude_each_other(machine: Machine, lab: Lab) -> None:
    """Starting pyproxy stops a service named kube-proxy, and vice versa."""
    machine.write("/run/systemd/system/kube-proxy.service", "[Service]\nExecStart=/usr/bin/sleep infinity\n")
    machine.run("systemctl", "daemon-reload")
    machine.start("kube-proxy")

    start(machine)

    machine.wait_for("kube-proxy.service", ActiveState="inactive")
    machine.start("kube-proxy")
    machine.wait_for(UNIT, **STOPPED)
    machine.run("systemctl", "stop", "kube-proxy")
    assert "pod1-1" == answer(lab)
