"""Other programs that work on the same tables all the time, while connections are held and new ones are opened."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from pyproxy.model.address import Family
from tests.lab import Host, Process, tcp
from tests.lab.waiting import WAIT_SECONDS, wait_until

from .cluster import Cluster
from .foreign import DOCKER
from .kernel_state import NODES, kernel_state, start_fresh
from .modes import LEGACY, NFT, NFTABLES
from .objects import JsonObject, slices
from .traffic import MOVING, OBJECTS, traffic

FLUSHES = {
    LEGACY: ["-t nat -F", "-t nat -F KUBE-SERVICES", "-F", "-t nat -D KUBE-SERVICES 1"],
    NFTABLES: [
        "flush ruleset",
        "flush chain ip pyproxy services\nflush chain ip6 pyproxy services",
        "delete table ip pyproxy",
        "flush map ip pyproxy counts\nflush map ip6 pyproxy counts",
    ],
}
FLUSHES[NFT] = FLUSHES[LEGACY]
CNI = """
while :; do
    for iptables in {programs}; do
        for chain in {hooks}; do
            set -- $chain
            if ! $iptables -w -t $1 -S $2 | sed -n 2p | grep -q -- "-j CNI-$2"; then
                old=$($iptables -w -t $1 -S $2 | sed -n "s/^-A $2 -j CNI-$2/-D $2 -j CNI-$2/p")
                printf '%s\\n' "*$1" "$old" "-I $2 -j CNI-$2" COMMIT | $iptables-restore -w --noflush && echo $iptables $2
            fi
        done
    done
    sleep 0.05
done
"""
"""Inserts its jumps again whenever they are not the first rules of their chains, as Calico does by default."""
CNI_CHAINS = """\
*filter
:CNI-FORWARD - [0:0]
-A CNI-FORWARD -s {pods} -j ACCEPT
-A CNI-FORWARD -d {pods} -j ACCEPT
COMMIT
*nat
:CNI-PREROUTING - [0:0]
:CNI-POSTROUTING - [0:0]
COMMIT
"""
POD_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")
EMPTY = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*nat\nCOMMIT\n"
HOOKS = ("nat PREROUTING", "nat POSTROUTING", "filter FORWARD")
PLUGIN_VARIANT = {LEGACY: "legacy"}
MOVED_TO = ("pod1-2", "pod2-2")


def moved(which: int) -> list[JsonObject]:
    """Return the endpoint of the Service that moves, in one of two places."""
    return slices(MOVING, MOVED_TO[which])


@pytest.fixture(scope="module")
def fresh(cluster: Cluster) -> Iterator[list[str]]:
    """Start agents with the Services of the traffic; provide the state that they make of empty tables."""
    yield start_fresh(cluster, [*OBJECTS, *moved(0)], *cluster.flags)
    cluster.put()


@pytest.fixture(scope="module", autouse=True)
def keeper(cluster: Cluster) -> Iterator[None]:
    """Add NAT rules of another program where no test flushes them.

    The kernel translates the packets of established connections only as long as any rule of the network namespace needs that.
    """
    node = cluster.lab["node1"]
    if cluster.mode is NFTABLES:
        rules = [("iptables-legacy", "192.0.2.7"), ("ip6tables-legacy", "2001:db8::7")]
        start, end = (
            [[name, "-t", "nat", verb, "POSTROUTING", "-s", unused, "-j", "MASQUERADE"] for name, unused in rules]
            for verb in ("-A", "-D")
        )
    else:
        chain = "type nat hook postrouting priority 200; ip saddr 192.0.2.7 masquerade;"
        start, end = [["nft", f"table inet keeper {{ chain c {{ {chain} }}; }}"]], [["nft", "delete table inet keeper"]]
    for command in start:
        cluster.run(node, *command)
    yield
    for command in end:
        cluster.run(node, *command)


def test_flushes_all_the_time(cluster: Cluster, fresh: list[str]) -> None:
    """While another program flushes the rules, no held connection is lost and changes arrive; afterwards all rules are back."""
    node = cluster.lab["node1"]
    with traffic(cluster.lab) as sent:
        for number, flush in enumerate(FLUSHES[cluster.mode], start=1):
            # At the same time as a change, and again as soon as the change has arrived.
            run_flush(cluster, node, flush)
            cluster.write([*NODES, *OBJECTS, *moved(number % 2)])
            run_flush(cluster, node, flush)
            there = MOVED_TO[number % 2]
            wait_until(lambda there=there: {there} == reached(cluster), f"packets to {there}")  # type: ignore[misc]
        wait_until(lambda: fresh == kernel_state(cluster, node), "the rules of a fresh agent", poll_seconds=0.1)
        repaired_at = monotonic()
        sent.wait_for_more()
        assert [] == sent.failures(since=repaired_at)
    print(f"{cluster.mode}: {sent}")
    assert "Traceback" not in cluster.agents["node1"].stderr


def run_flush(cluster: Cluster, node: Host, flush: str) -> None:
    """Make a change as another program, whether or not the rules exist that it removes."""
    commands = (
        [f"nft '{flush}'"] if cluster.mode is NFTABLES else [f"{each} -w {flush}" for each in cluster.mode.iptables]
    )
    cluster.run(node, "sh", "-c", "".join(f"{command} 2>/dev/null\n" for command in commands) + "true")


def reached(cluster: Cluster) -> set[str | None]:
    """Return the servers that a pod reaches through the Service that moves."""
    outcomes = cluster.lab.client_pod.probe(*(tcp(ip, 80, timeout_seconds=0.5) for ip in MOVING["spec"]["clusterIPs"]))
    return {outcome.server for outcome in outcomes}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Provide for how long the lock is held: a minute only with --long."""
    if "lock_seconds" in metafunc.fixturenames:
        metafunc.parametrize("lock_seconds", [60.0 if metafunc.config.getoption("--long") else 0.0])


def test_lock_that_is_held(cluster: Cluster, fresh: list[str], lock_seconds: float) -> None:
    """While another program holds the xtables lock, packets pass; changes of legacy tables wait for it, those of other modes do not."""
    node, agent = cluster.lab["node1"], cluster.agents["node1"]
    needs_lock = cluster.mode is LEGACY
    logged = len(agent.stderr)
    with traffic(cluster.lab) as sent:
        with Path(cluster.env(node)["XTABLES_LOCKFILE"]).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            until = monotonic() + lock_seconds
            cluster.write([*NODES, *OBJECTS, *moved(1)])
            if needs_lock:
                wait_until(lambda: "sync failed, will be tried again" in agent.stderr[logged:], "a failed try")
            else:
                wait_until(lambda: MOVED_TO[1] in reached(cluster), "the change")
            wait_until(lambda: monotonic() >= until, "the end of the time", lock_seconds + 10)
            meanwhile = kernel_state(cluster, node) if needs_lock else []
        wait_until(lambda: MOVED_TO[1] in reached(cluster), "the change", 2 * WAIT_SECONDS)
        assert [] == sent.failures()
    print(f"{cluster.mode}: {sent}")
    assert (fresh if needs_lock else []) == meanwhile
    assert "Traceback" not in agent.stderr
    cluster.write([*NODES, *OBJECTS, *moved(0)])
    wait_until(lambda: fresh == kernel_state(cluster, node), "the rules of a fresh agent", poll_seconds=0.1)


@contextmanager
def network_plugin(cluster: Cluster, node: Host) -> Iterator[Process]:
    """Run a network plugin that insists on being first, beside Docker with its policy DROP for forwarded packets."""
    env = {**cluster.env(node), "VARIANT": PLUGIN_VARIANT.get(cluster.mode, "nft")}
    programs = " ".join(f"{name}-{env['VARIANT']}" for name in ("iptables", "ip6tables"))
    for name, pods in zip(programs.split(), POD_CIDRS, strict=True):
        node.run(f"{name}-restore", "--noflush", stdin=CNI_CHAINS.format(pods=pods), env=env)
    process = node.start(
        "sh", "-c", CNI.format(programs=programs, hooks=" ".join(f'"{hook}"' for hook in HOOKS)), env=env
    )
    try:
        wait_until(lambda: len(process.stdout.splitlines()) >= 2 * len(HOOKS), "the hooks of the plugin")
        for name in programs.split():
            node.run(f"{name}-restore", "--noflush", stdin=f"{DOCKER}*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", env=env)
        yield process
    finally:
        process.kill()
        for name in programs.split():
            node.run(f"{name}-restore", stdin=EMPTY, env=env)


@pytest.mark.long
def test_network_plugin_and_docker(cluster: Cluster, fresh: list[str]) -> None:
    """Beside them no packet is lost through a start, a change and a repair, and no program undoes the work of the other."""
    node = cluster.lab["node1"]
    with network_plugin(cluster, node) as plugin:
        with traffic(cluster.lab) as sent:
            cluster.restart(*cluster.flags)
            for which in (1, 0):
                cluster.write([*NODES, *OBJECTS, *moved(which)])
                wait_until(lambda which=which: MOVED_TO[which] in reached(cluster), "the change")  # type: ignore[misc]
            if cluster.mode.is_iptables:
                for program in cluster.mode.iptables:
                    hook = ("-m", "comment", "--comment", "kubernetes forwarding rules", "-j", "KUBE-FORWARD")
                    cluster.run(node, program, "-w", "-D", "FORWARD", *hook)
                wait_until(
                    lambda: cluster.rules(node).count("-j KUBE-FORWARD") == len(Family), "the repair of the hook"
                )
            wait_until(lambda: plugin_is_first(cluster.rules(node)), "the plugin to be first again")
            hooks, work = ours(cluster, node), plugin.stdout
            sent.wait_for_more()
            assert ([], hooks, work) == (sent.failures(), ours(cluster, node), plugin.stdout)
        print(f"{cluster.mode}: {sent}")
    wait_until(lambda: fresh == kernel_state(cluster, node), "the rules of a fresh agent", poll_seconds=0.1)


def plugin_is_first(rules: str) -> bool:
    """Return whether the first rule of each hook of the plugin is its own, in the tables of both families."""
    firsts: dict[tuple[int, str], str] = {}
    table, tables = "", 0
    for line in rules.splitlines():
        if line.startswith("*"):
            table, tables = line[1:], tables + 1
        elif line.startswith("-A ") and f"{table} {line.split()[1]}" in HOOKS:
            firsts.setdefault((tables, line.split()[1]), line)
    return all(f"-A {chain} -j CNI-{chain}" == line for (_, chain), line in firsts.items())


def ours(cluster: Cluster, node: Host) -> list[str]:
    """Return the hooks in their order."""
    return [line for line in cluster.rules(node).splitlines() if line.startswith(("-A PREROUTING", "-A FORWARD"))]
