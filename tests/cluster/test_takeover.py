"""Takeover from the real kube-proxy and rollback, while clients hold connections and make new ones."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket

import pytest

from tests.lab import tcp

from .api import JsonObject
from .controlplane import ControlPlane
from .kubeproxy import Backend
from .peer.objects import PROXY_NAME_LABEL, entry, port, service
from .takeover import OneNode

BACKENDS: tuple[Backend, ...] = ("iptables-legacy", "iptables-nft", "nftables")
LEFT = {
    "iptables-legacy": "KUBE-PROXY-CANARY",
    "iptables-nft": "KUBE-PROXY-CANARY",
    "nftables": "kube-proxy {",
}
"""A text in the rules of each of kube-proxy's modes that pyproxy's rules never contain."""
REMOVED_BY_KUBE_PROXY = ("nftables", "iptables-nft")
"""In nftables mode kube-proxy removes the iptables chains at start, before its own rules are complete."""
OURS = {"iptables-legacy": "PYPROXY-CANARY", "iptables-nft": "PYPROXY-CANARY", "nftables": "pyproxy {"}
SIDE_BY_SIDE_CHAIN = "PYPROXY-SERVICES"
"""A chain that only a pyproxy running side-by-side has."""


@pytest.fixture(scope="module")
def node(control_plane: ControlPlane) -> Iterator[OneNode]:
    """Provide a node without a proxy, with foreign rules."""
    with OneNode(control_plane) as made:
        made.load_foreign_rules()
        yield made


@pytest.fixture(autouse=True)
def _clean(node: OneNode) -> Iterator[None]:
    """Start each test without rules of either proxy, and check that foreign rules never change."""
    with node.cleaned_up():
        yield
    assert not [text for text in (*LEFT.values(), *OURS.values()) if text in node.rules()]


@pytest.mark.parametrize("ours", BACKENDS)
@pytest.mark.parametrize("its", BACKENDS)
def test_takeover_and_rollback(node: OneNode, its: Backend, ours: Backend) -> None:
    """No connection is lost through pyproxy during a takeover from kube-proxy and a rollback."""
    with ExitStack() as before:
        before.enter_context(node.kube_proxy(its)).catch_up()
        with node.traffic() as traffic:
            before.close()
            with node.pyproxy(ours) as agent:
                agent.wait_for_log("first sync done")
                traffic.note("pyproxy has synced")
                node.wait_for_rules(without=LEFT[its])
                traffic.note("kube-proxy's rules are gone")
            rollback_at = traffic.note("pyproxy has ended")
            with node.kube_proxy(its) as proxy:
                proxy.catch_up()
                is_back_at = traffic.note("kube-proxy has started")
                node.command("cleanup")
                after = node.rules()
                traffic.note("pyproxy's rules are gone")
                proxy.catch_up()
            broken = traffic.broken()

    assert [] == broken
    gap = (rollback_at, is_back_at) if (its, ours) == REMOVED_BY_KUBE_PROXY else (0.0, 0.0)
    assert [] == traffic.failures(outside=gap), traffic.notes
    assert all({"pod1-1", "pod2-1"} == set(report.replies) for report in traffic.reports())
    assert OURS[ours] not in after
    assert LEFT[its] in after


def test_waiting_for_a_running_kube_proxy(node: OneNode, tmp_path: Path) -> None:
    """While a kube-proxy runs nothing is written, log and supervisor get the reason, and its end is detected."""
    with ExitStack() as before, socket(AF_UNIX, SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        before.enter_context(node.kube_proxy("nftables")).wait_synced()
        rules = node.rules()
        with node.pyproxy("iptables-nft", environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as agent:
            agent.wait_for_log("waiting until the kube-proxy on this node is gone")
            said = supervisor.recv(4096).decode()
            meanwhile = node.rules()
            before.close()
            agent.wait_for_log("first sync done")
            log = agent.log.read_text()
            node.wait_for_rules(without=LEFT["nftables"])

    assert rules == meanwhile
    assert re.match("STATUS=waiting until .*: 127.0.0.1:10249/proxyMode says nftables$", said)
    assert ["waiting until", "gone", "first sync"] == re.findall("waiting until|gone(?=\n)|first sync", log)


def test_a_wait_ends_with_a_signal(node: OneNode) -> None:
    """A waiting agent can be stopped, and has written nothing."""
    with node.kube_proxy("nftables") as proxy:
        proxy.wait_synced()
        rules = node.rules()
        with node.pyproxy("iptables-nft") as agent:
            agent.wait_for_log("waiting until the kube-proxy on this node is gone")
            status = agent.stop()

        assert (0, rules) == (status, node.rules())


@pytest.mark.parametrize(("its", "ours"), [("nftables", "iptables-nft"), ("iptables-nft", "nftables")])
def test_never(node: OneNode, its: Backend, ours: Backend) -> None:
    """With --takeover=never the agent does not wait, and kube-proxy's rules in another mode stay."""
    with node.kube_proxy(its) as proxy:
        proxy.wait_synced()
        # A stale chain of a side-by-side pyproxy: when it is gone, all other stale rules would be gone as well.
        node.host.run("iptables-legacy-restore", "--noflush", stdin=f"*nat\n:{SIDE_BY_SIDE_CHAIN} - [0:0]\nCOMMIT\n")
        before = its_rules(node, its)
        with node.pyproxy(ours, "--takeover=never", "--metrics-bind-address=") as agent:
            agent.wait_for_log("first sync done")
            node.wait_for_rules(without=SIDE_BY_SIDE_CHAIN)
            agent.stop()
            log = agent.log.read_text()
        after = its_rules(node, its)

    assert "waiting" not in log
    assert before == after
    assert before


@pytest.mark.parametrize(
    ("its", "ours", "refusal"),
    [
        ("iptables-legacy", "iptables-legacy", "port unreachable"),
        ("iptables-nft", "iptables-nft", "port unreachable"),
        ("nftables", "nftables", "port unreachable"),
        ("iptables-nft", "nftables", "port unreachable"),
        # kube-proxy drops packets to addresses of a ServiceCIDR for which it has no Service.
        ("nftables", "iptables-nft", "timeout"),
    ],
)
def test_side_by_side_with_kube_proxy(node: OneNode, its: Backend, ours: Backend, refusal: str) -> None:
    """Side-by-side, pyproxy serves only the labelled Services; kube-proxy keeps working, and its rules do not change."""
    with node.kube_proxy(its) as proxy, ExitStack() as objects:
        side_by_side = node.create(
            entry(service("side-by-side", port(80), labels={PROXY_NAME_LABEL: "pyproxy"}), "pod1-1", "pod2-1"), objects
        )
        empty = node.create(entry(service("empty", port(80), labels={PROXY_NAME_LABEL: "pyproxy"})), objects)
        proxy.wait_synced()
        before = its_rules(node, its)
        with node.traffic() as traffic:
            with node.pyproxy(ours, "--service-proxy-name=pyproxy", "--metrics-bind-address=") as agent:
                agent.wait_for_log("first sync done")
                served = results(node, side_by_side, 40), results(node, empty, 1), results(node, node.web, 40)
            stopped = results(node, side_by_side, 40)
            node.command("cleanup")
            broken = traffic.broken()
        after = its_rules(node, its)
        gone = results(node, side_by_side, 1)

    both = {"pod1-1", "pod2-1"}
    assert (both, {refusal}, both) == served
    assert both == stopped
    assert not both & gone
    assert before == after
    assert ([], []) == (broken, traffic.failures(outside=(0.0, 0.0)))


@pytest.mark.parametrize("ours", BACKENDS)
def test_from_side_by_side_to_all_services(node: OneNode, ours: Backend) -> None:
    """Stale side-by-side rules are removed when pyproxy serves all Services in the same mode."""
    with node.pyproxy(ours, "--service-proxy-name=pyproxy") as agent:
        agent.wait_for_log("first sync done")
        side_by_side = node.rules()
    with node.pyproxy(ours) as agent:
        agent.wait_for_log("first sync done")
        node.wait_for_rules(without=SIDE_BY_SIDE_CHAIN)
        served = results(node, node.web, 40)

    assert {"pod1-1", "pod2-1"} == served
    assert (ours != "nftables") is (SIDE_BY_SIDE_CHAIN in side_by_side)
    assert "KUBE-SERVICES" not in side_by_side


@pytest.mark.parametrize(
    ("its", "ours"),
    [("iptables-nft", "iptables-nft"), ("iptables-legacy", "nftables"), ("nftables", "iptables-legacy")],
)
def test_dry_run(node: OneNode, its: Backend, ours: Backend) -> None:
    """The plan shows the running proxy, the rules to remove, and the changes of each Service; it writes nothing."""
    with node.kube_proxy(its) as proxy:
        proxy.wait_synced()
        before = node.rules()
        said = node.dry_run(ours)
        after = node.rules()

    assert before == after
    assert f"127.0.0.1:10249/proxyMode says {its.partition('-')[0]}" in said
    assert re.search(rf"^[{'~' if its == ours else '+'}] default/web tcp ", said, re.MULTILINE)
    what = {"nftables": r"table kube-proxy with \d+ chains in nftables"}.get(its, rf"[1-9]\d* chains? in {its}")
    assert re.search(f"^- {what}", said, re.MULTILINE)


def its_rules(node: OneNode, its: Backend) -> list[str]:
    """Return the rules of kube-proxy, without those of pyproxy in the same tables."""
    if its == "nftables":
        return "".join(
            node.rules_of("nft", "list", "table", family, "kube-proxy") for family in ("ip", "ip6")
        ).splitlines()
    variant = its.removeprefix("iptables-")
    lines = "".join(node.rules_of(f"{tool}-{variant}-save") for tool in ("iptables", "ip6tables")).splitlines()
    return [line for line in lines if "KUBE-" in line]


def results(node: OneNode, item: JsonObject, times: int) -> set[str]:
    """Return the servers that a pod reaches through a Service, or the refusals."""
    outcomes = node.lab.client_pod.probe(*[tcp(item["spec"]["clusterIP"], 80)] * times)
    return {
        outcome.server or (outcome.refused_by.value if outcome.refused_by else outcome.verdict.value)
        for outcome in outcomes
    }
