"""``pyproxy doctor`` on nodes with and without a running agent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pyproxy.config.config import Config
from pyproxy.doctor import agent
from pyproxy.doctor.checks import CHECKS
from pyproxy.doctor.finding import Severity
from pyproxy.doctor.inputs import PYPROXY, AgentAnswers, Inputs, InstalledRules
from pyproxy.model.address import ListenAddress, parse_ip
from tests.fakes.apiserver import ApiServer
from tests.lab.waiting import wait_until

from .cluster import FLAGS
from .cluster import PYPROXY as PROGRAM
from .doctor_checks import NODE, findings, only, write
from .gate import SYNC_PERIOD_FLAG, Gate
from .modes import NFT
from .objects import port, service
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")


@contextmanager
def running_agent(folder: Path, *flags: str, source: str = "", env: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Run an agent, by default with an empty directory of manifests, and wait for its first sync; return the directory."""
    run("ip", "link", "set", "lo", "up")
    manifests = folder / "manifests"
    manifests.mkdir()
    own = (source or f"--manifests={manifests}", "--hostname-override=node1", f"--control-socket={folder / 'control'}")
    servers = ("--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=127.0.0.1")
    command = [PROGRAM, "run", *FLAGS, *own, *servers, *flags]
    environment = {**os.environ, **(env or {})}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
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


@contextmanager
def gated_agent(folder: Path) -> Iterator[tuple[Gate, Path]]:
    """Run an agent in iptables mode behind a gate; return the gate and the directory of manifests."""
    write("ipv4/ip_forward", 1)
    gate = Gate(NFT, folder / "gate")
    with running_agent(folder, *NFT.flags, SYNC_PERIOD_FLAG, env=gate.env) as manifests:
        yield gate, manifests


def test_kernel_that_refuses_everything(tmp_path: Path) -> None:
    """While nothing can be written, the last sync is a failure with the time since when."""
    with gated_agent(tmp_path) as (gate, manifests):
        gate.be_busy()
        (manifests / "web.yaml").write_text(json.dumps(service("web", 170, port(80))))
        wait_until(lambda: "changes are pending for too long" in doctor(tmp_path).stdout, "pending changes")
        done = doctor(tmp_path)

    assert 2 == done.returncode
    assert "FAIL  IPv4: changes are pending for too long; last sync 20" in done.stdout


def test_service_that_the_kernel_refuses(tmp_path: Path) -> None:
    """A quarantined Service is a failure that names it."""
    with gated_agent(tmp_path) as (gate, manifests):
        gate.refuse_cluster_ip(170)
        (manifests / "web.yaml").write_text(json.dumps(service("web", 170, port(80))))
        wait_until(lambda: "quarantined" in doctor(tmp_path).stdout, "the quarantine")
        done = doctor(tmp_path)

    assert 2 == done.returncode
    assert "FAIL  the kernel refused the rules of 1 Service port, now quarantined" in done.stdout
    assert "FAIL  default/web is quarantined: " in done.stdout


def test_lost_watches(tmp_path: Path) -> None:
    """Without the API server, the watches that are lost are a warning with their kinds."""
    write("ipv4/ip_forward", 1)
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")

    async def watch() -> tuple[str, str]:
        server = ApiServer()
        await server.__aenter__()
        flags = ("--proxy-mode=nftables", "--bind-address=192.0.2.1")
        agent_ = running_agent(tmp_path, *flags, source=f"--master={server.url}")
        await asyncio.to_thread(agent_.__enter__)
        try:
            before = (await asyncio.to_thread(doctor, tmp_path)).stdout
            await server.__aexit__()
            await asyncio.to_thread(
                wait_until, lambda: "the watch of" in doctor(tmp_path).stdout, "a finding about the watches"
            )
            return before, (await asyncio.to_thread(doctor, tmp_path)).stdout
        finally:
            await asyncio.to_thread(agent_.__exit__, None, None, None)

    before, after = asyncio.run(watch())

    assert "WARN" not in before
    [line] = [line for line in after.splitlines() if "the watch of" in line]
    assert line.startswith("WARN")
    assert "Service" in line


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
