"""Named packet counters of the kernel (nfnetlink_acct), which rules increment with the match ``nfacct``.

A counter outlives the rules that use it, is shared by both address families, and is never reset.
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
    attribute_values,
    nfgenmsg,
    parsing,
    text_attribute,
)
from pyproxy.linux.uapi.nfnetlink import NfnlSubsys
from pyproxy.linux.uapi.nfnetlink_acct import Nfacct, NfnlMsgAcct

# The default of 4 MiB would be reserved for a conversation of two small messages.
_BUFFER_BYTES = 1 << 14


_NEW = NfnlSubsys.ACCT << 8 | NfnlMsgAcct.NEW
_GET = NfnlSubsys.ACCT << 8 | NfnlMsgAcct.GET


def ensure_counter(name: str) -> Unsupported | None:
    """Create a counter, with a name of at most 31 letters, unless it exists; None: there is one now."""
    message = Message(_NEW, CREATE | EXCL, nfgenmsg(0) + text_attribute(Nfacct.NAME, name))
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
    body = nfgenmsg(0) + text_attribute(Nfacct.NAME, name)
    with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink, parsing():
        data, start, end = netlink.ask(_GET, body, header=NFGENMSG_BYTES)
        return int.from_bytes(attribute_values(data, start, end)[Nfacct.PKTS])


def has_counter(name: str) -> bool:
    """Return whether a counter exists and may be read."""
    try:
        counted_packets(name)
    except OSError:
        return False
    return True
