"""``cleanup``: takes out of the kernel what is ours, in both variants and families; a second run finds nothing.

Chains with kube-proxy's names are ours only where our marker chain stands beside them. What the kubelet
shares (KUBE-FIREWALL and the jumps to it) stays.
"""

import asyncio
import logging
import sys

from pyproxy.apply.iptables import IptablesKernel, Variant, is_available
from pyproxy.apply.iptables_variant import legacy_tables
from pyproxy.apply.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.compile import chain_names
from pyproxy.config import Config, IptablesVariant
from pyproxy.loop.iptables_mode import ownership
from pyproxy.model.address import Family
from pyproxy.model.ruleset import FILTER, NAT, TABLES, ChainKey, HookKey, RulesetKey

logger = logging.getLogger(__name__)

_MARKERS = (ChainKey(FILTER, chain_names.CANARY), ChainKey(NAT, chain_names.CANARY))


def cleanup(config: Config, *, kube_proxy: bool) -> int:
    """Remove our rules and say what was removed; return the exit status.

    Args:
        config: which variant, or both.
        kube_proxy: remove chains with kube-proxy's names even where pyproxy never ran.

    Raises:
        ApplyError: some rules could not be removed.
    """
    return asyncio.run(_cleanup(config, kube_proxy=kube_proxy))


async def _cleanup(config: Config, *, kube_proxy: bool) -> int:
    asked = config.iptables_variant
    variants = Variant if asked is IptablesVariant.AUTO else (Variant(asked.value),)
    for variant in variants:
        for family in Family:
            if is_available(family, variant) and _has_tables(family, variant):
                await _clean_family(family, variant, kube_proxy=kube_proxy)
    return 0


async def _clean_family(family: Family, variant: Variant, *, kube_proxy: bool) -> None:
    counter = NftGeneration().counter() if variant is Variant.NFT else LegacyCounter(family, TABLES)
    kernel = IptablesKernel(family, variant, counter, ownership(family))
    present = await kernel.read()
    where = f"{family}, iptables-{variant.value}"
    if not kube_proxy and not any(marker in present for marker in _MARKERS):
        if any(map(_is_removable, present)):
            print(f"{where}: kube-proxy's chains are left alone: pyproxy's marker {chain_names.CANARY} is not there")  # noqa: T201
        return
    change = {key: (value, None) for key, value in present.items() if _is_removable(key)}
    await kernel.apply(change)
    if change:
        chains = sum(isinstance(key, ChainKey) for key in change)
        print(f"{where}: removed {chains} chains and {len(change) - chains} hook rules", file=sys.stdout)  # noqa: T201


def _is_removable(key: RulesetKey) -> bool:
    if isinstance(key, HookKey):
        return chain_names.KUBELET_FIREWALL not in (key.chain, key.rule.rpartition(" ")[2])
    return key.chain != chain_names.KUBELET_FIREWALL


def _has_tables(family: Family, variant: Variant) -> bool:
    """Say whether there may be rules at all; asking the legacy programs would create the tables."""
    return variant is Variant.NFT or bool(legacy_tables(family) & set(TABLES))
