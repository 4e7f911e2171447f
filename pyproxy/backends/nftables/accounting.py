"""Named packet counters in our tables, read by netlink."""

from pyproxy.backends.nftables.layout import TABLE
from pyproxy.linux.netlink import NETLINK_NETFILTER, NFGENMSG_BYTES, NetlinkSocket, attribute_values, text_attribute
from pyproxy.linux.nf_tables_messages import number_attribute, request
from pyproxy.linux.uapi.nf_tables import NftaCounter, NftaObj, NftMsg, NftObject
from pyproxy.model.address import Family

_BUFFER_BYTES = 1 << 14  # one message in each direction, so the large buffers for transactions are not needed


def counted_packets(family: Family, counter: str) -> int:
    """Return the packets that a named counter of our table has counted since the table was created.

    Raises:
        OSError: the counter does not exist, or the kernel refused.
    """
    name = text_attribute(NftaObj.TABLE, TABLE) + text_attribute(NftaObj.NAME, counter)
    body = name + number_attribute(NftaObj.TYPE, NftObject.COUNTER)
    with NetlinkSocket(NETLINK_NETFILTER, buffer_bytes=_BUFFER_BYTES) as netlink:
        data, start, end = netlink.ask(*request(NftMsg.GETOBJ, family, body), header=NFGENMSG_BYTES)
    # The answer repeats the attributes of the request, and has the values in DATA.
    values = attribute_values(data, start, end).get(NftaObj.DATA, memoryview(b""))
    found = attribute_values(values, 0, len(values))
    if NftaCounter.PACKETS not in found:
        message = f"counter {counter} without data"
        raise OSError(message)
    return int.from_bytes(found[NftaCounter.PACKETS])
