"""Chains and rules that iptables-nft has in nf_tables, by netlink: what is read here does not depend on other rules."""

import errno
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing

from pyproxy.backends.iptables.hook_rules import FoundRule, Match, Parts, hooks_among, parts_of_matches
from pyproxy.backends.iptables.ruleset import HookKey
from pyproxy.backends.listing import Counters
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import attributes, text_attribute
from pyproxy.linux.nf_tables_messages import delete_chain, delete_rule, flush_chain, request
from pyproxy.linux.nf_tables_socket import NfTablesSocket
from pyproxy.linux.uapi.nf_tables import (
    NftaChain,
    NftaCounter,
    NftaData,
    NftaExpr,
    NftaImmediate,
    NftaMatch,
    NftaRule,
    NftaVerdict,
    NftMsg,
    NftVerdict,
)
from pyproxy.model.address import Family

_VERDICTS = {0: "DROP", 1: "ACCEPT"}
_JUMPS = (NftVerdict.JUMP, NftVerdict.GOTO)
_REMARK = 0
"""The type of a comment in the user data of a rule (libnftnl's udata): newer versions of iptables have it there."""
_ADDRESS_PARTS = ("payload", "bitwise", "cmp")

Values = Mapping[int, bytes]


def chain_names(family: Family, table: str) -> list[str]:
    """Return the names of all chains of a table, empty where it does not exist.

    Raises:
        ApplyError: they cannot be read.
    """
    with _netlink() as netlink:
        return [
            name.decode()
            for values in _dump(netlink, request(NftMsg.GETCHAIN, family))
            if values.get(NftaChain.TABLE) == table.encode() + b"\0" and (name := values[NftaChain.NAME].rstrip(b"\0"))
        ]


def find_hooks(family: Family, table: str, hooks: Collection[HookKey]) -> list[tuple[HookKey, FoundRule]]:
    """Return which of these hooks are in a table, as often as they are there.

    Raises:
        ApplyError: the rules cannot be read.
    """
    with _netlink() as netlink:
        return _find(netlink, family, table, hooks)


def jump_targets(family: Family, table: str, chain: str) -> set[str]:
    """Return the chains that rules of a chain jump to whatever the packet is.

    Raises:
        ApplyError: the rules cannot be read.
    """
    with _netlink() as netlink:
        return {rule.parts.target for rule in _rules(netlink, family, table, chain) if rule.parts is not None}


def delete_hooks(family: Family, copies: Mapping[HookKey, int]) -> int:
    """Delete hooks but for so many copies of each; return how many transactions that took, 0 or 1.

    By handle: ``iptables-nft -D`` fails where it does not know a rule before the one that it is to delete.

    Raises:
        ApplyError: the rules cannot be read, or changed meanwhile.
    """
    with _netlink() as netlink:
        messages = _deletions(netlink, family, copies)
        return netlink.commit(messages) if messages else 0


def remove_chains(family: Family, chains: Mapping[str, Collection[str]], hooks: Collection[HookKey]) -> None:
    """Delete chains, given by table, and every copy of hooks, all in one transaction.

    Raises:
        ApplyError: it was refused as a whole; rules of others jump to one of the chains, for example.
    """
    with _netlink() as netlink:
        messages = [flush_chain(family, table, chain) for table, names in chains.items() for chain in names]
        messages += _deletions(netlink, family, dict.fromkeys(hooks, 0))
        # Last: by now no rule of ours jumps to them.
        messages += [delete_chain(family, table, chain) for table, names in chains.items() for chain in names]
        if messages:
            netlink.commit(messages)


def _deletions(netlink: NfTablesSocket, family: Family, copies: Mapping[HookKey, int]) -> list[bytes]:
    left = dict(copies)
    messages = []
    for table in dict.fromkeys(hook.table for hook in copies):
        for hook, rule in _find(netlink, family, table, copies):
            left[hook] -= 1
            if left[hook] < 0:
                messages.append(delete_rule(family, table, hook.chain, rule.handle))
    return messages


def _netlink() -> closing[NfTablesSocket]:
    try:
        return closing(NfTablesSocket())
    except OSError as error:
        message = f"nf_tables: {error.strerror}"
        raise ApplyError(message, retryable=True) from error


def _find(
    netlink: NfTablesSocket, family: Family, table: str, hooks: Iterable[HookKey]
) -> list[tuple[HookKey, FoundRule]]:
    mine = [hook for hook in hooks if hook.table == table]
    chains = dict.fromkeys(hook.chain for hook in mine)
    return hooks_among(mine, {chain: _rules(netlink, family, table, chain) for chain in chains})


def _rules(netlink: NfTablesSocket, family: Family, table: str, chain: str) -> list[FoundRule]:
    of_chain = text_attribute(NftaRule.TABLE, table) + text_attribute(NftaRule.CHAIN, chain)
    names = {NftaRule.TABLE: table.encode() + b"\0", NftaRule.CHAIN: chain.encode() + b"\0"}
    return [
        _rule(values)
        for values in _dump(netlink, request(NftMsg.GETRULE, family, of_chain))
        if names.items() <= values.items()
    ]


def _dump(netlink: NfTablesSocket, asked: tuple[int, bytes]) -> Iterator[Values]:
    try:
        for data, start, end in netlink.read(asked):
            yield {kind: bytes(data[left:right]) for kind, left, right in attributes(data, start, end)}
    except OSError as error:
        if error.errno != errno.ENOENT:
            message = f"nf_tables: {error.strerror}"
            raise ApplyError(message, retryable=True) from error


def _rule(values: Values) -> FoundRule:
    target, remark = "", ""
    matches: list[Match] = []
    counters = Counters(0, 0)
    has_pod_cidrs, has_addresses = True, False
    for name, data in _expressions(values.get(NftaRule.EXPRESSIONS, b"")):
        if name == "match":
            matches.append(_match(data))
        elif name == "counter":
            counters = Counters(int.from_bytes(data[NftaCounter.PACKETS]), int.from_bytes(data[NftaCounter.BYTES]))
        elif name == "immediate":
            target = _verdict(data)
        elif name in _ADDRESS_PARTS:
            has_addresses = True
        else:
            has_pod_cidrs = False
    user = values.get(NftaRule.USERDATA, b"")
    if len(user) > 1 and user[0] == _REMARK:
        remark = user[2 : 2 + user[1]].rstrip(b"\0").decode(errors="replace")
    parts: Parts | None = None
    if has_pod_cidrs and target:
        parts = parts_of_matches(target, matches, has_addresses=has_addresses)
    if parts is not None and not parts.comment:
        parts = parts._replace(comment=remark)
    return FoundRule(parts, counters, int.from_bytes(values[NftaRule.HANDLE]))


def _expressions(packed: bytes) -> Iterator[tuple[str, Values]]:
    for _, item in _pairs(packed):
        found = dict(_pairs(item))
        yield found[NftaExpr.NAME].rstrip(b"\0").decode(), dict(_pairs(found.get(NftaExpr.DATA, b"")))


def _match(data: Values) -> Match:
    name = data[NftaMatch.NAME].rstrip(b"\0").decode()
    return Match(name, int.from_bytes(data[NftaMatch.REV]), data[NftaMatch.INFO])


def _verdict(data: Values) -> str:
    """Return the chain that a rule jumps to, or its verdict."""
    verdict = dict(_pairs(dict(_pairs(data.get(NftaImmediate.DATA, b""))).get(NftaData.VERDICT, b"")))
    code = int.from_bytes(verdict.get(NftaVerdict.CODE, b""), signed=True)
    if code in _JUMPS:
        return verdict[NftaVerdict.CHAIN].rstrip(b"\0").decode()
    return _VERDICTS.get(code, "") if verdict else ""


def _pairs(packed: bytes) -> Iterator[tuple[int, bytes]]:
    view = memoryview(packed)
    for kind, start, end in attributes(view, 0, len(view)):
        yield kind, bytes(view[start:end])
