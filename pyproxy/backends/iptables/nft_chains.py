"""Chains and rules of iptables-nft in nf_tables, by netlink: what is read here does not depend on foreign rules.

iptables-nft keeps a rule as a list of expressions (NFTA_RULE_EXPRESSIONS), each with a name and data of its own:

    match      an x_tables match: name, revision, and the same data as in a legacy table
    payload, bitwise, cmp    an address match, compiled to native expressions
    counter    bytes and packets, 8 bytes each, in network byte order
    immediate  loads a verdict: a code, and for a jump the name of the chain
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from pyproxy.backends.iptables.hook_rules import FoundRule, Match, Parts, hooks_among, parts_of_matches
from pyproxy.backends.iptables.ruleset import HookKey
from pyproxy.backends.listing import Counters
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import attributes, parsing, text_attribute
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

_VERDICTS: Mapping[int | None, str] = {0: "DROP", 1: "ACCEPT"}  # NF_DROP and NF_ACCEPT of `linux/netfilter.h`
# The type of a comment in the user data of a rule (libnftnl: NFTNL_UDATA_RULE_COMMENT). iptables 1.8.9 has comments as
# matches; newer versions have them here.
_UDATA_COMMENT = 0
_ADDRESS_EXPRESSIONS = ("payload", "bitwise", "cmp")

Values = Mapping[int, bytes]
"""Attributes by type."""


def chain_names(family: Family, table: str) -> list[str]:
    """Return the names of all chains of a table; none if it does not exist.

    Raises:
        ApplyError: they cannot be read.
    """
    # GETCHAIN dumps the chains of all tables of a family; the kernel does not filter them.
    with _netlink() as netlink:
        return [
            name.decode()
            for values in _dump(netlink, request(NftMsg.GETCHAIN, family))
            if values.get(NftaChain.TABLE) == table.encode() + b"\0" and (name := values[NftaChain.NAME].rstrip(b"\0"))
        ]


def find_hooks(family: Family, table: str, hooks: Collection[HookKey]) -> list[tuple[HookKey, FoundRule]]:
    """Return which of these hooks are in a table, once for each copy.

    Raises:
        ApplyError: the rules cannot be read.
    """
    with _netlink() as netlink:
        return _find(netlink, family, table, hooks)


def jump_targets(family: Family, table: str, chain: str) -> set[str]:
    """Return the targets of the hooks in a chain: of its rules that match a comment and conntrack states at most.

    Raises:
        ApplyError: the rules cannot be read.
    """
    with _netlink() as netlink:
        return {rule.parts.target for rule in _rules(netlink, family, table, chain) if rule.parts is not None}


def delete_hooks(family: Family, copies: Mapping[HookKey, int]) -> int:
    """Delete hooks except for a number of copies of each; return the number of transactions, 0 or 1.

    Rules are deleted by handle: ``iptables-nft -D`` fails if it does not know a rule before the one that it deletes.

    Raises:
        ApplyError: the rules cannot be read, or were changed meanwhile.
    """
    with _netlink() as netlink:
        messages = _deletions(netlink, family, copies)
        return netlink.commit(messages) if messages else 0


def remove_chains(family: Family, chains: Mapping[str, Collection[str]], hooks: Collection[HookKey]) -> None:
    """Delete chains, given by table, and every copy of hooks, in one transaction.

    Raises:
        ApplyError: the transaction was refused, for example because a foreign rule jumps to one of the chains.
    """
    with _netlink() as netlink:
        messages = [flush_chain(family, table, chain) for table, names in chains.items() for chain in names]
        messages += _deletions(netlink, family, dict.fromkeys(hooks, 0))
        # Last: the kernel refuses to delete a chain that a rule jumps to, also within a transaction.
        messages += [delete_chain(family, table, chain) for table, names in chains.items() for chain in names]
        if messages:
            netlink.commit(messages)


def _deletions(netlink: NfTablesSocket, family: Family, copies: Mapping[HookKey, int]) -> list[bytes]:
    # Rules come in the order of the chain, so the copies that are kept are the first ones.
    left = dict(copies)
    messages = []
    for table in dict.fromkeys(hook.table for hook in copies):
        for hook, rule in _find(netlink, family, table, copies):
            left[hook] -= 1
            if left[hook] < 0:
                messages.append(delete_rule(family, table, hook.chain, rule.handle))
    return messages


@contextmanager
def _netlink() -> Iterator[NfTablesSocket]:
    try:
        with NfTablesSocket() as netlink, parsing():
            yield netlink
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
    # Table and chain are checked again, so that the result does not depend on the kernel's filter.
    return [
        _rule(values)
        for values in _dump(netlink, request(NftMsg.GETRULE, family, of_chain))
        if names.items() <= values.items()
    ]


def _dump(netlink: NfTablesSocket, what: tuple[int, bytes]) -> Iterator[Values]:
    with suppress(FileNotFoundError):  # a table that does not exist
        for data, start, end in netlink.read(what):
            yield {kind: bytes(data[left:right]) for kind, left, right in attributes(data, start, end)}


def _rule(values: Values) -> FoundRule:
    # A rule with an expression that no hook of ours has is foreign; its parts are None.
    target, comment = "", ""
    matches: list[Match] = []
    counters = Counters(0, 0)
    is_foreign, has_addresses = False, False
    for _, packed in _pairs(values.get(NftaRule.EXPRESSIONS, b"")):
        expression = dict(_pairs(packed))
        data = dict(_pairs(expression.get(NftaExpr.DATA, b"")))
        name = _text(expression[NftaExpr.NAME])
        # Comments and conntrack states are x_tables matches also in the nft variant.
        if name == "match":
            revision = int.from_bytes(data[NftaMatch.REV])
            matches.append(Match(_text(data[NftaMatch.NAME]), revision, data[NftaMatch.INFO]))
        elif name == "counter":
            packets, size = data[NftaCounter.PACKETS], data[NftaCounter.BYTES]
            counters = Counters(int.from_bytes(packets), int.from_bytes(size))
        elif name == "immediate":
            # Immediate data is a verdict, or a value that is loaded into a register.
            verdict = dict(_pairs(dict(_pairs(data.get(NftaImmediate.DATA, b""))).get(NftaData.VERDICT, b"")))
            code = int.from_bytes(verdict.get(NftaVerdict.CODE, b""), signed=True) if verdict else None
            is_jump = code in (NftVerdict.JUMP, NftVerdict.GOTO)
            target = _text(verdict[NftaVerdict.CHAIN]) if is_jump else _VERDICTS.get(code, "")
        elif name in _ADDRESS_EXPRESSIONS:
            has_addresses = True
        else:
            is_foreign = True
    # User data is a list of type (1 byte), length (1 byte) and value.
    user = values.get(NftaRule.USERDATA, b"")
    if len(user) > 1 and user[0] == _UDATA_COMMENT:
        comment = _text(user[2 : 2 + user[1]])
    parts: Parts | None = None
    if target and not is_foreign:
        parts = parts_of_matches(target, matches, has_addresses=has_addresses)
    if parts is not None and not parts.comment:
        parts = parts._replace(comment=comment)
    return FoundRule(parts, counters, int.from_bytes(values[NftaRule.HANDLE]))


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _pairs(packed: bytes) -> Iterator[tuple[int, bytes]]:
    view = memoryview(packed)
    for kind, start, end in attributes(view, 0, len(view)):
        yield kind, bytes(view[start:end])
