"""Messages to nf_tables, packed by hand: requests, transactions, chains and rules.

Message and attribute numbers: `linux/netfilter/nf_tables.h`.
"""

from pyproxy.linux.netlink import (
    ACK,
    APPEND,
    CREATE,
    HEADER,
    NF_TABLES,
    NFGENMSG_BYTES,
    REQUEST,
    attribute,
    nest,
    nfgenmsg,
    text_attribute,
)
from pyproxy.model.address import Family

GET_TABLE, GET_CHAIN, GET_RULE = 1, 4, 7
_NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE, _DELETE_RULE = 3, 5, 6, 8

_BATCH_BEGIN, _BATCH_END = 16, 17
PROTOCOL_FAMILIES = {Family.IPV4: 2, Family.IPV6: 10}
BODY_AT = HEADER.size + NFGENMSG_BYTES

LIST_ITEM = 1
TABLE_NAME, TABLE_FLAGS = 1, 2
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY = 1, 3, 4, 5
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS, RULE_USERDATA = 1, 2, 3, 4, 7
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_NUMGEN_REGISTER, _NUMGEN_MODULUS, _NUMGEN_TYPE, _NUMGEN_OFFSET = 1, 2, 3, 4
_NUMGEN_RANDOM = 1
_META_KEY, _META_SOURCE_REGISTER = 2, 3
_META_PRIORITY = 2
_REGISTER = 1


def number_attribute(kind: int, value: int) -> bytes:
    """Pack a number; nf_tables has them in network order."""
    return attribute(kind, value.to_bytes(4))


def request(kind: int, family: Family | None = None, body: bytes = b"") -> tuple[int, bytes]:
    """Return type and body of a request to the nf_tables subsystem."""
    return NF_TABLES << 8 | kind, nfgenmsg(PROTOCOL_FAMILIES[family] if family else 0) + body


def message(kind: int, flags: int, family: Family, body: bytes) -> bytes:
    """Pack one message of the nf_tables subsystem; its sequence number is 0."""
    number, whole = request(kind, family, body)
    return HEADER.pack(HEADER.size + len(whole), number, flags | REQUEST, 0, 0) + whole


def batch(messages: list[bytes], sequence: int) -> bytes:
    """Join messages to one transaction, of which the kernel takes all or nothing; the last is acknowledged."""
    *others, last = messages
    last = (
        HEADER.pack(*(*HEADER.unpack_from(last)[:2], REQUEST | ACK | _flags(last), sequence, 0)) + last[HEADER.size :]
    )
    return b"".join((_border(_BATCH_BEGIN), *others, last, _border(_BATCH_END)))


def _flags(packed: bytes) -> int:
    flags: int = HEADER.unpack_from(packed)[2]
    return flags


def _border(kind: int) -> bytes:
    return HEADER.pack(BODY_AT, kind, REQUEST, 0, 0) + nfgenmsg(0, NF_TABLES)


def new_chain(family: Family, table: str, chain: str) -> bytes:
    """Return the message that adds a chain without a hook, unless it is there."""
    return message(_NEW_CHAIN, CREATE, family, text_attribute(CHAIN_TABLE, table) + text_attribute(CHAIN_NAME, chain))


def delete_chain(family: Family, table: str, chain: str) -> bytes:
    """Return the message that deletes a chain with its rules."""
    return message(_DELETE_CHAIN, 0, family, text_attribute(CHAIN_TABLE, table) + text_attribute(CHAIN_NAME, chain))


def flush_chain(family: Family, table: str, chain: str) -> bytes:
    """Return the message that deletes the rules of a chain."""
    return message(_DELETE_RULE, 0, family, text_attribute(RULE_TABLE, table) + text_attribute(RULE_CHAIN, chain))


def delete_rule(family: Family, table: str, chain: str, handle: int) -> bytes:
    """Return the message that deletes the rule with a handle."""
    body = text_attribute(RULE_TABLE, table) + text_attribute(RULE_CHAIN, chain)
    return message(_DELETE_RULE, 0, family, body + attribute(RULE_HANDLE, handle.to_bytes(8)))


def new_slot_rule(family: Family, table: str, chain: str, count: int) -> bytes:
    """Return the message that adds the rule ``meta priority set numgen random mod COUNT``."""
    body = (
        text_attribute(RULE_TABLE, table)
        + text_attribute(RULE_CHAIN, chain)
        + nest(RULE_EXPRESSIONS, slot_expressions(count))
    )
    return message(_NEW_RULE, CREATE | APPEND, family, body)


def slot_expressions(count: int) -> bytes:
    """Return the expressions of the rule of `new_slot_rule`, as the kernel lists them too."""
    return _expression(
        "numgen",
        number_attribute(_NUMGEN_REGISTER, _REGISTER),
        number_attribute(_NUMGEN_MODULUS, count),
        number_attribute(_NUMGEN_TYPE, _NUMGEN_RANDOM),
        number_attribute(_NUMGEN_OFFSET, 0),
    ) + _expression(
        "meta", number_attribute(_META_KEY, _META_PRIORITY), number_attribute(_META_SOURCE_REGISTER, _REGISTER)
    )


def _expression(name: str, *values: bytes) -> bytes:
    # The kernel lists these without the flag for nested attributes, and takes them so, too.
    data = attribute(_EXPRESSION_DATA, b"".join(values))
    return attribute(LIST_ITEM, text_attribute(_EXPRESSION_NAME, name) + data)
