"""Finds the matches and targets of x_tables that the kernel lacks, with the same request that iptables-nft sends.

The answer repeats the attributes; ENOENT means that there is no such extension in this revision. The kernel loads the
module if it is installed, as it does when a rule needs it. No rule is written.
"""

import errno

from pyproxy.linux.netlink import NETLINK_NETFILTER, NFGENMSG_BYTES, NetlinkSocket, attribute, nfgenmsg, text_attribute
from pyproxy.linux.uapi.nf_tables import NftaCompat
from pyproxy.linux.uapi.nfnetlink import NfnlSubsys
from pyproxy.model.address import Family


def missing_extensions(family: Family, matches: dict[str, int], targets: dict[str, int]) -> list[str]:
    """Return the names of the extensions that the kernel does not have.

    Args:
        family: the family of the rules.
        matches: revisions of matches, by name.
        targets: revisions of targets, by name.

    Raises:
        OSError: the kernel cannot be asked, for example because it does not have nft_compat.
    """
    wanted = [(name, revision, 0) for name, revision in matches.items()]
    wanted += [(name, revision, 1) for name, revision in targets.items()]
    missing = []
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        for name, revision, kind in wanted:
            body = nfgenmsg(family.socket_family) + text_attribute(NftaCompat.NAME, name)
            body += attribute(NftaCompat.REV, revision.to_bytes(4)) + attribute(NftaCompat.TYPE, kind.to_bytes(4))
            try:
                netlink.ask(NfnlSubsys.NFT_COMPAT << 8, body, header=NFGENMSG_BYTES)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EPROTONOSUPPORT):
                    raise
                missing.append(name)
    return missing
