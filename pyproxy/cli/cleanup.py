"""The command ``cleanup``: removes our rules from the kernel, in all modes, variants and families.

A second run finds nothing. `takeover.stale_rules` and `backends.ipvs.cleanup` decide what is removed and what is kept.
"""

import asyncio
import shutil
from itertools import product

import click

from pyproxy.backends.ipvs.cleanup import remove_ipvs
from pyproxy.cli.flags import (
    EXIT_CODES,
    LOG_ATTRIBUTES,
    SETTINGS,
    Flag,
    FlagCommand,
    config_flags,
    configured_settings,
)
from pyproxy.config.config import Config, IptablesVariant
from pyproxy.config.grammar import SWITCH
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.model.address import Family
from pyproxy.takeover.stale_rules import NFT_FAMILIES, delete_nft_table, nft_tables, remove_own_rules, removed_text


@click.command(
    "cleanup",
    cls=FlagCommand,
    params=[
        Flag(["--kube-proxy"], SWITCH, "Also remove kube-proxy's rules, even if pyproxy has never run on this node."),
        *config_flags(("iptables_variant", *LOG_ATTRIBUTES)),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(ctx: click.Context, /, *, kube_proxy: bool | None, **_: object) -> None:
    """Remove pyproxy's rules from the kernel. Succeeds if there are none."""
    ctx.exit(remove_rules(configured_settings(ctx).config, include_kube_proxy=bool(kube_proxy)))


def remove_rules(config: Config, *, include_kube_proxy: bool) -> int:
    """Remove our rules and print what was removed; return the exit status.

    Args:
        config: selects one variant of iptables, or both.
        include_kube_proxy: also remove kube-proxy's rules of any mode, even if pyproxy never ran on this node.

    Raises:
        ApplyError: some rules could not be removed.
        RightsError: this process may not change rules.
    """
    require_capabilities("cleanup")
    return asyncio.run(_remove_rules(config, include_kube_proxy=include_kube_proxy))


async def _remove_rules(config: Config, *, include_kube_proxy: bool) -> int:
    chosen = config.iptables_variant
    variants = Variant if chosen is IptablesVariant.AUTO else (Variant(chosen.value),)
    for variant in variants:
        for family in Family:
            if is_available(family, variant):
                removed = await remove_own_rules(family, variant, include_kube_proxy=include_kube_proxy)
                if removed:
                    click.echo(f"{family}, iptables-{variant.value}: {removed_text(removed)}")
    if shutil.which("nft"):
        for owner, family in product(nft_tables(include_kube_proxy=include_kube_proxy), Family):
            if await delete_nft_table(NFT_FAMILIES[family], owner):
                click.echo(f"{family}, nftables: removed table {NFT_FAMILIES[family]} {owner}")
    # Last: the kernel refuses to destroy a set that a rule still names.
    for family, gone in remove_ipvs(include_kube_proxy=include_kube_proxy):
        click.echo(
            f"{family}, IPVS: removed {gone.virtual_servers} virtual servers, {gone.addresses} addresses"
            f" and {gone.sets} sets"
        )
    return 0
