"""This machine's kernel holds what was meant, and the tables in memory that the other tests use do as it does.

Each test runs in a network namespace of its own, whose tables each example finds empty.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.backends.iptables.kernel import IptablesKernel, RestoreError, restore
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.restore_text import restore_text
from pyproxy.backends.iptables.ruleset import TABLES, RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.model.address import Family
from pyproxy.model.change import ObjectChange
from tests.packets.each import families, variants
from tests.packets.own_namespace import own_namespace, run
from tests.properties.node_agent import NodeAgent
from tests.properties.planning import difference, plans_of, ruleset_of, succeeded
from tests.properties.strategies import Cluster, clusters, iptables_settings
from tests.properties.tables import HOOKS, Chains, RestoreRefusedError, Tables
from tests.properties.test_reconcile import walks

pytestmark = pytest.mark.usefixtures("needs_root")

FEW = settings(max_examples=max(1, settings().max_examples // 10))
"""An example is dozens of processes."""
MISTAKES = (
    "-A KUBE-SERVICES -j KUBE-NOWHERE",
    "-A KUBE-NOWHERE -j RETURN",
    "-D KUBE-SERVICES -j RETURN",
    "-X KUBE-SERVICES",
    "-X KUBE-NOWHERE",
)
"""Lines that cannot be carried out, whatever the tables hold: KUBE-SERVICES is jumped to."""


@pytest.fixture(scope="module", autouse=True)
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Be in a new network namespace, with a lock that nobody else on this machine waits for."""
    path = tmp_path_factory.mktemp("xtables") / "lock"
    with pytest.MonkeyPatch.context() as patch, own_namespace():
        patch.setenv("XTABLES_LOCKFILE", str(path))
        yield path


def empty_tables(family: Family, variant: Variant) -> None:
    """Remove every rule and chain."""
    stem = "iptables" if family is Family.IPV4 else "ip6tables"
    run(f"{stem}-{variant.value}-restore", stdin="*filter\nCOMMIT\n*nat\nCOMMIT\n")


@contextmanager
def opened_kernel(family: Family, variant: Variant) -> Iterator[IptablesKernel]:
    """Give the door to empty tables."""
    empty_tables(family, variant)
    if variant is Variant.LEGACY:
        legacy = LegacyCounter(family, TABLES)
        with closing(legacy):
            yield IptablesKernel(family, variant, legacy, ownership(family))
    else:
        generation = NftGeneration()
        with closing(generation):
            yield IptablesKernel(family, variant, generation.counter(), ownership(family))


@variants
@families
@FEW
@given(st.data(), walks())
def test_walk(variant: Variant, family: Family, data: st.DataObject, walk: list[list[ObjectChange]]) -> None:
    """After every group of changes the kernel has, letter by letter, what is wanted, and a second sync writes nothing."""
    chosen = data.draw(iptables_settings(family))

    async def follow(kernel: IptablesKernel) -> None:
        agent = NodeAgent(chosen, kernel)
        for group in walk:
            agent.tell(group)
            succeeded(await agent.reconciler.sync())

            assert agent.wanted() == await kernel.read()
            agent.tell_again()
            agent.reconciler.mark_stale()
            assert 0 == succeeded(await agent.reconciler.sync()).entries_changed

    with opened_kernel(family, variant) as kernel:
        asyncio.run(follow(kernel))


def listed(lines: list[str]) -> Chains:
    """Return the chains and rules that a table's ``iptables-save`` output names."""
    chains: Chains = {line[1 : line.index(" ")]: [] for line in lines if line.startswith(":")}
    for line in lines:
        if line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            chains[chain].append(rule)
    return chains


async def is_taken(family: Family, variant: Variant, text: str) -> bool:
    """Hand restore input to the kernel and say whether it was taken."""
    try:
        await restore(family, variant, text)
    except RestoreError:
        return False
    return True


def is_taken_in_memory(tables: Tables, text: str) -> bool:
    """Hand restore input to tables in memory and say whether it was taken."""
    try:
        tables.restore(text)
    except RestoreRefusedError:
        return False
    return True


@st.composite
def restore_texts(draw: st.DrawFn, family: Family) -> list[str]:
    """Give restore inputs that lead from state to state of a node, some of them with a mistake in them."""
    texts: list[str] = []
    present = ruleset_of({}, IptablesSettings(family=family))
    texts.append(restore_text(difference({}, present)))
    for cluster in draw(st.lists(clusters(), min_size=1, max_size=3)):
        wanted = rules_for(cluster, draw(iptables_settings(family)))
        text = restore_text(difference(present, wanted))
        if text:
            texts += [draw(spoiled(text)), text]
        present = wanted
    return texts


def rules_for(cluster: Cluster, node_settings: IptablesSettings) -> dict[RulesetKey, str]:
    """Return what a node wants in its kernel."""
    return ruleset_of(plans_of(cluster, node_settings.family), node_settings)


@st.composite
def spoiled(draw: st.DrawFn, text: str) -> str:
    """Give restore input with a line in it that cannot be carried out, or without a line that it needs."""
    lines = text.splitlines()
    place = draw(st.integers(1, len(lines) - 1))
    if draw(st.booleans()) and lines[place].startswith(":"):
        del lines[place]
    else:
        lines.insert(place, draw(st.sampled_from(MISTAKES)))
    return "\n".join(lines) + "\n"


@variants
@families
@FEW
@given(st.data())
def test_tables_in_memory(variant: Variant, family: Family, data: st.DataObject) -> None:
    """Tables in memory take what the kernel takes, refuse what it refuses, and hold the same rules afterwards."""
    empty_tables(family, variant)
    tables = Tables()
    texts = data.draw(restore_texts(family))

    async def compare() -> None:
        for text in texts:
            assert is_taken_in_memory(tables, text) == await is_taken(family, variant, text), text
            for table in HOOKS:
                in_kernel = listed(run(program(family, variant, "save"), "-t", table).splitlines())
                assert listed(tables.save(table)) == in_kernel

    asyncio.run(compare())
