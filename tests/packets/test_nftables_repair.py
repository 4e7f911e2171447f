"""External changes of our table are found by the next read, and repaired by the next apply."""

from __future__ import annotations

from contextlib import suppress

import pytest

from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    CHAINED,
    CLUSTER_IPS,
    LAYOUT,
    SETS,
    ElementKey,
    ElementSet,
    KeyField,
    Value,
)
from pyproxy.backends.nftables.text import elements_text
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.node import LocalTraffic
from tests.properties.planning import succeeded

from .nft_agent import NftAgent, Start, everything, node_settings, plan
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("needs_root")

OLDER = {
    "nothing in it": "",
    "a chain": "chain services { }",
    "a set of another type": "set counts { type inet_service; elements = { 80 } }",
    "a map of another type": """
        map counts { type ether_addr : mark; elements = { 00:00:00:00:00:01 : 0x5 } }
        chain services { type nat hook output priority -100; ether type ip meta mark set ether saddr map @counts; }
    """,
    "a layout of another form": "chain layout-1 { }",
    "a layout of another version": "chain layout-0123456789abcdef-0123456789abcdef { }",
    "two layouts": "chain layout-0-0 { }\nchain layout-1-1 { }",
    "no hook": "flags dormant; chain services { }",
}
"""Possible content of a table with our name, from an older pyproxy or another program."""
FOREIGN = {
    "a rule in one of our chains": "add rule TABLE services counter",
    "a rule in front": "insert rule TABLE refusals accept",
    "a rule in the chain of a count": "add rule TABLE slot-of-3 accept",
    "a rule in the chain of a time-out": "add rule TABLE sticky-10800 accept",
    "a rule in the chain of pins": "insert rule TABLE find-2 return",
    "a chain without rules": "flush chain TABLE services",
    "a chain of a count without rules": "flush chain TABLE slot-of-3",
    "a foreign chain": "add chain TABLE other { type filter hook input priority 0; }",
    "a foreign layout chain": "add chain TABLE layout-x",
    "a policy": "add chain TABLE filter-forward { policy drop; }",
    "no hooks": "add table TABLE { flags dormant; }",
    "no rules": "flush table TABLE",
    "no table": "delete table TABLE",
    "an empty table": "delete table TABLE\nadd table TABLE",
    "no ruleset": "flush ruleset",
    "no elements in a map": "flush map TABLE counts",
    "no elements in a set": "flush set TABLE cluster-ips",
}
"""External changes."""


def listing(agent: NftAgent) -> list[str]:
    """Return the sorted lines of our table without elements; a recreated chain is listed at another position."""
    return sorted(run("nft", "--terse", "list", "table", *agent.table.split()).splitlines())


def assert_repaired(agent: NftAgent, script: str) -> None:
    """Run an nft script, and check that the next check detects the change and repairs it."""
    before = listing(agent)
    agent.nft(script)

    assert agent.kernel.changed_externally()
    assert agent.wanted() != agent.read()
    agent.reconciler.mark_stale()
    agent.sync()
    assert agent.wanted() == agent.read()
    assert before == listing(agent)
    assert 0 == agent.commits_during(agent.look)


@pytest.mark.parametrize("script", FOREIGN.values(), ids=FOREIGN)
def test_external_change_is_repaired(agent: NftAgent, script: str) -> None:
    """Added, changed and deleted rules are detected, and the table is restored rule by rule."""
    assert_repaired(agent, script)


def element_of(agent: NftAgent, kind: ElementSet) -> tuple[ElementKey, Value]:
    """Return an element of a set, as read from the kernel."""
    return next((key, value) for key, value in sorted(agent.read().items()) if key[0] == kind.number)


def text_of(agent: NftAgent, key: ElementKey, value: Value) -> str:
    """Return a set and element in the syntax of `nft`."""
    [(name, text)] = elements_text(agent.family, {key: value})
    return f"TABLE {name} {{ {text} }}"


@pytest.mark.parametrize("kind", SETS.values(), ids=lambda kind: kind.name)
def test_deleted_element_is_repaired(agent: NftAgent, kind: ElementSet) -> None:
    """A deleted element of any set is detected and restored, and nothing else changes."""
    key, value = element_of(agent, kind)

    assert_repaired(agent, f"delete element {text_of(agent, key, value)}")


@pytest.mark.parametrize(
    "kind", [kind for kind in SETS.values() if not kind.leads_to_chains], ids=lambda kind: kind.name
)
def test_added_element_is_repaired(agent: NftAgent, kind: ElementSet) -> None:
    """A foreign element in one of our sets is detected and removed."""
    key, value = element_of(agent, kind)
    size = kind.key_size(agent.family)
    added = ElementKey(key[:1] + other_key(kind, key[1 : 1 + size], agent.family) * (2 if kind.is_interval else 1))

    assert_repaired(agent, f"add element {text_of(agent, added, value)}")


def other_key(kind: ElementSet, key: bytes, family: Family) -> bytes:
    """Return a key that no element has."""
    at = 0 if kind.key[0] is KeyField.ADDRESS else len(key) - kind.key[-1].size(family)
    return key[:at] + bytes((key[at] ^ 0x3C,)) + key[at + 1 :]


@pytest.mark.parametrize(
    "kind", [kind for kind in SETS.values() if kind.data and not kind.leads_to_chains], ids=lambda kind: kind.name
)
def test_changed_data_is_repaired(agent: NftAgent, kind: ElementSet) -> None:
    """Changed data of one of our keys is detected and corrected."""
    key, value = element_of(agent, kind)
    assert isinstance(value, bytes)
    changed = bytes((value[0] ^ 0x30,)) + value[1:]
    texts = text_of(agent, key, value), text_of(agent, key, changed)

    assert_repaired(agent, "delete element {}\nadd element {}".format(*texts))


def test_changed_comment_is_repaired(agent: NftAgent) -> None:
    """A changed comment of an element is detected and corrected."""
    key, value = element_of(agent, ADDRESSED.rejected)
    text = text_of(agent, key, value)

    assert_repaired(agent, f"delete element {text}\nadd element {text.replace('default', 'other')}")


@pytest.mark.parametrize("content", OLDER.values(), ids=OLDER)
def test_table_of_another_is_replaced(start: Start, family: Family, content: str) -> None:
    """A table with our name and other content is replaced."""
    agent = start()
    agent.nft(f"table TABLE {{ {content}\n }}")
    agent.put(*everything(family))
    after = listing(agent)
    agent.nft("delete table TABLE")
    agent.look()

    assert listing(agent) == after
    assert agent.wanted() == agent.read()
    assert 0 == agent.commits_during(lambda: start().put(*everything(family)))


def test_external_change_before_a_layout_change(agent: NftAgent) -> None:
    """A foreign rule is detected also if our own change replaced the layout before the next check."""
    agent.nft("insert rule TABLE services counter")
    with suppress(ApplyError):
        agent.put(plan(agent.family, 901, 1, 2, 3, 4, 5, affinity_seconds=77))

    agent.look()

    assert "counter" not in run("nft", "list", "ruleset")
    assert agent.wanted() == agent.read()


def test_external_change_just_before_other_rules_is_found(agent: NftAgent) -> None:
    """An element that is added externally between the read and the replacement of the rules is found by the next look."""
    other = node_settings(agent.family, local_traffic=LocalTraffic(interface="other0"))
    wanted = agent.program.value(LAYOUT)
    agent.configure(other)
    present = agent.program.value(LAYOUT)
    key, value = element_of(agent, CLUSTER_IPS)
    added = ElementKey(key[:1] + other_key(CLUSTER_IPS, key[1:], agent.family))
    agent.nft(f"add element {text_of(agent, added, value)}")

    agent.do(agent.kernel.apply({LAYOUT: (present, wanted)}))

    assert agent.kernel.changed_externally()


def test_chains_without_elements_are_deleted(start: Start, family: Family) -> None:
    """Chains of an agent that was killed after it deleted the elements that lead to them are deleted by the next start."""
    agent = start()
    agent.put(*everything(family))
    before, wanted = listing(agent), agent.wanted()
    agent.put(plan(family, 99, *range(1, 10), affinity_seconds=99), plan(family, 98, *range(1, 9)))
    unused = {key: value for key, value in agent.read().items() if key[0] in CHAINED and key not in wanted}
    assert {"sticky", "find", "pick"} <= {SETS[key[0]].name for key in unused}
    agent.nft("".join(f"delete element {text_of(agent, key, value)}\n" for key, value in unused.items()))

    start().put(*everything(family))

    assert before == listing(agent)


def test_deletion_of_unused_elements_is_retried(agent: NftAgent) -> None:
    """If unused elements cannot be deleted, the next check finds them, and deletes them."""
    removed = plan(agent.family, 1, 1, 2, 3)

    async def remove_and_interfere() -> None:
        agent.reconciler.stage({removed.name: None})
        succeeded(await agent.reconciler.sync())
        agent.nft("delete element TABLE pick { 0:3 }")
        agent.kernel._counter.settle()
        await agent.swept()

    agent.do(remove_and_interfere())

    assert agent.kernel.changed_externally()
    agent.look()
    assert agent.wanted() == agent.read()
