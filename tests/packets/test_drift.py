"""Drift: rules that are changed by hand in each table are named with their Service, counted, logged and repaired."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import msgspec
import pytest
import yaml

from pyproxy.backends.drift import DriftDocument
from tests.lab.waiting import wait_until

from .cluster import FLAGS, PYPROXY
from .modes import MODES, Mode
from .objects import ingress, node, port, service, slices
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

WEB = service(
    "web",
    170,
    port(80, node_port=30170),
    type="LoadBalancer",
    ingress=ingress(170),
    loadBalancerSourceRanges=["192.0.2.0/25", "2001:db8::/33"],
)
PINNED = service("pinned", 171, port(53, "UDP"), sessionAffinity="ClientIP")
EMPTY = service("empty", 172, port(80, node_port=30172), type="NodePort")
OBJECTS = [node("node1"), WEB, *slices(WEB, "pod1-1", "pod2-1"), PINNED, *slices(PINNED, "pod1-1"), EMPTY]
FIRST_SYNC_SECONDS = 60.0
CHANGED = re.compile(r"IPv4: (\S+?)(?::\S+)? (?:TCP|UDP): changed by another program, repaired: ")


class Rule(NamedTuple):
    """A rule of a Service in the kernel."""

    service: str
    table: str
    text: str


class AgentNode:
    """An agent in the namespace of the test, and its files."""

    def __init__(self, mode: Mode, folder: Path) -> None:
        self.mode = mode
        self.log = folder / "log"
        self.manifests = folder / "objects.yaml"
        self.manifests.write_text(yaml.safe_dump_all(OBJECTS))
        self.socket = f"--control-socket={folder / 'control'}"
        self.flags = (*mode.flags, "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56")
        self.process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self, interval: str) -> Iterator[None]:
        """Run the agent, after its first sync."""
        words = [PYPROXY, "run", *FLAGS, *self.flags, f"--manifests={self.manifests}", self.socket]
        servers = ["--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address="]
        command = [*words, *servers, f"--drift-check-interval={interval}"]
        with self.log.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as self.process:
            try:
                wait_until(lambda: "first sync done" in self.log.read_text(), "the first sync", FIRST_SYNC_SECONDS)
                yield
            except TimeoutError:
                print(self.log.read_text())  # pytest shows it
                raise
            finally:
                self.process.terminate()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the agent for a while, so that it cannot repair what the test has not looked at."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def drift(self, *words: str) -> tuple[int, DriftDocument]:
        """Return exit code and document of the command."""
        argv = [PYPROXY, "drift", self.socket, *self.flags, *words, "-o", "json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode in {0, 3}, done.stderr
        return done.returncode, msgspec.json.decode(done.stdout, type=DriftDocument)

    def drift_from_files(self) -> tuple[int, DriftDocument]:
        """Return the same for the kernel and the rules for the objects, without the agent."""
        return self.drift(f"--manifests={self.manifests}")

    def all_rules(self) -> str:
        """Return all rules without counters, sorted: a hook that is restored may be in another order."""
        text = "".join(run(*command) for command in self.mode.dumps)
        lines = re.sub(r"^#.*\n| \[\d+:\d+\]$|packets \d+ bytes \d+", "", text, flags=re.MULTILINE).splitlines()
        return "\n".join(sorted(lines))

    def rules_to_change(self) -> list[Rule]:
        """Return an IPv4 rule of a Service from each chain, set, table of IPVS or set of ipset."""
        argv = [PYPROXY, "dump-rules", "--live", "--family=ipv4", "-o", "json", *self.mode.flags[:2]]
        [family] = msgspec.json.decode(run(*argv))["families"]
        found: dict[tuple[str, str], Rule] = {}
        for each in family["services"]:
            for item in each["rules"]:
                text = item["rule"].partition("  # ")[0]
                kind = text.split()[0] if item["table"] == "ipvs" else item["chain"]
                found[item["table"], re.sub("-[A-Z2-7]{16}$", "", kind)] = Rule(each["name"], item["table"], text)
        # A virtual server is deleted with its real servers, so it comes last.
        return sorted(found.values(), key=lambda rule: rule.text.startswith("-A ") and rule.table == "ipvs")

    def metric(self, name: str) -> float:
        """Return the sum of a metric of IPv4 over its other labels."""
        with urlopen("http://127.0.0.1:10249/metrics", timeout=20) as answer:
            text = answer.read().decode()
        values = re.findall(rf'^{name}{{.*ip_family="IPv4".*}} (\S+)$', text, re.MULTILINE)
        assert values
        return sum(map(float, values))


@pytest.fixture(params=MODES, ids=str)
def agent_node(request: pytest.FixtureRequest, tmp_path: Path) -> AgentNode:
    """Provide a node in each mode."""
    run("ip", "link", "set", "lo", "up")
    return AgentNode(request.param, tmp_path)


def delete(on: AgentNode, rule: Rule) -> None:
    """Delete a rule, as it is listed, with the tool of its table."""
    words = shlex.split(rule.text)
    match rule.table:
        case "ipvs" if words[0] == "-a":
            run("ipvsadm", "-d", *words[1:5])
        case "ipvs":
            run("ipvsadm", "-D", *words[1:3])
        case "ipset":
            run("ipset", "del", *words[1:3])
        case "route":
            run("ip", "route", "del", "table", "local", *words)
        case "ip pyproxy":
            run("nft", f"delete element {rule.table} {rule.text}")
        case _:
            run(on.mode.iptables[0], "-w", "-t", rule.table, "-D", *words[1:])


def test_deleted_rules(agent_node: AgentNode) -> None:
    """A rule that was deleted in each table is named with its Service, counted once and restored; the rest stays."""
    with agent_node.running("1s"):
        before = agent_node.all_rules()
        assert 0 == agent_node.drift_from_files()[0]
        rules = agent_node.rules_to_change()
        counted = agent_node.metric("pyproxy_drift_entries_total")
        with agent_node.paused():
            for rule in rules:
                delete(agent_node, rule)
            code, found = agent_node.drift_from_files()
        missing = {(each.name, text) for each in found.services for text in each.missing}
        texts = [*(text for _, text in missing), *(text for each in found.shared for text in each.missing)]

        assert (3, set()) == (
            code,
            {rule for rule in rules if (rule.service, f"{rule.table}: {rule.text}") not in missing},
        )
        assert [] == [each.unexpected for each in found.services if each.unexpected]
        wait_until(lambda: before == agent_node.all_rules(), "the repair")
        wait_until(lambda: agent_node.metric("pyproxy_drift_entries_total") > counted, "the count")
        named = {f"default/{rule.service}" for rule in rules}
        wait_until(lambda: named <= set(CHANGED.findall(agent_node.log.read_text())), f"lines about {named}")
        assert counted + len(texts) == agent_node.metric("pyproxy_drift_entries_total")
        assert 0 == agent_node.drift_from_files()[0]


ADDED = {
    "iptables": [
        (
            "IPTABLES -w -t nat -A KUBE-SERVICES -s 192.0.2.7 -j RETURN",
            "nat: -A KUBE-SERVICES -s 192.0.2.7/32 -j RETURN",
        ),
        (
            "IPTABLES -w -t filter -A KUBE-FORWARD -s 192.0.2.7 -j RETURN",
            "filter: -A KUBE-FORWARD -s 192.0.2.7/32 -j RETURN",
        ),
    ],
    "nftables": [
        ("nft add element ip pyproxy cluster-ips '{ 192.0.2.7 }'", "ip pyproxy: cluster-ips { 192.0.2.7 }"),
        ("nft add rule ip pyproxy filter-forward counter", "ip pyproxy: layout changed externally"),
    ],
    "ipvs": [
        ("ipvsadm -a -t CLUSTER_IP:80 -r 192.0.2.7:80 -m", "ipvs: -a -t CLUSTER_IP:80 -r 192.0.2.7:80 -m -w 1"),
        (
            "IPTABLES -w -t nat -A KUBE-SERVICES -s 192.0.2.7 -j RETURN",
            "nat: -A KUBE-SERVICES -s 192.0.2.7/32 -j RETURN",
        ),
    ],
}
"""By mode, commands that add a rule to each table, and the rule as it is shown."""


def test_added_rules(agent_node: AgentNode) -> None:
    """A rule that another program added to each table is shown as unexpected, and removed; the rest stays."""
    ip = WEB["spec"]["clusterIP"]
    mode = agent_node.flags[0].removeprefix("--proxy-mode=")
    with agent_node.running("1s"):
        before = agent_node.all_rules()
        with agent_node.paused():
            for command, _ in ADDED[mode]:
                program = (*agent_node.mode.iptables, "")[0]
                run("sh", "-c", command.replace("IPTABLES", program).replace("CLUSTER_IP", ip))
            code, found = agent_node.drift_from_files()
        groups = [*(each.unexpected for each in found.services), *(each.unexpected for each in found.shared)]
        unexpected = [text for group in groups for text in group]

        assert (3, []) == (code, [rule for _, rule in ADDED[mode] if rule.replace("CLUSTER_IP", ip) not in unexpected])
        wait_until(lambda: before == agent_node.all_rules(), "the repair")
        wait_until(lambda: "changed by another program" in agent_node.log.read_text(), "a line in the log")


@pytest.mark.parametrize(
    "agent_node", [mode for mode in MODES if mode.name in {"iptables-legacy", "ipvs"}], indirect=True, ids=str
)
def test_the_agent_answers(agent_node: AgentNode) -> None:
    """Without checks, the agent shows a change that the kernel does not report, and does not repair it."""
    with agent_node.running("0"):
        assert 0 == agent_node.drift()[0]
        kind = "-a " if agent_node.mode.name == "ipvs" else "-A KUBE-SVC-"
        rule = next(each for each in agent_node.rules_to_change() if each.text.startswith(kind) and "8080" in each.text)
        words = shlex.split(rule.text)
        if agent_node.mode.name == "ipvs":
            other = rule.text.removesuffix("1") + "7"
            run("ipvsadm", "-e", *words[1:5], "-m", "-w", "7")
        else:
            other = rule.text.replace(":8080", ":9090")
            chain = run(agent_node.mode.iptables[0], "-w", "-t", "nat", "-S", words[1]).splitlines()[1:]
            position = str(1 + chain.index(rule.text))
            run(agent_node.mode.iptables[0], "-w", "-t", "nat", "-R", words[1], position, *shlex.split(other)[2:])
        disturbed = agent_node.all_rules()
        code, found = agent_node.drift()

        assert (3, "agent", []) == (code, found.source, found.shared)
        assert [(rule.service, [f"{rule.table}: {rule.text}"], [f"{rule.table}: {other}"])] == [
            (each.name, each.missing, each.unexpected) for each in found.services
        ]
        assert disturbed == agent_node.all_rules()
