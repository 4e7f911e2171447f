"""The work of one change, counted and not timed: it must not grow with the cluster, and not without a decision.

`tests/unit/agent/test_state_size.py` counts the rules that an iptables change writes, `tests/unit/test_imports.py` the
modules of an agent.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import closing

import pytest

from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.ruleset import TABLES
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.linux.command import Result, run
from pyproxy.linux.iptables_programs import Variant
from pyproxy.linux.nf_tables_messages import batch
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.model.address import Family, parse_network
from pyproxy.model.node import LocalTraffic
from tests.fakes.node_agent import NodeAgent
from tests.properties.planning import succeeded
from tests.unit.agent.objects import endpoints_changed, everything

from .each import variants
from .nft_agent import Start, plan

pytestmark = pytest.mark.usefixtures("needs_root")

FEW, MANY = 10, 1000
"""Services in a small and in a large cluster."""
WORK = {"endpoint": (2, 3), "fewer": (3, 6), "new": (3, 3)}
"""Netlink messages of a change, and calls of `send` and `recv`.

One message has all elements of a map. Calls are for a transaction, its answer, and an attempt to read a further one. With
fewer endpoints, a second transaction deletes an element that packets in flight may still look up.
"""


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count netlink messages in transactions, and calls of sockets."""
    counted: Counter[str] = Counter()

    def counted_batch(messages: list[bytes], sequence: int) -> bytes:
        counted["messages"] += len(messages)
        return batch(messages, sequence)

    class CountedSocket(socket.socket):
        def send(self, *arguments: object) -> int:
            counted["calls"] += 1
            return super().send(*arguments)  # type: ignore[arg-type]  # passed on unchanged

        def recv(self, *arguments: object) -> bytes:
            counted["calls"] += 1
            return super().recv(*arguments)  # type: ignore[arg-type]  # passed on unchanged

    monkeypatch.setattr("pyproxy.linux.nf_tables_socket.batch", counted_batch)
    monkeypatch.setattr(socket, "socket", CountedSocket)
    return counted


def nftables_work(start: Start, family: Family, counted: Counter[str], services: int, kind: str) -> Counter[str]:
    """Return the work of a change in a cluster of so many Services."""
    agent = start()
    agent.put(*(plan(family, number, 1, 2, 3) for number in range(services)))
    change = {
        "endpoint": plan(family, 1, 1, 2, 4),
        "fewer": plan(family, 1, 1, 2),
        "new": plan(family, 5000, 1, 2, 3),
    }[kind]
    agent.put(plan(family, 2, 1, 2))  # there are rules for two endpoints already
    counted.clear()
    agent.put(change)
    return Counter(counted)


@pytest.mark.parametrize("kind", WORK)
def test_messages_of_a_change(start: Start, family: Family, work: Counter[str], kind: str) -> None:
    """A change in nftables mode needs few netlink messages and system calls, equally many in any cluster."""
    few, many = (nftables_work(start, family, work, services, kind) for services in (FEW, MANY))

    assert few == many
    assert WORK[kind] == (many["messages"], many["calls"])


@pytest.fixture
def programs(own_tables: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: ARG001  # for its effect
    """Record the programs that the iptables mode runs."""
    names: list[str] = []

    async def recorded_run(argv: Sequence[str], *, stdin: str = "") -> Result:
        names.append(argv[0])
        return await run(argv, stdin=stdin)

    monkeypatch.setattr("pyproxy.backends.iptables.kernel.run", recorded_run)
    return names


@variants
@pytest.mark.parametrize("services", [FEW, MANY])
def test_programs_of_a_change(variant: Variant, services: int, programs: list[str]) -> None:
    """A change in iptables mode runs one program, which writes it; nothing reads the rules."""
    settings = IptablesSettings(family=Family.IPV4, local_traffic=LocalTraffic(parse_network("10.0.0.0/8")))
    with (
        asyncio.Runner() as loop,
        closing(NftGeneration()) as nft,
        closing(LegacyCounter(Family.IPV4, TABLES)) as legacy,
    ):
        counter = legacy if variant is Variant.LEGACY else nft.counter()
        kernel = IptablesKernel(Family.IPV4, variant, counter, ownership(Family.IPV4))
        agent = NodeAgent(settings, kernel)
        agent.apply(everything(services, endpoints=(1, 2, 3)))
        succeeded(loop.run(agent.reconciler.sync()))
        programs.clear()
        agent.apply(endpoints_changed(7, (1, 2, 4)))
        succeeded(loop.run(agent.reconciler.sync()))

    assert [f"iptables-{variant.value}-restore"] == [name.rpartition("/")[2] for name in programs]
