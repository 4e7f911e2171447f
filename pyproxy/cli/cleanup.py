"""The command ``cleanup``: removes our rules from the kernel, in all modes, variants and families.

A second run finds nothing. `takeover.stale_rules` and `backends.ipvs.cleanup` decide what is removed and what is kept.
"""

import asyncio
import shutil
from itertools import product

from pyproxy.config.config import Config, IptablesVariant
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.model.address import Family
from pyproxy.takeover.stale_rules import NFT_FAMILIES, delete_nft_table, nft_tables, remove_own_rules, removed_text


def cleanup(config: Config, *, include_kube_proxy: bool) -> int:
    """Remove our rules and print what was removed; return the exit status.

    Args:
        config: selects one variant of iptables, or both.
        include_kube_proxy: also remove kube-proxy's rules of any mode, even if pyproxy never ran on this node.

    Raises:
        ApplyError: some rules could not be removed.
    """
    return asyncio.run(_cleanup(config, include_kube_proxy=include_kube_proxy))


async def _cleanup(config: Config, *, include_kube_proxy: bool) -> int:
    chosen = config.iptables_variant
    variants = Variant if chosen is IptablesVariant.AUTO else (Variant(chosen.value),)
    for variant in variants:
        for family in Family:
            if is_available(family, variant):
                removed = await remove_own_rules(family, variant, include_kube_proxy=include_kube_proxy)
                if removed:
                    print(f"{family}, iptables-{variant.value}: {removed_text(removed)}")  # noqa: T201  # this command's output
    if shutil.which("nft"):
        for owner, family in product(nft_tables(include_kube_proxy=include_kube_proxy), Family):
            if await delete_nft_table(NFT_FAMILIES[family], owner):
                print(f"{family}, nftables: removed table {NFT_FAMILIES[family]} {owner}")  # noqa: T201  # see above
    # Last: the kernel refuses to destroy a set that a rule still names.
    from pyproxy.backends.ipvs.cleanup import remove_ipvs  # noqa: PLC0415  # most nodes never had this mode

    for family, gone in remove_ipvs(include_kube_proxy=include_kube_proxy):
        print(  # noqa: T201  # see above
            f"{family}, IPVS: removed {gone.virtual_servers} virtual servers, {gone.addresses} addresses"
            f" and {gone.sets} sets"
        )
    return 0
