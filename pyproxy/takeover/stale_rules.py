"""Finds and removes stale rules: chains and tables of another mode, of side-by-side operation, or of kube-proxy.

Chains with kube-proxy's names are ours only if our marker chain exists, and only until kube-proxy runs again. Chains that
the kubelet shares (KUBE-FIREWALL and the jumps to it) are kept. Legacy tables are changed in this process, under one lock
from reading to commit (`docs/decisions/002-python-iptables.md`), or by one restore if python-iptables cannot be used;
tables of the nft variant by one netlink transaction.

The command `cleanup` uses this, and so does the agent, for stale rules of another mode or of a kube-proxy that has stopped.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import product

from pyproxy.backends import kube_proxy
from pyproxy.backends.interface import Backend
from pyproxy.backends.iptables import chain_names, nft_chains
from pyproxy.backends.iptables.capabilities import PROBE_CHAIN
from pyproxy.backends.iptables.kernel import restore
from pyproxy.backends.iptables.legacy_entries import legacy_tables
from pyproxy.backends.iptables.legacy_tables import LibraryError, open_tables
from pyproxy.backends.iptables.reader import saved
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.backends.iptables.ruleset import FILTER, IPVS_TABLES, MANGLE, NAT, HookKey
from pyproxy.backends.iptables.side_by_side import side_by_side_hooks
from pyproxy.backends.ipvs.static_rules import ipvs_hooks, is_ours, is_ours_alone
from pyproxy.config.config import Config, ProxyMode, Takeover
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

NFT_FAMILIES = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_OWN_NFT_TABLE = "pyproxy"


class Kept(Enum):
    """Why chains with kube-proxy's names were kept."""

    NO_MARKER = "no marker chain of pyproxy"
    KUBE_PROXY_RETURNED = "kube-proxy has written rules after pyproxy"


@dataclass(frozen=True, slots=True)
class Removed:
    """What a clean-up removed from the iptables tables of one family, in one variant."""

    chains: int = 0
    hooks: int = 0
    """Rules in built-in chains that jumped to these chains."""
    kept: Kept | None = None
    """Set if chains with kube-proxy's names were kept."""
    has_kubelet_firewall: bool = False
    """Whether the chain KUBE-FIREWALL, which the kubelet shares, is there; it and the jumps to it are kept."""

    def __bool__(self) -> bool:
        return bool(self.chains or self.hooks or self.kept)


Chains = Mapping[str, Collection[str]]
"""Names of chains, or rules in built-in chains that jump to them, by table."""
ChainTest = Callable[[str, str], bool]
"""Returns whether a chain is selected; called with its table and its name."""
ChainSelector = Callable[[Chains], tuple[Chains, Kept | None]]
"""Picks the chains to remove from all chains of a family, and returns why the remaining chains with kube-proxy's names are kept."""


async def remove_stale_rules(used: Variant | None, owns: ChainTest, *, include_kube_proxy: bool) -> None:
    """Remove stale rules of other modes and variants, and of side-by-side operation, once a mode's rules are complete.

    Args:
        used: the variant that this mode uses; None for nftables mode.
        owns: selects the chains in this variant that this mode uses.
        include_kube_proxy: also remove stale rules of kube-proxy.

    Raises:
        ApplyError: something could not be removed.
    """
    for variant, family in product(Variant, Family):
        await _remove_stale_chains(
            family,
            variant,
            _choice(variant is used, owns, include_kube_proxy=include_kube_proxy),
            beside_ours=variant is used,
        )
    # In nftables mode the table `pyproxy` is in use.
    stale = [name for name in nft_tables(include_kube_proxy=include_kube_proxy) if used or name != _OWN_NFT_TABLE]
    if shutil.which("nft"):
        for name, nft_family in product(stale, NFT_FAMILIES.values()):
            if await delete_nft_table(nft_family, name):
                logger.info("removed table %s %s", nft_family, name)


def _choice(is_used: bool, owns: ChainTest, *, include_kube_proxy: bool) -> ChainSelector:  # noqa: FBT001  # of a partial
    if not is_used:
        return partial(_choose, include_kube_proxy=include_kube_proxy)

    def is_stale(table: str, chain: str) -> bool:
        return not owns(table, chain) and (
            chain_names.is_side_by_side(table, chain)
            or (include_kube_proxy and kube_proxy.is_kube_proxys(table, chain))
        )

    return partial(_pick, owns=is_stale)


@dataclass(frozen=True, slots=True)
class IptablesSnapshot:
    """The iptables tables of one family, in one variant, and the chains that `remove_stale_rules` would remove."""

    family: Family
    variant: Variant
    tables: Mapping[str, str]
    """Names of chains, kube-proxy's rules and hooks, as ``iptables-save`` prints them, by table."""
    left: Chains
    """Stale chains."""


async def find_stale_rules(used: Variant | None, owns: ChainTest) -> list[IptablesSnapshot]:
    """Return what `remove_stale_rules` would remove from iptables, including kube-proxy's chains; changes nothing."""
    found = []
    for variant, family in product(Variant, Family):
        if is_available(family, variant):
            owned = Ownership(owns=kube_proxy.is_kube_proxys, shared=(), hooks=_known_hooks(family))
            tables = {
                name: await saved(family, variant, name, owned) for name in _existing(family, variant, IPVS_TABLES)
            }
            left, _, _ = _find(family, tables, _choice(variant is used, owns, include_kube_proxy=True))
            found.append(IptablesSnapshot(family, variant, tables, left))
    return found


async def kube_proxy_nft_tables() -> dict[Family, str]:
    """Return the text of each existing table of kube-proxy's nftables mode, by family."""
    found = {}
    if shutil.which("nft"):
        for family, word in NFT_FAMILIES.items():
            result = await run(["nft", "list", "table", word, kube_proxy.NFT_TABLE])
            if not result.status:
                found[family] = result.stdout
    return found


async def remove_stale_side_by_side(used: Variant | None) -> None:
    """Remove only the stale chains of side-by-side operation in another variant.

    Tables of the nftables mode are kept: they may belong to another pyproxy that serves all Services.

    Raises:
        ApplyError: something could not be removed.
    """
    for variant, family in product(Variant, Family):
        if variant is not used:
            await _remove_stale_chains(
                family, variant, partial(_pick, owns=chain_names.is_side_by_side), beside_ours=False
            )


async def _remove_stale_chains(family: Family, variant: Variant, choice: ChainSelector, *, beside_ours: bool) -> None:
    if is_available(family, variant):
        if beside_ours:
            removed = await _clean_beside_ours(family, variant, choice)
        else:
            removed = await _clean_by_restore(family, variant, _existing(family, variant, IPVS_TABLES), choice)
        if removed:
            level = logging.WARNING if removed.kept else logging.INFO
            logger.log(level, "%s, iptables-%s: %s", family, variant.value, removed_text(removed))


async def _clean_beside_ours(family: Family, variant: Variant, choice: ChainSelector) -> Removed:
    # These tables have the rules of this mode as well. Table nat may be large, so it is read only if there was something to
    # remove from the other tables: every mode, and side-by-side operation, has chains in those as well.
    first = await _clean_by_restore(family, variant, _existing(family, variant, (MANGLE, FILTER)), choice)
    if not first:
        return first
    nat = await _clean_by_restore(family, variant, _existing(family, variant, (NAT,)), choice)
    return Removed(first.chains + nat.chains, first.hooks + nat.hooks, first.kept or nat.kept)


def nft_tables(*, include_kube_proxy: bool) -> tuple[str, ...]:
    """Return the names of the nftables tables to remove."""
    return (_OWN_NFT_TABLE, kube_proxy.NFT_TABLE) if include_kube_proxy else (_OWN_NFT_TABLE,)


def removed_text(removed: Removed, verb: str = "removed") -> str:
    """Return a clean-up in words, for a log line or the output of a command."""
    parts = [f"{verb} {removed.chains} chains and {removed.hooks} hook rules"] if removed.chains else []
    match removed.kept:
        case Kept.NO_MARKER:
            parts.append(
                f"kept kube-proxy's chains, because the marker chain {chain_names.CANARY} is missing;"
                " `cleanup --kube-proxy` removes them"
            )
        case Kept.KUBE_PROXY_RETURNED:
            parts.append("kept kube-proxy's chains, because kube-proxy has synced since pyproxy last did")
        case None:
            pass
    return "; ".join(parts)


async def remove_own_rules(
    family: Family, variant: Variant, *, include_kube_proxy: bool, dry_run: bool = False
) -> Removed:
    """Remove our rules of one family in one variant; return what was removed, or with `dry_run` what would be."""
    choice = partial(_choose, include_kube_proxy=include_kube_proxy)
    tables = _existing(family, variant, IPVS_TABLES)
    if variant is Variant.LEGACY and not dry_run:
        try:
            return _clean_legacy(family, tables, choice) if tables else Removed()
        except LibraryError as error:
            logger.warning("%s: cleaning by iptables-legacy-restore: %s", family, error)
    return await _clean_by_restore(family, variant, tables, choice, dry_run=dry_run)


def _existing(family: Family, variant: Variant, names: Collection[str]) -> list[str]:
    # Reading a legacy table that does not exist would create it, and with it hooks that every packet traverses. In the nft
    # variant reading creates nothing.
    return [name for name in names if variant is Variant.NFT or name in legacy_tables(family)]


def _clean_legacy(family: Family, names: Collection[str], choice: ChainSelector) -> Removed:
    # One lock from reading to commit: no other program can add a reference to a chain in between.
    with open_tables(family, names) as tables:
        existing = {name: table.chains() for name, table in tables.items()}
        chains, kept = choice(existing)
        hooks = 0
        for name, table in tables.items():
            if chains[name]:
                for hook in _hooks(family, name, chains, existing):
                    hooks += table.delete_rule(hook.chain, hook.rule.removeprefix(f"-A {hook.chain} "))
                table.delete_chains(chains[name])
                table.commit()
    return Removed(_count(chains), hooks, kept, chain_names.KUBELET_FIREWALL in existing.get(FILTER, ()))


async def _clean_by_restore(
    family: Family, variant: Variant, names: Collection[str], choice: ChainSelector, *, dry_run: bool = False
) -> Removed:
    owned = Ownership(owns=lambda *_: False, shared=(), hooks=_known_hooks(family))
    texts = {name: await saved(family, variant, name, owned) for name in names}
    # In a thread, to keep the event loop of the agent free: the other mode may have many rules.
    chains, hooks, kept = await asyncio.to_thread(_find, family, texts, choice)
    found = {} if dry_run else {table: names for table, names in chains.items() if names}
    if found and variant is Variant.NFT:
        # Not by iptables-nft-restore, which fails at a -D of a rule that it cannot parse.
        keys = {HookKey(table, rule.split()[1], rule) for table in found for rule in hooks[table]}
        await asyncio.to_thread(nft_chains.remove_chains, family, found, keys)
    elif found:
        await restore(family, variant, "".join(_removal(name, found[name], hooks[name]) for name in found))
    has_firewall = f":{chain_names.KUBELET_FIREWALL} " in texts.get(FILTER, "")
    return Removed(_count(chains), _count(hooks), kept, has_firewall)


def _count(names: Chains) -> int:
    return sum(map(len, names.values()))


async def remove_chains(family: Family, variant: Variant, owns: ChainTest) -> None:
    """Remove some of the chains in the tables that this mode uses, with the hooks that jump to them."""
    await _clean_beside_ours(family, variant, partial(_pick, owns=owns))


def _find(family: Family, texts: Mapping[str, str], choice: ChainSelector) -> tuple[Chains, Chains, Kept | None]:
    lines: Mapping[str, Sequence[str]] = {name: text.splitlines() for name, text in texts.items()}
    existing = {name: [line[1 : line.index(" ")] for line in lines[name] if line.startswith(":")] for name in lines}
    chains, kept = choice(existing)
    hooks: dict[str, list[str]] = {}
    for name, rules in lines.items():
        jumps = {hook.rule for hook in _hooks(family, name, chains, existing)}
        hooks[name] = [rule for rule in rules if rule in jumps]
    return chains, hooks, kept


def _removal(table: str, chains: Collection[str], hooks: Collection[str]) -> str:
    # The kernel refuses to delete a chain that has rules or references. `:CHAIN` flushes it, which removes the jumps among the
    # chains; then the hooks go, and then nothing refers to the chains.
    lines = [f":{chain} - [0:0]" for chain in chains]
    lines += [f"-D {rule.removeprefix('-A ')}" for rule in hooks]
    lines += [f"-X {chain}" for chain in chains]
    return "\n".join((f"*{table}", *lines, "COMMIT\n"))


def _pick(existing: Chains, owns: ChainTest) -> tuple[Chains, None]:
    return {table: [chain for chain in found if owns(table, chain)] for table, found in existing.items()}, None


def _choose(existing: Chains, *, include_kube_proxy: bool) -> tuple[Chains, Kept | None]:
    # Our chains, and with `include_kube_proxy` those of kube-proxy. Many chains have the same name in both, so the marker chain
    # decides. Without it they belong to kube-proxy, with it to us, except those that kube-proxy needs if it has written rules
    # since. Names that only kube-proxy uses are never ours.
    found = {(table, chain) for table in existing for chain in existing[table]}
    shared = {key for key in found if is_ours(*key) or kube_proxy.is_kube_proxys(*key)}
    has_marker = any(chain == chain_names.CANARY for _, chain in found)
    if include_kube_proxy:
        needed = set()
    elif has_marker:
        needed = {key for key in shared if not is_ours(*key) or kube_proxy.is_needed_by(found, *key)}
    else:
        needed = shared
    # Only pyproxy has these names, so no marker is needed.
    own = {key for key in found if key == (FILTER, PROBE_CHAIN) or chain_names.is_side_by_side(*key)}
    stale = (shared - needed) | own
    kept = (Kept.KUBE_PROXY_RETURNED if has_marker else Kept.NO_MARKER) if needed else None
    return _pick(existing, lambda table, chain: (table, chain) in stale)[0], kept


def _hooks(family: Family, table: str, stale: Chains, existing: Chains) -> list[HookKey]:
    # Hooks to stale chains, and with our marker those that kube-proxy does not have.
    hooks = [hook for hook in _known_hooks(family) if hook.table == table]
    kept: set[tuple[str, str]] = set()
    if chain_names.CANARY in stale[table]:
        kept = {(name, chain) for name in existing for chain in existing[name] if chain not in stale[name]}
    return [
        hook for hook in hooks if hook.rule.rpartition(" ")[2] in stale[table] or kube_proxy.is_stale_hook(kept, hook)
    ]


def _known_hooks(family: Family) -> tuple[HookKey, ...]:
    return (*ipvs_hooks(family), *kube_proxy.HOOKS, *side_by_side_hooks(family))


async def has_nft_table(nft_family: str, name: str) -> bool:
    """Return whether a table exists, such as ``ip`` ``kube-proxy``."""
    return f"table {nft_family} {name}" in (await run(["nft", "list", "tables"])).stdout.splitlines()


async def delete_nft_table(nft_family: str, name: str) -> bool:
    """Delete a table of nftables mode, such as ``ip`` ``kube-proxy``; return whether it existed.

    Raises:
        ApplyError: `nft` failed.
    """
    # `nft delete` of a table that does not exist is an error, and `nft destroy`, which accepts that, needs Linux 6.3.
    if not await has_nft_table(nft_family, name):
        return False
    argv = ["nft", "delete", "table", nft_family, name]
    result = await run(argv)
    if result.status:
        message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
        raise ApplyError(message, retryable=True)
    return True


async def remove_stale(config: Config, backend: Backend) -> None:
    """Remove stale rules of other modes and variants; side-by-side only those of side-by-side operation.

    Args:
        config: whether pyproxy runs side-by-side, and whether to remove kube-proxy's stale rules.
        backend: the mode whose rules are complete.

    Raises:
        ApplyError: something could not be removed.
    """
    used = backend.iptables_variant
    if config.service_proxy_name:
        await remove_stale_side_by_side(used)
        return
    include_kube_proxy = config.takeover is Takeover.AUTO
    await remove_stale_rules(used, backend.owns_chain, include_kube_proxy=include_kube_proxy)
    # Imported here, because most agents never need these modules.
    from pyproxy.backends.ipvs.cleanup import remove_kube_proxy_ipvs, remove_stale_ipvs  # noqa: PLC0415

    if backend.mode is not ProxyMode.IPVS:
        # The rules of the IPVS mode in the tables of this mode; those in other tables are already removed.
        for family in Family:
            if used is not None and is_available(family, used):
                await remove_chains(family, used, is_ours_alone)
        await remove_stale_ipvs(include_kube_proxy=include_kube_proxy)
    elif include_kube_proxy:
        await remove_kube_proxy_ipvs()
