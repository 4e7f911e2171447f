"""A flood of new connections while the nftables mode changes its table: each is answered at its first packet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import chain, cycle, islice, repeat
from typing import Any

import pytest

from pyproxy.backends.nftables.layout import NftablesSettings
from pyproxy.model.address import Family, ip_text, parse_network
from pyproxy.model.names import Protocol
from pyproxy.model.node import LocalTraffic
from pyproxy.plan.service_plan import ServicePlan
from tests.properties.planning import succeeded

from .flood import CLIENTS, Flood, flooding
from .nft_agent import Start, cluster_ip, node_namespace, node_settings, plan
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("needs_root")

PODS = {Family.IPV4: "10.244.0.0/24", Family.IPV6: "fd00:10:244::/120"}
PORT = 8080
CHANGES = 30
CONNECTIONS = 2000
"""The least number of connections in a test, however slow the machine is."""
SETS_OF_PODS = ((1, 2), (1, 2, 3, 4, 5), (4, 5), (6, 7), (5, 4, 3, 2, 1), (7,), (1, 2, 3, 4, 5, 6, 7, 8), (8, 1))
PAUSES = (0.0, 0.0, 0.01, 0.4, 0.7)
"""Pauses shorter and longer than the time for which unused elements are kept; their number is coprime to that of the pod sets."""
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "any endpoint": (2000, {}),
    "affinity": (200, {"affinity_seconds": 10800}),
}
"""The number of changes, and of other Services in the plan.

A packet spends about a microsecond between two look-ups, so many changes are needed to hit that window.
"""


@pytest.fixture
def start(family: Family) -> Iterator[Start]:
    """Enter a namespace with the addresses of clients and endpoints; provide a function that starts an agent there."""
    with node_namespace(settings_of(family), grace={}) as start_agent:
        local = "".join(f"route add local {cidr} dev lo\n" for cidr in (*CLIENTS, *PODS.values()))
        run("ip", "-batch", "-", stdin=f"link set lo up\nlink add out type veth peer name end\nlink set end up\n"
            f"link set out up arp off\n{local}route add 10.0.0.0/8 dev out\nroute add fd00::/16 dev out\n")  # fmt: skip
        yield start_agent


def settings_of(family: Family, wider: int = 0) -> NftablesSettings:
    """Return settings in which all clients are local pods; `wider` shortens the prefix of the pod CIDR."""
    ip, _, prefix = CLIENTS[family is Family.IPV6].partition("/")
    return node_settings(family, local_traffic=LocalTraffic(cidr=parse_network(f"{ip}/{int(prefix) - wider}")))


def served(family: Family, *pods: int, **fields: Any) -> ServicePlan:  # noqa: ANN401  # any field of a plan
    """Return the plan of the flooded Service."""
    return plan(family, 1, *pods, protocol=Protocol.UDP, **fields)


def flood_of(family: Family) -> AbstractContextManager[Flood]:
    """Flood the Service."""
    return flooding(family.value, ip_text(cluster_ip(family, 1)), 80, PORT)


def assert_all_answered(flood: Flood) -> None:
    """Stop a flood, and check that the first packet of every connection reached an endpoint."""
    while flood.report().sent < CONNECTIONS:
        pass
    report = flood.stop()

    assert (0, 0, 0) == (report.repeated, report.lost, report.refused)
    assert report.sent == sum(report.servers.values())


@pytest.mark.parametrize(("times", "kind"), KINDS.values(), ids=KINDS)
def test_endpoints_change(start: Start, family: Family, times: int, kind: dict[str, Any]) -> None:
    """While endpoints are added, removed, replaced and reordered, no packet finds a slot without an endpoint."""
    agent = start()
    agent.put(served(family, 1, 2, **kind))

    async def change() -> None:
        quick = islice(zip(cycle([(1, 2, 3, 4, 5, 6, 7, 8), (8,)]), repeat(0.0), strict=False), times)
        slow = islice(zip(cycle(SETS_OF_PODS), cycle(PAUSES), strict=False), CHANGES)
        for pods, pause in chain(quick, slow):
            changed = served(family, *pods, **kind)
            agent.reconciler.stage({changed.name: changed})
            succeeded(await agent.reconciler.sync())
            # A pause, not a wait: the change should find unused elements of every age.
            await asyncio.sleep(pause)
        await agent.swept()

    with flood_of(family) as flood:
        agent.do(change())
        assert_all_answered(flood)
    assert agent.wanted() == agent.read()


def test_other_services_come_and_go(start: Start, family: Family) -> None:
    """Adding and removing hundreds of other Services, with and without affinity and with new counts, has no effect."""
    agent = start()
    agent.put(served(family, 1, 2))

    with flood_of(family) as flood:
        for count in (1, 2, 3, 9):
            pods = tuple(range(1, count + 1))
            others = [plan(family, 100 + number, *pods) for number in range(200)]
            pinned = [plan(family, 400 + number, *pods, affinity_seconds=count) for number in range(50)]
            agent.put(*others, *pinned)
            agent.remove(*others, *pinned)
        assert_all_answered(flood)


def test_affinity_comes_and_goes(start: Start, family: Family) -> None:
    """A Service answers all clients while its session affinity is enabled and disabled."""
    agent = start()
    agent.put(served(family, 1, 2, 3))

    with flood_of(family) as flood:
        for seconds in (10, None, 20, 10, None, 10800):
            agent.put(served(family, 1, 2, 3, affinity_seconds=seconds))
        assert_all_answered(flood)


def test_new_settings(start: Start, family: Family) -> None:
    """New settings replace the whole table without a moment without rules."""
    agent = start()
    agent.put(served(family, 1, 2, 3), plan(family, 2, 1, 2, affinity_seconds=9))

    with flood_of(family) as flood:
        for wider in range(1, 5):
            agent.configure(settings_of(family, wider))
        assert_all_answered(flood)


def test_older_table_is_replaced(start: Start, family: Family) -> None:
    """The table of an older agent serves until the transaction that replaces it."""
    agent = start()
    ip, pod = ip_text(cluster_ip(family, 1)), ip_text(served(family, 1).cluster_endpoints[0].ip)
    name = "ip" if family is Family.IPV4 else "ip6"
    target = f"{pod}:{PORT}" if family is Family.IPV4 else f"[{pod}]:{PORT}"
    agent.nft(f"""
        table TABLE {{
            map counts {{ type inet_service : mark; elements = {{ 80 : 1 }} }}
            chain layout-0-0 {{ }}
            chain nat-output {{
                type nat hook output priority -100;
                {name} daddr {ip} udp dport 80 dnat to {target}
            }}
        }}
    """)

    with flood_of(family) as flood:
        commits = agent.commits_during(lambda: agent.put(served(family, 1, 2, 3)))
        assert_all_answered(flood)

    # One transaction replaces the old table, and one adds the layout marker.
    assert 2 == commits
    assert agent.wanted() == agent.read()


def test_restart(start: Start, family: Family) -> None:
    """An agent that starts with an existing table interrupts no connection, whatever has changed meanwhile."""
    start().put(served(family, 1, 2, 3))

    with flood_of(family) as flood:
        for pods in SETS_OF_PODS:
            start().put(served(family, *pods))
        assert_all_answered(flood)


def test_foreign_rule_is_removed(start: Start, family: Family) -> None:
    """A table with a foreign rule is replaced in one transaction."""
    agent = start()
    agent.put(served(family, 1, 2, 3))

    with flood_of(family) as flood:
        for chain in ("services", "nat-output", "slot-of-3"):
            agent.nft(f"insert rule TABLE {chain} counter")
            agent.look()
        assert_all_answered(flood)
    assert agent.wanted() == agent.read()
