"""``pyproxy doctor`` on nodes with and without a running agent."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pyproxy.config.config import Config
from pyproxy.doctor import agent
from pyproxy.doctor.checks import CHECKS
from pyproxy.doctor.finding import Severity
from pyproxy.doctor.inputs import PYPROXY, AgentAnswers, Inputs, InstalledRules, Objects
from pyproxy.model.address import ListenAddress, parse_ip
from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import EndpointsValues, ServiceValues

from .cluster import FLAGS, wait_until
from .cluster import PYPROXY as PROGRAM
from .doctor_checks import NODE, findings, only, write
from .objects import port, service
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")


@contextmanager
def running_agent(folder: Path, *flags: str) -> Iterator[Path]:
    """Run an agent without objects; return the directory of its manifests."""
    run("ip", "link", "set", "lo", "up")
    manifests = folder / "manifests"
    manifests.mkdir()
    own = (f"--manifests={manifests}", "--hostname-override=node1", f"--control-socket={folder / 'control'}", *flags)
    servers = ("--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=127.0.0.1")
    command = [PROGRAM, "run", *FLAGS, *own, *servers]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: bool(answers().readyz.get("ready")), "the agent's first sync")
            yield manifests
        finally:
            process.terminate()


def answers() -> AgentAnswers:
    """Return what the agent answers at its usual addresses."""
    return asyncio.run(agent.ask_agent(Config()))


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    argv = [PROGRAM, "doctor", "--node=node1", f"--control-socket={folder / 'control'}", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_healthy_node(tmp_path: Path, mode: str) -> None:
    """A node with a running agent has no warnings and no failures, and the command changes no rule."""
    write("ipv4/ip_forward", 1)
    with running_agent(tmp_path, f"--proxy-mode={mode}"):
        before = run("nft", "--stateless", "list", "ruleset")
        done = doctor(tmp_path, "-o", "json")
        after = run("nft", "--stateless", "list", "ruleset")

    report = json.loads(done.stdout)
    assert [] == [each for each in report["findings"] if each["severity"] in {"warn", "fail"}]
    assert (0, "") == (done.returncode, done.stderr)
    assert before == after
    checked = {each["check"] for each in report["findings"] if not each["text"].startswith("not checked")}
    assert {check.name for check in CHECKS} - {"node-ip"} == checked


def test_namespace_without_rules(tmp_path: Path) -> None:
    """A machine without any proxy has no warnings, and no table is created."""
    write("ipv4/ip_forward", 1)

    done = doctor(tmp_path)

    assert (0, "", "") == (done.returncode, done.stderr, run("nft", "list", "ruleset"))
    assert done.stdout.splitlines()[-1].endswith(" not run (-v)")


def test_stopped_agent(tmp_path: Path) -> None:
    """Our rules without an agent are a failure."""
    write("ipv4/ip_forward", 1)
    with running_agent(tmp_path, "--proxy-mode=nftables"):
        pass

    done = doctor(tmp_path)

    assert 2 == done.returncode
    assert "FAIL  pyproxy's rules are in the kernel, but no pyproxy answers on http://127.0.0.1:10249" in done.stdout


def test_other_proxy_beside_ours(tmp_path: Path) -> None:
    """A process named kube-proxy in this network namespace is found."""
    other = tmp_path / "kube-proxy"
    other.symlink_to("/bin/sleep")
    with subprocess.Popen([other, "60"]) as process:
        try:
            wait_until(
                lambda: Path(f"/proc/{process.pid}/comm").read_text() == "kube-proxy\n", "the name of the process"
            )
            text = f"another proxy is running on this node: process {process.pid}, {other}"
            inputs = Inputs(Config(), NODE, agent=AgentAnswers(PYPROXY, "nftables"))
            assert (Severity.FAIL, text) == only("other-proxy", inputs)
            assert Severity.INFO is only("other-proxy", Inputs(Config(), NODE))[0]
        finally:
            process.terminate()


def test_agent_whose_node_is_missing_objects() -> None:
    """Pending changes, lost watches and quarantined Service ports are read from the answers of the agent."""
    metrics = {
        'pyproxy_watch_up{kind="Service"}': 0.0,
        'pyproxy_watch_up{kind="Node"}': 1.0,
        'pyproxy_quarantined_service_ports{ip_family="IPv4"}': 2.0,
    }
    status = {
        "IPv4": {"lastUpdated": "2026-01-01T00:00:00Z", "healthy": False},
        "IPv6": {"lastUpdated": "2026-01-01T00:00:00Z", "healthy": True},
    }
    readyz: dict[str, object] = {"firstSyncDone": True, "lastSyncGood": True, "watchesLostSeconds": 12.5}
    healthz: dict[str, object] = {"status": status}
    inputs = Inputs(
        Config(), NODE, agent=AgentAnswers(PYPROXY, "iptables", "http://x", "http://y", metrics, healthz, readyz)
    )

    text = "IPv4: changes are pending for too long; last sync 2026-01-01T00:00:00Z"
    assert (Severity.FAIL, text) == only("last-sync", inputs)
    text = "the watch of Service is lost, for 12 s: changes do not arrive"
    assert (Severity.WARN, text) == only("watches", inputs)
    text = "the kernel refused the rules of 2 Service ports, which are quarantined"
    assert (Severity.FAIL, text) == only("quarantine", inputs)


def test_rules_that_cannot_be_read() -> None:
    """Without the right to read rules, checks of rules are reported as not checked."""
    found = findings("stale-rules", Inputs(Config(), NODE, rules=InstalledRules(error="nf_tables: not permitted")))

    text = "not checked: rules of other proxies and modes: nf_tables: not permitted"
    assert [(Severity.WARN, text)] == [(each.severity, each.text) for each in found]


def test_metrics_address() -> None:
    """A server at the usual address that is not a proxy's is not taken for one."""
    address = ListenAddress(parse_ip("127.0.0.1"), 10249)

    assert "" == asyncio.run(agent.ask_agent(replace(Config(), metrics_bind_address=address))).proxy


def test_service_that_the_agent_serves(tmp_path: Path) -> None:
    """Services that do not work are found by asking the running agent, without files."""
    write("ipv4/ip_forward", 1)
    broken = service("broken", 170, port(80), externalIPs=["192.0.2.1"])
    with running_agent(tmp_path, "--proxy-mode=nftables") as manifests:
        run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        (manifests / "broken.yaml").write_text(json.dumps(broken))
        wait_until(lambda: "default/broken" in doctor(tmp_path).stdout, "the Service in the report")
        done = doctor(tmp_path)

    assert 1 == done.returncode
    assert "WARN  default/broken does not work: the Service has no EndpointSlice" in done.stdout
    assert "INFO  default/broken: ExternalIP 192.0.2.1 is an address of this node" in done.stdout


def test_source_ranges_without_clients() -> None:
    """Source ranges that no client on a network can have are a warning."""
    values = ServiceValues(
        *("default", "web", "", None, None, EndpointsValues(0, 0, 0, []), None, ["127.0.0.0/8", "0.0.0.0/32"]),
        *(State.OK, None, "", []),
    )

    text = "default/web: no client has an address in the source ranges 127.0.0.0/8, 0.0.0.0/32"
    assert (Severity.WARN, text) == only("source-ranges", Inputs(Config(), NODE, Objects((values,))))
    values.source_ranges.append("192.0.2.0/24")
    assert [] == findings("source-ranges", Inputs(Config(), NODE, Objects((values,))))
