"""``takeover --dry-run``: what would change if pyproxy took over from the kube-proxy of this node now.

The law of this file: it reads. What belongs into the kernel comes from the same code as for ``dump-rules``, and what would
be removed from the same code as the removal. No rule is tried, so what a kernel would refuse is not found here.
"""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from pyproxy.backends.iptables.attribution import list_rules
from pyproxy.backends.iptables.chain_names import is_ours
from pyproxy.backends.iptables.restore_text import Ownership, saved_rules
from pyproxy.backends.iptables.ruleset import TABLES, ChainKey
from pyproxy.backends.ipvs.static_rules import is_ours as is_ours_in_ipvs
from pyproxy.backends.kube_proxy import is_kube_proxys
from pyproxy.backends.listing import RuleListing
from pyproxy.backends.registry import open_dumper
from pyproxy.cli.dump_rules import report, tracked, tracked_listings
from pyproxy.config.config import Config, ProxyMode
from pyproxy.errors import ConfigError, SourceError
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family
from pyproxy.model.change import Kind
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.node.node_name import own_node, own_node_name
from pyproxy.takeover.running_proxy import detect_running_proxy
from pyproxy.takeover.stale_rules import Chains, IptablesSnapshot, find_stale_rules, kube_proxy_nft_tables

_LIST_SECONDS = 30.0
_NEEDED = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)
# Chains of kube-proxy's nftables mode (`servicePortChainNameBase`); an endpoint's name goes on behind "__".
_NFT_CHAIN = re.compile(
    r"(?m)^\tchain \w+-[A-Z2-7]{8}-(?P<namespace>[^/\s]+)/(?P<name>[^/\s]+)/(?P<protocol>\w+)/(?P<port>[a-z0-9-]*)"
)

Counts = Mapping[ServicePortName, int]


def show_plan(config: Config) -> int:
    """Print what a take-over would change; return the exit status.

    Raises:
        ConfigError: the mode or the API server is not to be had here, or there is nothing to take over on trial.
        SourceError: the cluster's objects cannot be read.
    """
    if config.service_proxy_name:
        message = "--service-proxy-name: a trial takes nothing over; `pyproxy dump-rules` says what it has"
        raise ConfigError(message)
    for line in asyncio.run(_plan(config)):
        print(line)  # noqa: T201  # this command's output is for people
    return 0


async def _plan(config: Config) -> list[str]:
    config = replace(config, proxy_mode=await _mode(config))
    tracker, node = await _known(config)
    planned = {listing.family: listing for listing in tracked_listings(tracker, node, open_dumper(config))}
    used = await _used_variant(config)
    saved = await find_stale_rules(used, is_ours_in_ipvs if config.proxy_mode is ProxyMode.IPVS else is_ours)
    tables = await kube_proxy_nft_tables()
    alive = await detect_running_proxy(config)
    lines = [f"mode {config.proxy_mode.value}{f', iptables-{used.value}' if used else ''}; nothing is written"]
    lines += [f"a kube-proxy lives on this node, and `run` would wait for its end: {alive}"] if alive else []
    for family, listing in planned.items():
        mine = [each for each in saved if each.family is family]
        lines += [
            "",
            f"{family}:",
            *_chain_lines(listing, mine, used),
            *_left_lines(mine),
            *_table_lines(tables, family),
        ]
        lines += _ipvs_lines(family)
        lines += _service_lines(_its_counts(mine, tables.get(family, "")), _counts(listing))
    return lines


async def _mode(config: Config) -> ProxyMode:
    if config.proxy_mode is not ProxyMode.AUTO:
        return config.proxy_mode
    from pyproxy.backends.nftables.mode import NftablesMode  # noqa: PLC0415  # each mode brings its own modules

    with suppress(ConfigError):
        await NftablesMode.open(config)
        return ProxyMode.NFTABLES
    return ProxyMode.IPTABLES


async def _used_variant(config: Config) -> Variant | None:
    if config.proxy_mode is ProxyMode.NFTABLES:
        return None
    from pyproxy.backends.iptables.mode import choose_variant  # noqa: PLC0415  # see above

    return (await choose_variant(config))[0]


# What is wanted


async def _known(config: Config) -> tuple[Tracker, Node]:
    name = own_node_name(config)
    if config.manifests:
        from pyproxy.manifests.files import read_objects  # noqa: PLC0415  # YAML

        objects = await asyncio.to_thread(read_objects, config.manifests)
        report(objects, sys.stderr)
        found = next((node for node in objects.nodes if node.name == name), None)
        return tracked(objects), own_node(config, found, name)
    tracker = await _listed(config, name)
    return tracker, own_node(config, tracker.node, name)


async def _listed(config: Config, node_name: str) -> Tracker:
    """Return what the API server lists.

    Raises:
        SourceError: it did not answer in time.
    """
    from pyproxy.kubeapi import access, api  # noqa: PLC0415  # HTTP
    from pyproxy.kubeapi.load_access import load_access  # noqa: PLC0415  # see above

    settings = access.AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)
    tracker = Tracker()
    wants_service_cidrs: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    wants_service_cidrs.set_result(False)
    watched = api.Watched(node_name=node_name, service_cidrs=wants_service_cidrs)
    source = api.ApiSource(lambda: load_access(settings), watched, api.Store(deliver=tracker.apply))
    following = asyncio.create_task(source.run())
    try:
        async with asyncio.timeout(_LIST_SECONDS):
            while not tracker.knows(*_NEEDED):
                await asyncio.wait([following], timeout=0.05)
                if following.done():
                    following.result()
    except TimeoutError:
        message = (
            f"the API server did not list Services, EndpointSlices and the Node {node_name} in {_LIST_SECONDS:g} s"
        )
        raise SourceError(message) from None
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return tracker


def _counts(listing: RuleListing) -> Counts:
    return {name: len(rules) for name, rules in listing.services.items()}


# What is there


def _its_counts(saved: Iterable[IptablesSnapshot], nft_table: str) -> Counts:
    """Return how many rules, or chains of nftables, each Service port has that are kube-proxy's, or ours before."""
    counts: Counter[ServicePortName] = Counter()
    for each in saved:
        counts.update(_counts(_live_listing(each)))
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


# What is said


def _chain_lines(planned: RuleListing, saved: Iterable[IptablesSnapshot], used: Variant | None) -> Iterator[str]:
    """Say what becomes of the chains that kube-proxy and the iptables mode both have."""
    for each in saved:
        if each.variant is used:
            live = _live_listing(each)
            before, after = _texts(live), _texts(planned)
            kinds = Counter(_fate(before.get(key), after.get(key)) for key in {*before, *after})
            text = ", ".join(f"{kinds[kind]} {kind}" for kind in ("change", "appear", "go", "stay"))
            yield f"  chains in iptables-{each.variant.value}: {text}"


def _texts(listing: RuleListing) -> dict[ChainKey, str]:
    texts = {ChainKey(*key): "" for key in listing.chains}
    for rule in (*listing.common, *(rule for rules in listing.services.values() for rule in rules), *listing.last):
        key = ChainKey(rule.table, rule.chain)
        if key in texts:
            texts[key] += f"{rule.rule}\n"
    return texts


def _fate(before: str | None, after: str | None) -> str:
    if before == after:
        return "stay"
    if before is None:
        return "appear"
    return "go" if after is None else "change"


def _left_lines(saved: Iterable[IptablesSnapshot]) -> Iterator[str]:
    for each in saved:
        if count := _count(each.left):
            yield f"  removed from iptables-{each.variant.value}, once our rules are complete: {count} chains"


def _count(chains: Chains) -> int:
    return sum(map(len, chains.values()))


def _table_lines(tables: Mapping[Family, str], family: Family) -> Iterator[str]:
    if family in tables:
        count = tables[family].count("\n\tchain ")
        yield f"  removed from nftables, once our rules are complete: table kube-proxy with {count} chains"


def _ipvs_lines(family: Family) -> Iterator[str]:
    from pyproxy.backends.ipvs.cleanup import kube_proxy_state  # noqa: PLC0415  # most nodes never had this mode

    if left := kube_proxy_state(family):
        yield (
            f"  removed from IPVS, once our rules are complete and connections have ended: {len(left.virtuals)} virtual"
            f" servers, {len(left.ips)} addresses and {len(left.names)} sets"
        )


def _service_lines(before: Counts, after: Counts) -> Iterator[str]:
    if before or after:
        yield "  rules of each Service port, those that are there and those of pyproxy:"
    for name in sorted({*before, *after}):
        remark = "" if name in before and name in after else "  (only there)" if name in before else "  (only here)"
        yield f"    {name} {name.protocol.value}: {before.get(name, 0)} -> {after.get(name, 0)}{remark}"
