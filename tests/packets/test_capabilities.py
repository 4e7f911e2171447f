"""Probes of kernel features: they leave no rules, and are skipped if the rule in question is in place."""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.backends.interface import Unsupported
from pyproxy.backends.iptables import kernel
from pyproxy.backends.iptables.accounting import counted_packets, ensure_counter
from pyproxy.backends.iptables.capabilities import PROBE_CHAIN, chain_rules, probe_rule
from pyproxy.backends.iptables.mode import IptablesMode, takes_counter, takes_hairpin_rule
from pyproxy.backends.iptables.rules import source_is_destination
from pyproxy.backends.iptables.ruleset import NAT, ChainKey
from pyproxy.backends.iptables.static_rules import INVALID_COUNT, INVALID_COUNTER
from pyproxy.config.config import Config, IptablesVariant
from pyproxy.linux.iptables_programs import Variant
from pyproxy.linux.ruleset_counter import NftGeneration
from pyproxy.model.address import Family
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext

from .each import families, variants
from .own_namespace import dump, listed_tables, load

pytestmark = pytest.mark.usefixtures("own_tables")

POSTROUTING = ChainKey(NAT, "KUBE-POSTROUTING")
NEVER_TAKEN = '-m bpf --bytecode "1,32 0 0 12" -j RETURN'
"""A classic BPF program that does not return, which no kernel accepts."""
UNKNOWN_MATCH = "-m no-such-match --option 1 -j RETURN"
FOREIGN_RULES = "*filter\n:FOREIGN - [0:0]\n-A FORWARD -j FOREIGN\n-A FOREIGN -j ACCEPT\nCOMMIT\n"


@pytest.fixture
def busy_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold the xtables lock, and make iptables give up waiting for it after one second."""
    monkeypatch.setattr(kernel, "LOCK_WAIT_SECONDS", 1)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hairpin_chain(family: Family) -> str:
    """Return restore input for pyproxy's postrouting chain with the hairpin rule only."""
    return f"*nat\n:KUBE-POSTROUTING - [0:0]\n-A KUBE-POSTROUTING {source_is_destination(family)} -j RETURN\nCOMMIT\n"


def probe(family: Family, variant: Variant, rule: str) -> Unsupported | None:
    """Probe a rule."""
    return asyncio.run(probe_rule(family, variant, rule))


@families
@variants
def test_this_kernel_takes_the_hairpin_rule(variant: Variant, family: Family) -> None:
    """The kernel accepts the hairpin rule, and the probe leaves all rules as they were."""
    load(family, variant, FOREIGN_RULES)
    before = dump(family, variant)

    answers = [probe(family, variant, f"{source_is_destination(family)} -j RETURN") for _ in range(2)]

    assert ([None, None], before) == (answers, dump(family, variant))


@families
@variants
@pytest.mark.parametrize("rule", [NEVER_TAKEN, UNKNOWN_MATCH], ids=["bad program", "unknown match"])
def test_a_refused_rule_leaves_nothing(rule: str, variant: Variant, family: Family) -> None:
    """A rule that kernel or tools refuse is unsupported for a reason, and the probe leaves all rules as they were."""
    load(family, variant, FOREIGN_RULES)
    before = dump(family, variant)

    unsupported = probe(family, variant, rule)

    assert unsupported
    assert unsupported.reason
    assert before == dump(family, variant)


@families
@variants
def test_the_chain_of_a_killed_probe_is_used_again(variant: Variant, family: Family) -> None:
    """The chain of a probe that was killed is used again, and removed by the next probe."""
    load(family, variant, f"*filter\n:{PROBE_CHAIN} - [0:0]\n-A {PROBE_CHAIN} -j ACCEPT\nCOMMIT\n")

    unsupported = probe(family, variant, f"{source_is_destination(family)} -j RETURN")

    assert (None, False) == (unsupported, PROBE_CHAIN in dump(family, variant))


@families
@variants
def test_rules_in_place_are_the_answer(variant: Variant, family: Family) -> None:
    """If pyproxy's postrouting chain is in the kernel, the probe writes nothing."""
    load(family, variant, hairpin_chain(family))
    generation = NftGeneration()
    before = generation.read(), listed_tables()

    answer = asyncio.run(takes_hairpin_rule(family, variant))

    assert (True, before) == (answer, (generation.read(), listed_tables()))
    generation.close()


@families
@variants
def test_a_chain_is_read_as_it_is_saved(variant: Variant, family: Family) -> None:
    """The rules of a chain are read as iptables-save prints them."""
    load(family, variant, hairpin_chain(family))

    rules = asyncio.run(chain_rules(family, variant, POSTROUTING))

    assert f"-A KUBE-POSTROUTING {source_is_destination(family)} -j RETURN\n" in rules


@families
@variants
def test_reading_a_missing_chain_creates_no_table(variant: Variant, family: Family) -> None:
    """A chain that does not exist has no rules, and reading it creates no table."""
    before = listed_tables()

    rules = asyncio.run(chain_rules(family, variant, POSTROUTING))

    assert ("", before) == (rules, listed_tables())


@families
@variants
def test_counters(variant: Variant, family: Family) -> None:
    """A counter is created once and starts at 0; a rule that uses it makes the probe write nothing."""
    with pytest.raises(FileNotFoundError):
        counted_packets(INVALID_COUNTER)
    assert asyncio.run(takes_counter(family, variant))
    assert 0 == counted_packets(INVALID_COUNTER)
    load(family, variant, f"*filter\n:KUBE-FORWARD - [0:0]\n-A KUBE-FORWARD {INVALID_COUNT} -j DROP\nCOMMIT\n")
    generation = NftGeneration()
    before = generation.read(), listed_tables()

    answer = asyncio.run(takes_counter(family, variant))

    assert (True, before) == (answer, (generation.read(), listed_tables()))
    generation.close()


def test_a_name_that_is_too_long() -> None:
    """A counter that the kernel refuses is unsupported, with the kernel's error."""
    assert "Invalid argument" in str(ensure_counter("x" * 40))


@variants
def test_the_mode_uses_what_the_kernel_has(variant: Variant) -> None:
    """In a fresh namespace the mode probes the hairpin rule and uses it in both families."""
    mode = asyncio.run(IptablesMode.open(Config(iptables_variant=IptablesVariant(variant.value))))

    settings = [mode.settings(family, NodeContext(node=Node(name="node1"))) for family in Family]

    assert [(family, True) for family in Family] == [(one.family, one.hairpin_by_packet) for one in settings]
    assert [True, True] == [one.count_invalid for one in settings]
    if mode._generation:
        mode._generation.close()


@families
@pytest.mark.usefixtures("busy_lock")
def test_a_failed_probe_selects_the_layout_for_every_kernel(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    """If the probe fails, the layout that every kernel supports is used, and a warning gives the reason."""
    caplog.set_level(logging.WARNING)

    assert not asyncio.run(takes_hairpin_rule(family, Variant.LEGACY))
    [message] = caplog.messages
    assert message.startswith(f"{family}: hairpin traffic is matched in a chain for each endpoint: ")
    assert "holding the xtables lock" in message
