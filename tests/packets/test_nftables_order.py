"""The order of transactions, and how long unused elements are kept for packets in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from pyproxy.backends.nftables.elements import ADDRESSED, LAYOUT, PICK, ElementKey
from pyproxy.linux.netlink import HEADER
from pyproxy.model.address import Family
from pyproxy.model.node import LocalTraffic
from pyproxy.plan.service_plan import ServicePlan
from tests.properties.planning import succeeded

from .nft_agent import NftAgent, Start, node_namespace, node_settings, plan

pytestmark = pytest.mark.usefixtures("needs_root")

NEW_RULE, NEW_ELEMENT = 6, 12
"""Message types (`linux/netfilter/nf_tables.h`)."""
GRACE_SECONDS = 2.0


def test_chains_come_before_what_leads_to_them(start: Start, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are added before elements lead to them: a packet sees the rules of its generation, but current elements."""
    agent = start()
    agent.put(plan(family, 1, 1, 2))
    transactions: list[set[int]] = []
    commit = agent.kernel._socket.commit

    def record(messages: list[bytes]) -> int:
        transactions.append({HEADER.unpack_from(message)[1] & 0xFF for message in messages})
        return commit(messages)

    monkeypatch.setattr(agent.kernel._socket, "commit", record)
    agent.put(plan(family, 1, 1, 2, 3))

    rules = [at for at, kinds in enumerate(transactions) if NEW_RULE in kinds]
    elements = [at for at, kinds in enumerate(transactions) if NEW_ELEMENT in kinds]
    assert rules
    assert elements
    assert max(rules) < min(elements)


@pytest.mark.parametrize("family", Family, ids=str)
def test_each_thing_stays_for_the_whole_time(family: Family) -> None:
    """Elements removed later are not deleted together with elements removed earlier."""
    first, second = plan(family, 1, 1, 2), plan(family, 2, 1, 2)
    with node_namespace(node_settings(family), grace={"grace_seconds": GRACE_SECONDS}) as start:
        agent = start()
        agent.put(first)
        of_first = endpoints_in(agent.read())
        agent.put(second)
        of_second = endpoints_in(agent.read()) - of_first

        assert of_second <= agent.do(left_when_gone(agent, of_first, first, second))


@pytest.mark.parametrize("family", Family, ids=str)
def test_used_again_with_other_rules(family: Family) -> None:
    """A chain that is used again, in the change that replaces the rules, is not deleted as unused."""
    with node_namespace(node_settings(family), grace={"grace_seconds": GRACE_SECONDS}) as start:
        agent = start()
        agent.put(plan(family, 1, 1, 2, 3))
        present = agent.read()[LAYOUT]
        agent.configure(node_settings(family, local_traffic=LocalTraffic(interface="other0")))
        [pick] = [key for key in agent.read() if key[0] == PICK.number]

        async def remove_and_use_again() -> None:
            await agent.kernel.apply({pick: (b"", None)})
            await agent.kernel.apply({pick: (None, b""), LAYOUT: (agent.program.value(LAYOUT), present)})
            await agent.swept()

        agent.do(remove_and_use_again())

        assert pick in agent.read()


def endpoints_in(entries: Iterable[ElementKey]) -> set[ElementKey]:
    """Return the endpoints among entries."""
    return {key for key in entries if key[0] == ADDRESSED.main.endpoints.number}


async def left_when_gone(
    agent: NftAgent, gone: set[ElementKey], first: ServicePlan, second: ServicePlan
) -> set[ElementKey]:
    """Remove plans one after the other, and return the endpoints that remain when those of the first are gone."""
    agent.reconciler.stage({first.name: None})
    succeeded(await agent.reconciler.sync())
    await asyncio.sleep(GRACE_SECONDS / 2)
    agent.reconciler.stage({second.name: None})
    succeeded(await agent.reconciler.sync())
    while gone & (left := endpoints_in(agent.kernel._read())):  # noqa: ASYNC110  # the kernel sends no event
        await asyncio.sleep(GRACE_SECONDS / 50)
    await agent.swept()
    return left
