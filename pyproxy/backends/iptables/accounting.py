"""Named packet counters of the kernel (nfnetlink_acct), which rules count in by the match ``nfacct``.

A counter outlives the rules, is one for both address families, and is never set back. Message types and attributes:
``linux/netfilter/nfnetlink_acct.h``.
"""

import errno

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

_NEW, _GET = 0x700, 0x701
_NAME, _PACKETS = 1, 2
_BUFFER_BYTES = 1 << 14


def ensure_counter(name: str) -> Unsupported | None:
    """Create a counter, with a name of at most 31 letters, unless it exists; None: there is one now."""
    message = Message(_NEW, CREATE | EXCL, nfgenmsg(0) + text_attribute(_NAME, name))
    try:
        with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink:
            refusals = netlink.send([message])
    except OSError as error:
        return Unsupported(str(error.strerror))
    return next((Unsupported(refusal.text) for refusal in refusals if refusal.code != errno.EEXIST), None)


def counted_packets(name: str) -> int:
    """Return the packets that a counter has counted.

    Raises:
        OSError: there is no such counter.
    """
    with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink:
        data, start, end = netlink.ask(_GET, nfgenmsg(0) + text_attribute(_NAME, name), header=NFGENMSG_BYTES)
    return next(int.from_bytes(data[at:to]) for kind, at, to in attributes(data, start, end) if kind == _PACKETS)


def has_counter(name: str) -> bool:
    """Say whether there is such a counter; without the privilege to read it there is none."""
    try:
        counted_packets(name)
    except OSError:
        return False
    return True
