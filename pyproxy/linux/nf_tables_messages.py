"""Messages of nf_tables: requests, transactions, chains and rules (`linux/netfilter/nf_tables.h`).

The type of a message is the subsystem in the upper byte and `NftMsg` in the lower one.

A transaction is one send: NFNL_MSG_BATCH_BEGIN, the messages, NFNL_MSG_BATCH_END; the resource of the first names the
subsystem. The kernel performs all of it or nothing. It sends the acknowledgements and errors of all messages at the end
(`nfnetlink_rcv_batch`), so one acknowledgement, of the last message, is enough.
"""

from pyproxy.linux.netlink import (
    ACK,
    APPEND,
    CREATE,
    HEADER,
    NFGENMSG_BYTES,
    REQUEST,
    attribute,
    nest,
    nfgenmsg,
    text_attribute,
)
from pyproxy.linux.uapi.nf_tables import (
    NftaChain,
    NftaExpr,
    NftaList,
    NftaMeta,
    NftaNg,
    NftaRule,
    NftMeta,
    NftMsg,
    NftNg,
    NftReg,
)
from pyproxy.linux.uapi.nfnetlink import NfnlMsg, NfnlSubsys
from pyproxy.model.address import Family

# Where the attributes of a message begin.
BODY_AT = HEADER.size + NFGENMSG_BYTES
_SUBSYSTEM = NfnlSubsys.NFTABLES << 8


def number_attribute(kind: int, value: int) -> bytes:
    """Return a packed attribute with a 32-bit number."""
    return attribute(kind, value.to_bytes(4))


def request(kind: int, family: Family | None = None, body: bytes = b"") -> tuple[int, bytes]:
    """Return type and body of a request; without a family it is about all families."""
    # NFPROTO_UNSPEC is 0 (`linux/netfilter.h`).
    return _SUBSYSTEM | kind, nfgenmsg(family.socket_family if family else 0) + body


def message(kind: int, flags: int, family: Family, body: bytes) -> bytes:
    """Return a packed message of a transaction, with sequence number 0."""
    number, whole = request(kind, family, body)
    return HEADER.pack(HEADER.size + len(whole), number, flags | REQUEST, 0, 0) + whole


def batch(messages: list[bytes], sequence: int) -> bytes:
    """Return a whole transaction; the kernel acknowledges its last message, which gets the sequence number."""
    *before, last = messages
    length, kind, flags, _, port = HEADER.unpack_from(last)
    last = HEADER.pack(length, kind, flags | ACK, sequence, port) + last[HEADER.size :]
    begin, end = (
        HEADER.pack(BODY_AT, border, REQUEST, 0, 0) + nfgenmsg(0, NfnlSubsys.NFTABLES)
        for border in (NfnlMsg.BATCH_BEGIN, NfnlMsg.BATCH_END)
    )
    return b"".join((begin, *before, last, end))


def new_chain(family: Family, table: str, chain: str) -> bytes:
    """Return the message that adds a chain without a hook, if it does not exist."""
    body = text_attribute(NftaChain.TABLE, table) + text_attribute(NftaChain.NAME, chain)
    return message(NftMsg.NEWCHAIN, CREATE, family, body)


def delete_chain(family: Family, table: str, chain: str) -> bytes:
    """Return the message that deletes a chain with its rules."""
    body = text_attribute(NftaChain.TABLE, table) + text_attribute(NftaChain.NAME, chain)
    return message(NftMsg.DELCHAIN, 0, family, body)


def flush_chain(family: Family, table: str, chain: str) -> bytes:
    """Return the message that deletes the rules of a chain: DELRULE without a handle."""
    body = text_attribute(NftaRule.TABLE, table) + text_attribute(NftaRule.CHAIN, chain)
    return message(NftMsg.DELRULE, 0, family, body)


def delete_rule(family: Family, table: str, chain: str, handle: int) -> bytes:
    """Return the message that deletes the rule with a handle."""
    body = text_attribute(NftaRule.TABLE, table) + text_attribute(NftaRule.CHAIN, chain)
    return message(NftMsg.DELRULE, 0, family, body + attribute(NftaRule.HANDLE, handle.to_bytes(8)))


def new_slot_rule(family: Family, table: str, chain: str, count: int) -> bytes:
    """Return the message that adds the rule ``meta priority set numgen random mod COUNT``."""
    body = text_attribute(NftaRule.TABLE, table) + text_attribute(NftaRule.CHAIN, chain)
    return message(NftMsg.NEWRULE, CREATE | APPEND, family, body + nest(NftaRule.EXPRESSIONS, slot_expressions(count)))


def slot_expressions(count: int) -> bytes:
    """Return the expressions of the rule of `new_slot_rule`, byte for byte as the kernel lists them."""
    # The first expression leaves its number in a register, the second one copies it to the packet.
    numgen = (
        number_attribute(NftaNg.DREG, NftReg.REG_1),
        number_attribute(NftaNg.MODULUS, count),
        number_attribute(NftaNg.TYPE, NftNg.RANDOM),
        number_attribute(NftaNg.OFFSET, 0),
    )
    meta = number_attribute(NftaMeta.KEY, NftMeta.PRIORITY), number_attribute(NftaMeta.SREG, NftReg.REG_1)
    return b"".join(
        # The kernel lists expressions without the flag for nested attributes, and also accepts them so.
        attribute(
            NftaList.ELEM,
            text_attribute(NftaExpr.NAME, name) + attribute(NftaExpr.DATA, b"".join(values)),
        )
        for name, values in (("numgen", numgen), ("meta", meta))
    )
