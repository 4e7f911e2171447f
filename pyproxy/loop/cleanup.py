"""``cleanup``: takes out of the kernel what is ours, in all modes, variants and families; a second run finds nothing.

Chains with kube-proxy's names are ours only where our marker chain stands beside them. What the kubelet
shares (KUBE-FIREWALL and the jumps to it) stays. Legacy tables are changed inside this process, under one lock
from the look to the commit (`docs/decisions/002-python-iptables.md`); those of the nft variant, and legacy ones
where python-iptables cannot be used, by one restore.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import product

from pyproxy.apply.capabilities import PROBE_CHAIN
from pyproxy.apply.command import run
from pyproxy.apply.iptables import Variant, is_available, restore, save
from pyproxy.apply.iptables_variant import legacy_tables
from pyproxy.apply.legacy_tables import LibraryError, open_tables
from pyproxy.compile import chain_names
from pyproxy.compile.ipvs_static import ipvs_hooks, is_ours
from pyproxy.config import Config, IptablesVariant
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.ruleset import FILTER, IPVS_TABLES, HookKey
from pyproxy.render.iptables_restore import Ownership, saved_rules

logger = logging.getLogger(__name__)

_KUBE_PROXY_CANARY = "KUBE-PROXY-CANARY"
_NFT_FAMILIES = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_LEFT_ALONE = f"kube-proxy's chains are left alone, `cleanup --kube-proxy` removes them: no marker {chain_names.CANARY}"

Chains = Mapping[str, Collection[str]]
"""Names of chains that can be removed, or rules that hook them in, by table."""
Owns = Callable[[str, str], bool]
"""Says of a table and a chain whether the chain is one of those in question."""


def cleanup(config: Config, *, kube_proxy: bool) -> int:
    """Remove our rules and say what was removed; return the exit status.

    Args:
        config: which variant, or both.
        kube_proxy: remove what kube-proxy made too, in iptables and nftables, even where pyproxy never ran.

    Raises:
        ApplyError: some rules could not be removed.
    """
    return asyncio.run(_cleanup(config, kube_proxy=kube_proxy))


async def _cleanup(config: Config, *, kube_proxy: bool) -> int:
    asked = config.iptables_variant
    variants = Variant if asked is IptablesVariant.AUTO else (Variant(asked.value),)
    for variant in variants:
        for family in Family:
            if is_available(family, variant):
                _say(f"{family}, iptables-{variant.value}", await _clean(family, variant, kube_proxy=kube_proxy))
    if shutil.which("nft"):
        for owner in ("pyproxy", "kube-proxy") if kube_proxy else ("pyproxy",):
            for family in Family:
                _say(f"{family}, nftables", await _delete_nft_table(f"{_NFT_FAMILIES[family]} {owner}"))
    # Last: a set that a rule names cannot be destroyed.
    from pyproxy.loop.ipvs_cleanup import remove_ipvs  # noqa: PLC0415  # most nodes never had this mode

    for family, what in (await remove_ipvs()).items():
        _say(f"{family}, IPVS", what)
    return 0


async def retire(variants: Collection[Variant], *, nftables: bool) -> None:
    """Remove what the agent left in another mode or variant, now that this one's rules are complete.

    Raises:
        ApplyError: something could not be removed.
    """
    for variant, family in product(variants, Family):
        tables = [table for table in IPVS_TABLES if variant is Variant.NFT or table in legacy_tables(family)]
        if tables and is_available(family, variant):
            what = await _clean_by_restore(family, variant, tables, kube_proxy=False)
            level = logging.WARNING if what == _LEFT_ALONE else logging.INFO
            _tell(level, f"{family}, iptables-{variant.value}", what)
    if nftables and shutil.which("nft"):
        for nft_family in _NFT_FAMILIES.values():
            _tell(logging.INFO, nft_family, await _delete_nft_table(f"{nft_family} pyproxy"))


def _tell(level: int, where: str, what: str) -> None:
    if what:
        logger.log(level, "%s: %s", where, what)


def _say(where: str, what: str) -> None:
    if what:
        print(f"{where}: {what}")  # noqa: T201  # this command's output is for people


async def _clean(family: Family, variant: Variant, *, kube_proxy: bool) -> str:
    """Clean one family in one variant; return what to say of it."""
    tables = [*IPVS_TABLES]
    if variant is Variant.LEGACY:
        # A table that is only looked at would be created.
        tables = [table for table in tables if table in legacy_tables(family)]
        try:
            return _clean_legacy(family, tables, kube_proxy=kube_proxy) if tables else ""
        except LibraryError as error:
            logger.warning("%s: cleaning by iptables-legacy-restore: %s", family, error)
    return await _clean_by_restore(family, variant, tables, kube_proxy=kube_proxy)


def _clean_legacy(family: Family, names: Collection[str], *, kube_proxy: bool) -> str:
    with open_tables(family, names) as tables:
        chains = {
            name: [chain for chain in table.chains() if _is_removable(name, chain, kube_proxy=kube_proxy)]
            for name, table in tables.items()
        }
        if not (kube_proxy or _has_marker(chains)):
            return _LEFT_ALONE if any(chains.values()) else ""
        hooks = 0
        for name, table in tables.items():
            for hook in _hooks(family, name, chains[name]):
                hooks += table.delete_rule(hook.chain, hook.rule.removeprefix(f"-A {hook.chain} "))
            table.delete_chains(chains[name])
            table.commit()
    return _removed(chains, hooks)


async def _clean_by_restore(family: Family, variant: Variant, names: Collection[str], *, kube_proxy: bool) -> str:
    chains, hooks = await _find(family, variant, names, partial(_is_removable, kube_proxy=kube_proxy))
    if not (kube_proxy or _has_marker(chains)):
        return _LEFT_ALONE if any(chains.values()) else ""
    await _remove(family, variant, chains, hooks)
    return _removed(chains, sum(map(len, hooks.values())))


async def remove_chains(family: Family, variant: Variant, names: Collection[str], owns: Owns) -> None:
    """Remove the chains of some tables that a test picks, with the hooks that jump to them."""
    existing = [name for name in names if variant is Variant.NFT or name in legacy_tables(family)]
    await _remove(family, variant, *await _find(family, variant, existing, owns))


async def _find(family: Family, variant: Variant, names: Collection[str], owns: Owns) -> tuple[Chains, Chains]:
    """Return the chains that a test picks, and the rules that hook them in, by table."""
    chains: dict[str, list[str]] = {}
    hooks: dict[str, list[str]] = {}
    for name in names:
        lines = (await save(family, variant, name)).splitlines()
        # In a thread: the agent does this beside its work, and the other mode's rules may be many.
        ours = Ownership(owns=owns, shared=(), hooks=ipvs_hooks(family))
        keys, rules = await asyncio.to_thread(saved_rules, name, lines, ours)
        chains[name] = [key.chain for key in keys]
        jumps = {hook.rule for hook in _hooks(family, name, chains[name])}
        hooks[name] = [rule.rule for rule in rules if rule.rule in jumps]
    return chains, hooks


async def _remove(family: Family, variant: Variant, chains: Chains, hooks: Chains) -> None:
    text = "".join(_removal(name, chains[name], hooks[name]) for name in chains if chains[name])
    if text:
        await restore(family, variant, text)


def _removal(table: str, chains: Collection[str], hooks: Collection[str]) -> str:
    """Return restore input that removes rules first, then the chains that nothing jumps to any more."""
    lines = [f":{chain} - [0:0]" for chain in chains]
    lines += [f"-D {rule.removeprefix('-A ')}" for rule in hooks]
    lines += [f"-X {chain}" for chain in chains]
    return "\n".join((f"*{table}", *lines, "COMMIT\n"))


def _is_removable(table: str, chain: str, *, kube_proxy: bool) -> bool:
    if chain == _KUBE_PROXY_CANARY:
        return kube_proxy
    return is_ours(table, chain) or (table, chain) == (FILTER, PROBE_CHAIN)


def _has_marker(chains: Chains) -> bool:
    return any(chain_names.CANARY in found for found in chains.values())


def _hooks(family: Family, table: str, chains: Collection[str]) -> list[HookKey]:
    """Return the hooks that jump to chains that will be removed."""
    hooks = (hook for hook in ipvs_hooks(family) if hook.table == table)
    return [hook for hook in hooks if hook.rule.rpartition(" ")[2] in chains]


def _removed(chains: Chains, hooks: int) -> str:
    count = sum(map(len, chains.values()))
    return f"removed {count} chains and {hooks} hook rules" if count else ""


async def _delete_nft_table(name: str) -> str:
    """Delete a table of nftables mode, such as ``ip kube-proxy``, if it is there; return what to say of it."""
    if f"table {name}" not in (await run(["nft", "list", "tables"])).stdout.splitlines():
        return ""
    argv = ["nft", "delete", "table", *name.split()]
    result = await run(argv)
    if result.status:
        message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
        raise ApplyError(message, retryable=True)
    return f"removed table {name}"
