"""The destinations that the kernel delivers to this node itself, as `addrtype LOCAL` and `fib daddr type local` match them.

They are the routes of type "local" in the table "local". These are not the same as the addresses of interfaces: 127.0.0.0/8
is local as a whole, `ip route add local` makes other ranges local, and an interface that is down keeps its IPv4 addresses but
not their local routes.
"""

import errno

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE, device_index
from pyproxy.linux.netlink import NetlinkSocket, attribute_values, host_number, parsing
from pyproxy.linux.uapi.netlink import NetlinkProtocol
from pyproxy.linux.uapi.rtnetlink import RTMSG, Rta, Rtm, Rtn, RtTable
from pyproxy.model.address import Family, Network


def local_networks(family: Family) -> frozenset[Network]:
    """Return what is local to this network namespace, without the addresses of Services in IPVS mode. Blocks briefly.

    Raises:
        ApplyError: the kernel refused; a later call may succeed.
    """
    ipvs_device = device_index(IPVS_DEVICE)
    body = RTMSG.pack(family.socket_family, 0, 0, 0, RtTable.LOCAL, 0, 0, Rtn.LOCAL, 0)
    found: set[Network] = set()
    try:
        with NetlinkSocket(NetlinkProtocol.ROUTE) as netlink, parsing():
            for data, start, end in netlink.dump_whole(Rtm.GETROUTE, body, header=RTMSG.size):
                _, prefix, _, _, table, _, _, kind, _ = RTMSG.unpack_from(data, start - RTMSG.size)
                values = attribute_values(data, start, end)
                device = host_number(values.get(Rta.OIF, b""))
                # Linux before 4.20 ignores the table in the request and dumps all of them.
                if (table, kind) == (RtTable.LOCAL, Rtn.LOCAL) and (not ipvs_device or device != ipvs_device):
                    found.add(Network(bytes(values.get(Rta.DST, bytes(family.bits // 8))), prefix))
    except OSError as error:
        if error.errno == errno.ENOENT:  # This namespace never had a route of this family.
            return frozenset()
        message = f"the addresses of this node cannot be read: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
    return frozenset(found)
