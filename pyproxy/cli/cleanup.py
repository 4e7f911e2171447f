"""The command ``cleanup``: takes out of the kernel what is ours, in all modes, variants and families.

A second run finds nothing. What is ours, and what stays, is `takeover.stale_rules`' and `backends.ipvs.cleanup`'s decision.
"""

import asyncio
import shutil
from itertools import product

from pyproxy.config.config import Config, IptablesVariant
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.model.address import Family
from pyproxy.takeover.stale_rules import NFT_FAMILIES, delete_nft_table, nft_tables, remove_own_rules


def cleanup(config: Config, *, include_kube_proxy: bool) -> int:
    """Remove our rules and say what was removed; return the exit status.

    Args:
        config: which variant, or both.
        include_kube_proxy: remove what kube-proxy made too, in any mode, even where pyproxy never ran.

    Raises:
        ApplyError: some rules could not be removed.
    """
    return asyncio.run(_cleanup(config, include_kube_proxy=include_kube_proxy))


async def _cleanup(config: Config, *, include_kube_proxy: bool) -> int:
    asked = config.iptables_variant
    variants = Variant if asked is IptablesVariant.AUTO else (Variant(asked.value),)
    for variant in variants:
        for family in Family:
            if is_available(family, variant):
                _say(
                    f"{family}, iptables-{variant.value}",
                    await remove_own_rules(family, variant, include_kube_proxy=include_kube_proxy),
                )
    if shutil.which("nft"):
        for owner, family in product(nft_tables(include_kube_proxy=include_kube_proxy), Family):
            _say(f"{family}, nftables", await delete_nft_table(f"{NFT_FAMILIES[family]} {owner}"))
    # Last: a set that a rule names cannot be destroyed.
    from pyproxy.backends.ipvs.cleanup import remove_ipvs  # noqa: PLC0415  # most nodes never had this mode

    for family, what in remove_ipvs(include_kube_proxy=include_kube_proxy):
        _say(f"{family}, IPVS", what)
    return 0


def _say(where: str, what: str) -> None:
    if what:
        print(f"{where}: {what}")  # noqa: T201  # this command's output is for people
