"""Foreign rules in iptables tables that iptables programs cannot list do not affect reading and writing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pyproxy.backends import kube_proxy
from pyproxy.backends.iptables.chain_names import is_ours
from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.legacy_entries import LegacyEntries
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.nft_chains import find_hooks
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.reader import UNREADABLE
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.backends.iptables.ruleset import IPVS_TABLES, TABLES, ChainKey, HookKey, RulesetKey
from pyproxy.backends.iptables.side_by_side import side_by_side_hooks
from pyproxy.backends.iptables.static_rules import IptablesSettings, known_hooks
from pyproxy.backends.iptables.variant import detect_variant
from pyproxy.backends.ipvs.mode import ownership as ipvs_ownership
from pyproxy.backends.ipvs.static_rules import IpvsSettings, ipvs_hooks
from pyproxy.backends.ipvs.static_rules import static_rules as ipvs_rules
from pyproxy.linux.iptables_programs import Variant
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.model.address import Family
from pyproxy.plan.service_plan import plan_service
from pyproxy.takeover.stale_rules import find_stale_rules, remove_stale_rules

from .each import families, variants
from .foreign import (
    IN_OURS,
    NATIVE,
    add_native,
    add_unknown,
    hide_extension,
    hook_counts,
    without_counts,
)
from .own_namespace import load, run
from .test_cleanup import NODE, PYPROXY, load_foreign, services, slice_of

BUILT_IN = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
LIKE_HOOKS = (
    "-p tcp -m tcp --dport 80",
    "-m conntrack --ctstate ESTABLISHED",
    '-m comment --comment "kubernetes service"',
    "-p udp",
    "-m conntrack --ctstate NEW -m mark --mark 0x1",
)

pytestmark = pytest.mark.usefixtures("own_tables")

KINDS = [*((Variant.NFT, kind) for kind in NATIVE), *((variant, "unknown extension") for variant in Variant)]
foreign_rules = pytest.mark.parametrize(("variant", "kind"), KINDS, ids=lambda value: getattr(value, "value", value))


@pytest.fixture
def add_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Family, Variant, str], None]:
    """Provide a function that adds foreign rules to chains created by iptables."""

    def add(family: Family, variant: Variant, kind: str) -> None:
        # iptables-nft creates the built-in chains when it first needs them, and never removes them.
        load(family, variant, "*nat\n-A OUTPUT -p tcp -m tcp --dport 1 -j ACCEPT\nCOMMIT\n")
        if kind in NATIVE:
            add_native(family, NATIVE[kind])
        else:
            add_unknown(family, variant)
            hide_extension(tmp_path, monkeypatch)

    return add


@contextmanager
def opened(
    family: Family, variant: Variant, owned: Ownership | None = None, tables: Sequence[str] = TABLES
) -> Iterator[IptablesKernel]:
    """Open the kernel as the iptables mode does, or with the tables of another mode."""
    ours = owned or ownership(family)
    if variant is Variant.LEGACY:
        with closing(LegacyCounter(family, tables)) as counter:
            yield IptablesKernel(family, variant, counter, ours, tables)
    else:
        with closing(NftGeneration()) as generation:
            yield IptablesKernel(family, variant, generation.counter(), ours, tables)


def wanted(family: Family, count: int = 2) -> dict[RulesetKey, str]:
    """Return the entries that an agent wants in the kernel for the first `count` Services."""
    rules = IptablesProgram(IptablesSettings(family=family, count_invalid=False))
    for service in services(family)[:count]:
        for name, plan in plan_service(service, [slice_of(service, family)], NODE, family).items():
            rules.put(name, plan)
    return {key: value for key in rules.keys() if (value := rules.value(key)) is not None}  # noqa: SIM118  # no dict


async def sync(kernel: IptablesKernel, rules: Mapping[RulesetKey, str]) -> int:
    """Do a full sync: read the kernel, write the differences, and return their number."""
    present = await kernel.read()
    change = {
        key: (present.get(key), rules.get(key)) for key in (*rules, *present) if present.get(key) != rules.get(key)
    }
    await kernel.apply(change)
    return len(change)


def expected_hooks(family: Family) -> dict[tuple[str, str, str], int]:
    """Return each jump from a foreign chain to one of pyproxy, and the jump to a similarly named chain, once."""
    hooks = (key for key in wanted(family) if isinstance(key, HookKey))
    return {(hook.table, hook.chain, hook.rule.rpartition(" ")[2]): 1 for hook in hooks if "-j KUBE" in hook.rule} | {
        ("filter", "FORWARD", "KUBE-SERVICES-CUSTOM"): 1
    }


@families
@foreign_rules
def test_start_change_and_restart(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """With foreign rules, a start writes all, a change only the difference, a restart nothing; each hook exists once."""
    load_foreign(family, variant)
    add_foreign(family, variant, kind)
    with opened(family, variant) as kernel:
        asyncio.run(sync(kernel, wanted(family, 1)))
        first = hook_counts(family, variant)
        changed = asyncio.run(sync(kernel, wanted(family)))
    with opened(family, variant) as kernel:
        read = asyncio.run(kernel.read())
        again = [asyncio.run(sync(kernel, wanted(family))) for _ in range(2)]
        is_quiet = not kernel.changed_externally()

    assert (wanted(family), [0, 0], True) == (read, again, is_quiet)
    assert expected_hooks(family) == first == hook_counts(family, variant)
    assert 0 < changed < len(wanted(family))


@families
@foreign_rules
def test_cleanup_takes_ours_and_nothing_else(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """A cleanup restores the tables, including foreign rules, and reports what it removed."""
    load_foreign(family, variant)
    add_foreign(family, variant, kind)
    before = without_counts(family, variant)
    with opened(family, variant) as kernel:
        asyncio.run(sync(kernel, wanted(family)))
    assert before != without_counts(family, variant)

    said = run(PYPROXY, "cleanup")

    # The rule that protects node ports on 127.0.0.1 also belongs to the kubelet.
    assert before == without_counts(family, variant)
    assert "12 hook rules" in said


@families
@foreign_rules
def test_live_rules_are_those_that_were_written(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """``dump-rules --live`` prints all rules of pyproxy and no foreign rules."""
    load_foreign(family, variant)
    add_foreign(family, variant, kind)
    with opened(family, variant) as kernel:
        asyncio.run(sync(kernel, wanted(family)))

    flags = (f"--iptables-variant={variant.value}", f"--family=ipv{family.value}")
    text = run(PYPROXY, "dump-rules", "--live", "--output=restore", *flags)

    live = sorted(line.partition("] ")[2] or line for line in text.splitlines() if "-A " in line)
    assert sorted(line for value in wanted(family).values() for line in value.splitlines()) == live


@families
@foreign_rules
def test_a_stale_hook_is_removed(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """A full sync removes a hook of kube-proxy's IPVS mode behind foreign rules; all other hooks stay."""
    load_foreign(family, variant)
    load(family, variant, "*filter\n:KUBE-NODE-PORT - [0:0]\nCOMMIT\n")
    left = next(hook for hook in kube_proxy.HOOKS if hook.rule.endswith(" KUBE-NODE-PORT"))
    load(family, variant, f"*filter\n{left.rule}\nCOMMIT\n")
    add_foreign(family, variant, kind)
    before = hook_counts(family, variant)

    with opened(family, variant) as kernel:
        asyncio.run(sync(kernel, wanted(family)))
        is_quiet = not kernel.changed_externally()

    assert 1 == before["filter", "INPUT", "KUBE-NODE-PORT"]
    assert (expected_hooks(family), True) == (hook_counts(family, variant), is_quiet)


@families
@foreign_rules
def test_duplicate_hooks(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """A full sync removes duplicate hooks."""
    load_foreign(family, variant)
    with opened(family, variant) as kernel:
        asyncio.run(sync(kernel, wanted(family)))
        hooks = [key for key in wanted(family) if isinstance(key, HookKey)]
        text = "".join(f"*{hook.table}\n{hook.rule}\n{hook.rule}\nCOMMIT\n" for hook in hooks)
        load(family, variant, text)
        add_foreign(family, variant, kind)
        before = hook_counts(family, variant)
        asyncio.run(sync(kernel, wanted(family)))
        again = asyncio.run(sync(kernel, wanted(family)))

    assert 3 == before["nat", "PREROUTING", "KUBE-SERVICES"]
    assert (expected_hooks(family), 0) == (hook_counts(family, variant), again)


@families
def test_native_rules_in_our_chains_are_removed(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    """A native rule in a chain of pyproxy makes it differ, with a warning that names it; a full sync rewrites the chain."""
    with opened(family, Variant.NFT) as kernel:
        asyncio.run(sync(kernel, wanted(family)))
        add_native(family, IN_OURS)
        read = asyncio.run(kernel.read())
        changed = asyncio.run(sync(kernel, wanted(family)))
        again = asyncio.run(sync(kernel, wanted(family)))

    odd = {key for key, value in read.items() if UNREADABLE in value}
    assert {ChainKey("nat", "KUBE-SERVICES"), ChainKey("filter", "KUBE-FORWARD")} == odd
    assert (wanted(family), 2, 0) == ({**read, **{key: wanted(family)[key] for key in odd}}, changed, again)
    assert "are in 1 chains of ours: KUBE-SERVICES" in caplog.text


@families
@variants
def test_every_hook_is_known_by_its_structure(family: Family, variant: Variant) -> None:
    """Each hook of any mode, side-by-side or of kube-proxy is found in the kernel's structures, with its count."""
    hooks = {*known_hooks(family), *ipvs_hooks(family), *kube_proxy.HOOKS, *side_by_side_hooks(family)}
    tables = {table: [hook for hook in sorted(hooks) if hook.table == table] for table in IPVS_TABLES}
    for table, mine in tables.items():
        chains = {hook.rule.rpartition(" ")[2] for hook in mine} | {hook.chain for hook in mine} - BUILT_IN
        lines = [
            *(f":{chain} - [0:0]" for chain in sorted(chains - {"DROP"})),
            *(hook.rule for hook in mine),
            mine[0].rule,
        ]
        # Similar to hooks, but with a port, another state or another comment.
        target = mine[0].rule.rpartition(" ")[2]
        lines += [f"-A {mine[0].chain} {words} -j {target}" for words in LIKE_HOOKS]
        load(family, variant, "\n".join((f"*{table}", *lines, "COMMIT\n")))

    for table, mine in tables.items():
        found = (
            LegacyEntries(family, table).find_hooks(mine)
            if variant is Variant.LEGACY
            else find_hooks(family, table, mine)
        )
        assert sorted([*mine, mine[0]]) == sorted(hook for hook, _ in found)


@families
@foreign_rules
def test_the_variant_is_found(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """The kubelet's hint and the hooks of Services are found among foreign rules."""
    with opened(family, variant) as kernel:
        asyncio.run(sync(kernel, wanted(family)))
    add_foreign(family, variant, kind)
    by_rules = asyncio.run(detect_variant())
    load(family, variant, "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n")
    if variant is Variant.NFT:
        add_native(family, ["add chain {f} mangle odd { type filter hook forward priority 7; }"])

    assert (variant, "its tables contain rules for Services") == by_rules
    assert (variant, "its tables contain the kubelet's chain KUBE-IPTABLES-HINT") == asyncio.run(detect_variant())


@families
@foreign_rules
def test_another_mode_removes_what_is_left(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """The nftables mode, or the other variant, removes all of pyproxy's stale rules, and nothing else."""
    load_foreign(family, variant)
    add_foreign(family, variant, kind)
    before = without_counts(family, variant)
    [other] = set(Variant) - {variant}
    for used in (None, other):
        with opened(family, variant) as kernel:
            asyncio.run(sync(kernel, wanted(family)))
        assert before != without_counts(family, variant)
        asyncio.run(remove_stale_rules(used, is_ours, include_kube_proxy=False))

        assert before == without_counts(family, variant)


@families
@foreign_rules
def test_a_plan_to_take_over_sees_kube_proxys_chains(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """A takeover plan finds all rules of kube-proxy, including hooks."""
    load_foreign(family, variant)
    with opened(family, variant) as kernel:
        asyncio.run(sync(kernel, wanted(family)))
    add_foreign(family, variant, kind)

    [found] = [
        each
        for each in asyncio.run(find_stale_rules(None, is_ours))
        if (each.family, each.variant) == (family, variant)
    ]

    rules = {line for value in wanted(family).values() for line in value.splitlines()}
    lines = {line for text in found.tables.values() for line in text.splitlines()}
    assert set() == {rule for rule in rules - lines if "KUBE-FIREWALL" not in rule}
    assert {key.chain for key in wanted(family) if isinstance(key, ChainKey)} - {"KUBE-FIREWALL"} <= {
        chain for chains in found.left.values() for chain in chains
    }


@families
@foreign_rules
def test_helper_rules_of_the_ipvs_mode(
    family: Family, variant: Variant, kind: str, add_foreign: Callable[[Family, Variant, str], None]
) -> None:
    """Hooks and chains of the IPVS mode, except those that need IPVS modules, are written once and read back."""
    load_foreign(family, variant)
    rules: dict[RulesetKey, str] = {
        key: value
        for key, value in ipvs_rules(IpvsSettings(family=family)).items()
        if "--match-set" not in value and "-m ipvs" not in value
    }
    # The hooks need their target chains.
    targets: dict[RulesetKey, str] = {
        ChainKey(key.table, key.rule.rpartition(" ")[2]): "" for key in rules if isinstance(key, HookKey)
    }
    rules = {**targets, **rules}
    load(family, variant, "*mangle\n-A PREROUTING -p tcp -m tcp --dport 1 -j ACCEPT\nCOMMIT\n")
    add_foreign(family, variant, kind)
    with opened(family, variant, ipvs_ownership(family), IPVS_TABLES) as kernel:
        asyncio.run(sync(kernel, rules))
        read = asyncio.run(kernel.read())
        again = asyncio.run(sync(kernel, rules))

    assert (rules, 0) == (read, again)
