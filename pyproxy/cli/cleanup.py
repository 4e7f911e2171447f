"""The command ``cleanup``: removes our rules from the kernel, in all modes, variants and families.

A second run finds nothing. `takeover.stale_rules` and `backends.ipvs.cleanup` decide what is removed and what is kept.
"""

import asyncio
import shutil
from itertools import product

import click

from pyproxy.backends.iptables.chain_names import KUBELET_FIREWALL
from pyproxy.backends.ipvs.cleanup import removable_ipvs, remove_ipvs
from pyproxy.cli.control import is_agent_here
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
from pyproxy.errors import PyproxyError
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.model.address import Family
from pyproxy.takeover.running_proxy import detect_running_agent, detect_running_proxy
from pyproxy.takeover.stale_rules import (
    NFT_FAMILIES,
    delete_nft_table,
    has_nft_table,
    nft_tables,
    remove_own_rules,
    removed_text,
)

_KUBELET_FIREWALL = f"{KUBELET_FIREWALL} and the jumps to it are kept: the kubelet uses them as well"


@click.command(
    "cleanup",
    cls=FlagCommand,
    params=[
        Flag(["--kube-proxy"], SWITCH, "Also remove kube-proxy's rules, even if pyproxy has never run on this node."),
        Flag(["--dry-run"], SWITCH, "Print what would be removed, and change nothing."),
        Flag(["--force"], SWITCH, "Remove the rules even if an agent is running, which then writes them again."),
        *config_flags(
            (
                "iptables_variant",
                "control_socket",
                "metrics_bind_address",
                "healthz_bind_address",
                *LOG_ATTRIBUTES,
            )
        ),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    kube_proxy: bool | None,
    dry_run: bool | None,
    force: bool | None,
    **_: object,
) -> None:
    """Remove pyproxy's rules from the kernel. Succeeds if there are none.

    Refuses while an agent is running on this node, and with --kube-proxy while kube-proxy is running. The flags for
    addresses and the control socket are those of the agent; they are used to find it.
    """
    config = configured_settings(ctx).config
    include_kube_proxy = bool(kube_proxy)
    require_capabilities("cleanup")
    found = ""
    if not force:
        if config.control_socket and is_agent_here(config.control_socket):
            found = f"an agent of pyproxy is running, it listens on {config.control_socket}"
        elif agent := asyncio.run(detect_running_agent(config)):
            found = f"an agent of pyproxy is running, {agent}"
        # kube-proxy is not in the way of removing our own rules: after a rollback it runs already.
        elif include_kube_proxy and (proxy := asyncio.run(detect_running_proxy(config))):
            found = f"a kube-proxy is running, {proxy}"
    if found:
        # A dry run goes on after the refusal: its list is what the user wants to see.
        message = f"{found}: it would write its rules again; stop it first, or give --force"
        if not dry_run:
            raise ProxyRunsError(message)
        click.echo(f"cleanup would refuse: {message}", err=True)
    asyncio.run(remove_rules(config, include_kube_proxy=include_kube_proxy, dry_run=bool(dry_run)))


class ProxyRunsError(PyproxyError):
    """A proxy runs on this node, and would write the removed rules again."""


async def remove_rules(config: Config, *, include_kube_proxy: bool, dry_run: bool = False) -> None:
    """Remove our rules and print what was removed.

    Args:
        config: selects one variant of iptables, or both.
        include_kube_proxy: also remove kube-proxy's rules of any mode, even if pyproxy never ran on this node.
        dry_run: only print what would be removed.

    Raises:
        ApplyError: some rules could not be removed.
        RightsError: this process may not change rules.
    """
    require_capabilities("cleanup")
    verb = "would remove" if dry_run else "removed"
    # Both variants, unless one was chosen: the mode and the variant may have changed since the rules were written.
    chosen = config.iptables_variant
    variants = Variant if chosen is IptablesVariant.AUTO else (Variant(chosen.value),)
    for variant, family in product(variants, Family):
        if is_available(family, variant):
            removed = await remove_own_rules(family, variant, include_kube_proxy=include_kube_proxy, dry_run=dry_run)
            if removed:
                kept = f"; {_KUBELET_FIREWALL}" if removed.chains and removed.has_kubelet_firewall else ""
                click.echo(f"{family}, iptables-{variant.value}: {removed_text(removed, verb)}{kept}")
    if shutil.which("nft"):
        # A table is deleted with all its chains, sets and maps in one transaction.
        change_table = has_nft_table if dry_run else delete_nft_table
        for owner, family in product(nft_tables(include_kube_proxy=include_kube_proxy), Family):
            if await change_table(NFT_FAMILIES[family], owner):
                click.echo(f"{family}, nftables: {verb} table {NFT_FAMILIES[family]} {owner}")
    # Last: the kernel refuses to destroy a set that a rule still names.
    change_ipvs = removable_ipvs if dry_run else remove_ipvs
    for family, gone in await asyncio.to_thread(change_ipvs, include_kube_proxy=include_kube_proxy):
        click.echo(
            f"{family}, IPVS: {verb} {gone.virtual_servers} virtual servers, {gone.addresses} addresses"
            f" and {gone.sets} sets"
        )
