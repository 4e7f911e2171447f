"""Named packet counters of the kernel (nfnetlink_acct), which rules increment with the match ``nfacct``.

A counter outlives the rules that use it, is shared by both address families, and is never reset. Messages have a struct
nfgenmsg (family 0) and the attributes of `linux/netfilter/nfnetlink_acct.h`; numbers are in network byte order.
"""

import errno
from enum import IntEnum

from pyproxy.backends.interface import Unsupported
from pyproxy.linux.netlink import (
    CREATE,
    EXCL,
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    Message,
    NetlinkSocket,
    attributes,
    nfgenmsg,
    text_attribute,
)

_NFNL_SUBSYS_ACCT = 7 << 8
"""The subsystem is the upper byte of a message type (`linux/netfilter/nfnetlink.h`)."""
# The default of 4 MiB would be reserved for a conversation of two small messages.
_BUFFER_BYTES = 1 << 14


# By their enum in `linux/netfilter/nfnetlink_acct.h`.


class _Message(IntEnum):
    NFNL_MSG_ACCT_NEW = _NFNL_SUBSYS_ACCT | 0
    NFNL_MSG_ACCT_GET = _NFNL_SUBSYS_ACCT | 1


class _Attribute(IntEnum):
    NFACCT_NAME = 1
    NFACCT_PKTS = 2


def ensure_counter(name: str) -> Unsupported | None:
    """Create a counter, with a name of at most 31 letters, unless it exists; None: there is one now."""
    message = Message(
        _Message.NFNL_MSG_ACCT_NEW, CREATE | EXCL, nfgenmsg(0) + text_attribute(_Attribute.NFACCT_NAME, name)
    )
    try:
        with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink:
            refusals = netlink.send([message])
    except OSError as error:
        return Unsupported(str(error.strerror))
    # EXCL makes the kernel answer EEXIST for a counter that is there already, and leave its value as it is.
    return next((Unsupported(refusal.text) for refusal in refusals if refusal.code != errno.EEXIST), None)


def counted_packets(name: str) -> int:
    """Return the number of packets that a counter has counted.

    Raises:
        OSError: there is no such counter, or no privilege to read it.
    """
    body = nfgenmsg(0) + text_attribute(_Attribute.NFACCT_NAME, name)
    with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink:
        data, start, end = netlink.ask(_Message.NFNL_MSG_ACCT_GET, body, header=NFGENMSG_BYTES)
    return next(
        int.from_bytes(data[at:to]) for kind, at, to in attributes(data, start, end) if kind == _Attribute.NFACCT_PKTS
    )


def has_counter(name: str) -> bool:
    """Return whether a counter exists and may be read."""
    try:
        counted_packets(name)
    except OSError:
        return False
    return True
