"""Named packet counters in our tables, read by netlink.

Layout (`linux/netfilter/nf_tables.h`; numbers in network byte order):

    GETOBJ  nlmsghdr, nfgenmsg, TABLE text, NAME text, TYPE u32; the answer has DATA { BYTES u64, PACKETS u64 } as well
"""

from pyproxy.backends.nftables.layout import TABLE
from pyproxy.linux.netlink import NETLINK_NETFILTER, NFGENMSG_BYTES, NetlinkSocket, attributes, text_attribute
from pyproxy.linux.nf_tables_messages import number_attribute, request
from pyproxy.linux.uapi.nf_tables import NftaCounter, NftaObj, NftMsg, NftObject
from pyproxy.model.address import Family

_BUFFER_BYTES = 1 << 14
"""One message in each direction, so the large buffers for transactions are not needed."""


def counted_packets(family: Family, counter: str) -> int:
    """Return the packets that a named counter of our table has counted since the table was created.

    Raises:
        OSError: the counter does not exist, or the kernel refused.
    """
    name = text_attribute(NftaObj.TABLE, TABLE) + text_attribute(NftaObj.NAME, counter)
    body = name + number_attribute(NftaObj.TYPE, NftObject.COUNTER)
    with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink:
        data, start, end = netlink.ask(*request(NftMsg.GETOBJ, family, body), header=NFGENMSG_BYTES)
    found = {kind: (at, to) for kind, at, to in attributes(data, start, end)}
    if NftaObj.DATA in found:
        for kind, at, to in attributes(data, *found[NftaObj.DATA]):
            if kind == NftaCounter.PACKETS:
                return int.from_bytes(data[at:to])
    message = f"counter {counter} without data"
    raise OSError(message)
