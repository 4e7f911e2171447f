"""Named packet counters in our tables.

Message types and attributes: ``linux/netfilter/nf_tables.h``.
"""

from pyproxy.backends.nftables.layout import TABLE
from pyproxy.linux.netlink import NETLINK_NETFILTER, NFGENMSG_BYTES, NetlinkSocket, attributes, text_attribute
from pyproxy.linux.nf_tables_messages import number_attribute, request
from pyproxy.model.address import Family

_GET_OBJECT = 19  # NFT_MSG_GETOBJ
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 1, 2, 3, 4  # NFTA_OBJ_*
_COUNTER = 1  # NFT_OBJECT_COUNTER
_COUNTER_PACKETS = 2  # NFTA_COUNTER_PACKETS, 64 bits in network order
_BUFFER_BYTES = 1 << 14


def counted_packets(family: Family, counter: str) -> int:
    """Return the packets that a named counter of our table has counted since the table was created.

    Raises:
        OSError: there is no such counter.
    """
    name = text_attribute(_OBJECT_TABLE, TABLE) + text_attribute(_OBJECT_NAME, counter)
    with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink:
        kind, body = request(_GET_OBJECT, family, name + number_attribute(_OBJECT_TYPE, _COUNTER))
        data, start, end = netlink.ask(kind, body, header=NFGENMSG_BYTES)
    for attribute, at, to in attributes(data, start, end):
        if attribute == _OBJECT_DATA:
            return next(
                int.from_bytes(data[a:b]) for kind, a, b in attributes(data, at, to) if kind == _COUNTER_PACKETS
            )
    message = f"counter {counter} without data"
    raise OSError(message)
