"""Reading a family's table from the kernel: its elements, and whether chains and rules are as they were written.

The layout is written as text by ``nft`` and read back as netlink attributes, so the two cannot be compared directly. A chain
without rules marks a table as ours instead. Its name has two digests: of the text that the layout was made from, and of the
chains and rules as the kernel listed them afterwards. A start then needs only dumps to find that the table has this version
and is unchanged. Chains that draw a slot are not in the second digest, because they come and go with the counts in use; their
single rule is compared with the one that belongs there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from pyproxy.backends.nftables.element_format import ElementFormat
from pyproxy.backends.nftables.elements import (
    CHAINED,
    LAYOUT,
    PICK,
    PINS,
    SETS,
    ElementKey,
    Layout,
    Value,
    unpack_number,
)
from pyproxy.backends.nftables.layout import NUMBERED_CHAINS, SLOT_CHAINS, TABLE, numbered_chain, slot_chain
from pyproxy.backends.nftables.text import element_text, family_name
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import attributes, parsing, text_attribute
from pyproxy.linux.nf_tables_messages import request, slot_expressions
from pyproxy.linux.nf_tables_socket import NfTablesSocket
from pyproxy.linux.uapi.nf_tables import NftaChain, NftaRule, NftaTable, NftMsg
from pyproxy.model.address import Family

_MARKER = "layout-"
_OUR_TABLE = f"{TABLE}\0".encode()
_CHANGED = Layout("")  # the layout of a table that was changed externally; no program wants it


@dataclass(frozen=True, slots=True)
class TableListing:
    """The chains of our table and their rules."""

    chains: Mapping[str, bytes]
    """Hook and policy of each chain, as packed attributes; empty for a chain without a hook."""
    rules: Mapping[str, Sequence[bytes]]
    """The packed expressions of each rule, by chain; chains without rules are left out."""

    @property
    def markers(self) -> list[str]:
        """The names of the chains that mark a layout."""
        return [name for name in self.chains if name.startswith(_MARKER)]

    @property
    def layout(self) -> Layout | None:
        """The marked layout; None if chains or rules are not the ones that were marked."""
        if len(self.markers) != 1:
            return None
        version, _, digest = self.markers[0].removeprefix(_MARKER).partition("-")
        return Layout(version) if digest == self._digest() else None

    def marker_of(self, layout: Layout) -> str:
        """Return the name of the chain that marks these chains and rules as a layout."""
        return f"{_MARKER}{layout.version}-{self._digest()}"

    def _digest(self) -> str:
        digest = sha256()
        for name in sorted(self.chains):
            if not name.startswith((_MARKER, SLOT_CHAINS)):
                digest.update(b"\0".join((name.encode(), self.chains[name], *self.rules.get(name, ()))))
        return digest.hexdigest()[:16]


class TableReader:
    """Reads the table of one family. Blocks, for as long as dumps of all elements take."""

    def __init__(self, netlink: NfTablesSocket, family: Family) -> None:
        self.netlink = netlink
        self.family = family
        self._formats = {number: ElementFormat(kind, family, TABLE) for number, kind in SETS.items()}
        self._pins = ElementFormat(PINS, family, TABLE)

    @parsing()
    def entries(self) -> dict[ElementKey, Value]:
        """Return all elements and the layout; nothing if the table does not exist or is dormant.

        Raises:
            OSError: a dump failed.
        """
        listing = self.listing()
        if not listing.chains:
            return {}
        # We set no flag. With NFT_TABLE_F_DORMANT the base chains are detached, so no packet passes our rules.
        tables = self._dump(request(NftMsg.GETTABLE, self.family))
        if any(any(values[NftaTable.FLAGS]) for values in tables if values[NftaTable.NAME] == _OUR_TABLE):
            return {}
        found: dict[ElementKey, Value] = {LAYOUT: listing.layout or _CHANGED}
        for number, form in self._formats.items():
            prefix = bytes((number,))
            for key, value in self._elements(form):
                found[ElementKey(prefix + key)] = value
        used = set()
        for key in found:
            if key[0] in CHAINED:
                count = unpack_number(key[1:])
                used.add(numbered_chain(SETS[key[0]], count, self.family).name)
                if key[0] == PICK.number and listing.rules.get(slot_chain(count)) != [slot_expressions(count)]:
                    found[LAYOUT] = _CHANGED
        # Chains and the elements that lead to them are deleted in two transactions; an agent may be killed between them.
        if any(NUMBERED_CHAINS.fullmatch(name) and name not in used for name in listing.chains):
            found[LAYOUT] = _CHANGED
        return found

    @parsing()
    def listing(self) -> TableListing:
        """Return the chains and rules of our table; both are empty if it does not exist.

        Raises:
            OSError: a dump failed.
        """
        # The kernel dumps the chains of all tables of the family; a dump of rules can be limited to one table.
        chains = {
            _name(values[NftaChain.NAME]): values.get(NftaChain.HOOK, b"") + values.get(NftaChain.POLICY, b"")
            for values in self._dump(request(NftMsg.GETCHAIN, self.family))
            if values.get(NftaChain.TABLE) == _OUR_TABLE
        }
        rules: dict[str, list[bytes]] = {}
        of_table = request(NftMsg.GETRULE, self.family, text_attribute(NftaRule.TABLE, TABLE))
        for values in self._dump(of_table) if chains else ():
            if values.get(NftaRule.TABLE) == _OUR_TABLE:
                rules.setdefault(_name(values[NftaRule.CHAIN]), []).append(values[NftaRule.EXPRESSIONS])
        return TableListing(chains, rules)

    def intact_layout(self) -> Layout:
        """Return the layout in the kernel, for a change that adds chains to it and marks it again.

        Raises:
            ApplyError: chains or rules were changed externally. Marking them would make those changes ours.
            OSError: a dump failed.
        """
        layout = self.listing().layout
        if layout is None:
            message = f"{family_name(self.family)} {TABLE}: changed externally"
            raise ApplyError(message, retryable=True)
        return layout

    @parsing()
    def pins(self) -> list[bytes]:
        """Return the keys of all pins: address of the client, ID of the endpoint.

        Raises:
            OSError: the dump failed.
        """
        return [key for key, _ in self._elements(self._pins)]

    @parsing()
    def pins_text(self) -> str:
        """Return a script for ``nft`` that adds all pins with their remaining time.

        Raises:
            OSError: the dump failed.
        """
        try:
            messages = self.netlink.read(self._pins.dump)
        except FileNotFoundError:
            return ""
        return "".join(
            f"add element {family_name(self.family)} {TABLE} {PINS.name} "
            f"{{ {element_text(PINS, key, b'', self.family)} timeout {timeout}ms expires {left}ms }}\n"
            for message in messages
            for key, timeout, left in self._pins.parse_times(*message)
            # The table of an older version may have another kind of set under this name.
            if len(key) == PINS.key_size(self.family) and left
        )

    def _elements(self, form: ElementFormat) -> Iterator[tuple[bytes, bytes]]:
        try:
            for message in self.netlink.read(form.dump):
                yield from form.parse(*message)
        except FileNotFoundError:  # The table of an older version lacks this set.
            return

    def _dump(self, of: tuple[int, bytes]) -> list[Mapping[int, bytes]]:
        return [
            {kind: bytes(data[left:right]) for kind, left, right in attributes(data, start, end)}
            for data, start, end in self.netlink.read(of)
        ]


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
