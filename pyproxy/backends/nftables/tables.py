"""What the kernel says of our table: its chains and rules, and a digest of them."""

from collections.abc import Mapping
from hashlib import sha256

from pyproxy.backends.nftables.elements import Layout
from pyproxy.backends.nftables.layout import SLOT_CHAINS, TABLE
from pyproxy.linux.netlink import attributes, text_attribute
from pyproxy.linux.nf_tables_messages import request
from pyproxy.linux.nf_tables_socket import NfTablesSocket
from pyproxy.linux.uapi.nf_tables import NftaChain, NftaRule, NftaTable, NftMsg
from pyproxy.model.address import Family

_MARKER = "layout-"
_OUR_TABLE = f"{TABLE}\0".encode()
DAMAGED = Layout("")
"""A layout that nobody asks for."""


def is_dormant(netlink: NfTablesSocket, family: Family) -> bool:
    """Say whether no packet meets our table."""
    tables = _dump(netlink, request(NftMsg.GETTABLE, family))
    return any(any(values[NftaTable.FLAGS]) for values in tables if values[NftaTable.NAME] == _OUR_TABLE)


class TableListing:
    """The chains of our table with their rules, as the kernel lists them now."""

    def __init__(self, netlink: NfTablesSocket, family: Family) -> None:
        self.chains = {
            _name(values[NftaChain.NAME]): values.get(NftaChain.HOOK, b"") + values.get(NftaChain.POLICY, b"")
            for values in _dump(netlink, request(NftMsg.GETCHAIN, family))
            if values.get(NftaChain.TABLE) == _OUR_TABLE
        }
        """The hook and the policy of each."""
        self.rules: dict[str, list[bytes]] = {}
        """The expressions of the rules of each chain that has some."""
        of_table = request(NftMsg.GETRULE, family, text_attribute(NftaRule.TABLE, TABLE))
        for values in _dump(netlink, of_table) if self.chains else ():
            if values.get(NftaRule.TABLE) == _OUR_TABLE:
                self.rules.setdefault(_name(values[NftaRule.CHAIN]), []).append(values[NftaRule.EXPRESSIONS])

    @property
    def markers(self) -> list[str]:
        """The names of the chains that mark a layout."""
        return [name for name in self.chains if name.startswith(_MARKER)]

    @property
    def layout(self) -> Layout:
        """The layout that is marked, unless chains or rules are no longer those that were marked."""
        if len(self.markers) != 1:
            return DAMAGED
        version, _, digest = self.markers[0].removeprefix(_MARKER).partition("-")
        return Layout(version) if digest == self._digest() else DAMAGED

    def marker_of(self, layout: Layout) -> str:
        """Return the name of the chain that marks what is listed here as a layout."""
        return f"{_MARKER}{layout.version}-{self._digest()}"

    def _digest(self) -> str:
        digest = sha256()
        for name in sorted(self.chains):
            if not name.startswith((_MARKER, SLOT_CHAINS)):
                digest.update(b"\0".join((name.encode(), self.chains[name], *self.rules.get(name, ()))))
        return digest.hexdigest()[:16]


def is_marker(chain: str) -> bool:
    """Say whether a chain marks a layout."""
    return chain.startswith(_MARKER)


def _dump(netlink: NfTablesSocket, asked: tuple[int, bytes]) -> list[Mapping[int, bytes]]:
    return [
        {kind: bytes(data[left:right]) for kind, left, right in attributes(data, start, end)}
        for data, start, end in netlink.read(asked)
    ]


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
