"""The command ``takeover --dry-run``: what would change if pyproxy took over from the kube-proxy of this node now.

It only reads. The rules that the kernel should have come from the same code as in ``dump-rules``, and the rules that would
be removed from the same code as the removal. No rule is tried out, so a rule that the kernel would refuse is not found.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import click

from pyproxy.backends.iptables.attribution import list_rules
from pyproxy.backends.iptables.restore_text import Ownership, saved_rules
from pyproxy.backends.iptables.ruleset import TABLES, ChainKey
from pyproxy.backends.kube_proxy import is_kube_proxys
from pyproxy.backends.listing import RuleListing
from pyproxy.backends.registry import backend_class, choose_mode, open_dumper
from pyproxy.cli.dump_rules import tracked_listings
from pyproxy.cli.flags import EXIT_CODES, SETTINGS, Flag, FlagCommand, config_flags, configured_settings
from pyproxy.cli.live_objects import known_objects
from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.grammar import SWITCH
from pyproxy.errors import ConfigError
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.takeover.running_proxy import detect_running_proxy
from pyproxy.takeover.stale_rules import IptablesSnapshot, find_stale_rules, kube_proxy_nft_tables

# Chains of kube-proxy's nftables mode (`servicePortChainNameBase`); in the name of an endpoint's chain "__" follows.
_NFT_CHAIN = re.compile(
    r"(?m)^\tchain \w+-[A-Z2-7]{8}-(?P<namespace>[^/\s]+)/(?P<name>[^/\s]+)/(?P<protocol>\w+)/(?P<port>[a-z0-9-]*)"
)

Counts = Mapping[ServicePortName, int]


@click.command(
    "takeover",
    cls=FlagCommand,
    params=[
        Flag(
            ["--dry-run"], SWITCH, "Print the changes and write nothing. Required: the takeover itself happens in run."
        ),
        *config_flags(OPTIONS, hidden=True),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(ctx: click.Context, /, *, dry_run: bool | None, **_: object) -> None:
    """Show what run would change in the kernel of this node, compared with the rules that kube-proxy has there now.

    Takes all flags of run. Writes nothing. Prints a line for each Service port with the number of rules that it has now
    and the number that it would have with pyproxy.
    """
    if not dry_run:
        message = "give --dry-run: the takeover itself happens in run, once kube-proxy is gone"
        raise click.UsageError(message, ctx)
    config = configured_settings(ctx).config
    if config.service_proxy_name:
        message = (
            "--service-proxy-name: pyproxy takes nothing over when it runs side-by-side with kube-proxy; for its rules"
            " use `pyproxy dump-rules`"
        )
        raise ConfigError(message)
    require_capabilities("takeover --dry-run")
    for line in asyncio.run(_plan(config)):
        click.echo(line)


async def _plan(config: Config) -> list[str]:
    config = await choose_mode(config)
    backend = backend_class(config.proxy_mode)
    tracker, node = await known_objects(config)
    planned = {listing.family: listing for listing in tracked_listings(tracker, node, open_dumper(config))}
    used = await backend.choose_iptables_variant(config)
    saved = await find_stale_rules(used, backend.owns_chain)
    tables = await kube_proxy_nft_tables()
    running = await detect_running_proxy(config)
    lines = [f"mode {config.proxy_mode.value}{f', iptables-{used.value}' if used else ''}; nothing is written"]
    if running:
        lines.append(f"kube-proxy is running on this node, and `run` would wait until it has stopped: {running}")
    for family, listing in planned.items():
        mine = [each for each in saved if each.family is family]
        table = tables.get(family, "")
        lines += ["", f"{family}:", *_chain_lines(listing, mine, used), *_removal_lines(family, mine, table)]
        counts = {name: len(rules) for name, rules in listing.services.items()}
        lines += _service_lines(_present_counts(mine, table), counts)
    return lines


def _present_counts(saved: Iterable[IptablesSnapshot], nft_table: str) -> Counts:
    """Return how many rules (in nftables: chains) of kube-proxy or an earlier pyproxy each Service port has now."""
    counts: Counter[ServicePortName] = Counter()
    for each in saved:
        counts.update({name: len(rules) for name, rules in _live_listing(each).services.items()})
    for found in _NFT_CHAIN.finditer(nft_table):
        service = NamespacedName(found["namespace"], found["name"])
        counts[ServicePortName(service, found["port"], Protocol(found["protocol"]))] += 1
    return counts


def _live_listing(saved: IptablesSnapshot) -> RuleListing:
    owned = Ownership(owns=is_kube_proxys, shared=(), hooks=())
    parts = [saved_rules(table, saved.tables.get(table, "").splitlines(), owned) for table in TABLES]
    return list_rules(
        saved.family, [key for keys, _ in parts for key in keys], [rule for _, rules in parts for rule in rules]
    )


def _chain_lines(planned: RuleListing, saved: Iterable[IptablesSnapshot], used: Variant | None) -> Iterator[str]:
    """Yield what happens to the chains whose names kube-proxy and the iptables mode share."""
    for each in saved:
        if each.variant is used:
            before, after = _chain_texts(_live_listing(each)), _chain_texts(planned)
            kinds = Counter[str]()
            for key in {*before, *after}:
                if key not in before:
                    kinds["appear"] += 1
                elif key not in after:
                    kinds["go"] += 1
                else:
                    kinds["stay" if before[key] == after[key] else "change"] += 1
            text = ", ".join(f"{kinds[kind]} {kind}" for kind in ("change", "appear", "go", "stay"))
            yield f"  chains in iptables-{each.variant.value}: {text}"


def _chain_texts(listing: RuleListing) -> dict[ChainKey, str]:
    texts = {ChainKey(*key): "" for key in listing.chains}
    for rule in (*listing.common, *(rule for rules in listing.services.values() for rule in rules), *listing.last):
        key = ChainKey(rule.table, rule.chain)
        if key in texts:
            texts[key] += f"{rule.rule}\n"
    return texts


def _removal_lines(family: Family, saved: Iterable[IptablesSnapshot], nft_table: str) -> Iterator[str]:
    """Yield what would be removed from iptables, nftables and IPVS in one family."""
    from pyproxy.backends.ipvs.cleanup import kube_proxy_state  # noqa: PLC0415  # most nodes never had this mode

    for each in saved:
        if count := sum(map(len, each.left.values())):
            yield f"  removed from iptables-{each.variant.value}, once our rules are complete: {count} chains"
    if nft_table:
        count = nft_table.count("\n\tchain ")
        yield f"  removed from nftables, once our rules are complete: table kube-proxy with {count} chains"
    if left := kube_proxy_state(family):
        yield (
            f"  removed from IPVS, once our rules are complete and connections have ended: {len(left.virtuals)} virtual"
            f" servers, {len(left.ips)} addresses and {len(left.names)} sets"
        )


def _service_lines(before: Counts, after: Counts) -> Iterator[str]:
    if before or after:
        yield "  rules of each Service port, now and with pyproxy:"
    for name in sorted({*before, *after}):
        remark = "" if name in before and name in after else "  (only now)" if name in before else "  (only pyproxy)"
        yield f"    {name} {name.protocol.value}: {before.get(name, 0)} -> {after.get(name, 0)}{remark}"
