"""Recorded answers of a real kernel to the requests that pyproxy makes by netlink, and their replay, damaged or not.

`python -m tests.fuzz.netlink_replies` records them again in a network namespace of its own, and those of IPVS if it runs as
`python -m tests.guest .venv/bin/python -m tests.fuzz.netlink_replies`. The answers are in `corpus/netlink`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pyproxy.backends.iptables import accounting as iptables_accounting
from pyproxy.backends.iptables.nft_chains import chain_names, find_hooks, jump_targets
from pyproxy.backends.iptables.restore_text import restore_text
from pyproxy.backends.iptables.static_rules import INVALID_COUNTER, IptablesSettings, known_hooks
from pyproxy.backends.ipvs import vips
from pyproxy.backends.ipvs.entries import Member, RealServer, Scheduling, VirtualServer
from pyproxy.backends.ipvs.ipset import ipvs_sets
from pyproxy.backends.ipvs.static_rules import SERVED
from pyproxy.backends.ipvs.vips import Vips
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.backends.nftables import accounting as nftables_accounting
from pyproxy.backends.nftables import change_monitor
from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.layout import LOCALHOST_REJECTIONS, TABLE
from pyproxy.backends.nftables.reader import TableReader
from pyproxy.linux import netlink
from pyproxy.linux.addresses import device_addresses
from pyproxy.linux.conntrack import delete_udp_flows
from pyproxy.linux.iptables_programs import Variant
from pyproxy.linux.local_networks import local_networks
from pyproxy.linux.nf_tables_messages import delete_chain, new_chain
from pyproxy.linux.nf_tables_socket import NfTablesSocket
from pyproxy.linux.ruleset_counter import NftGeneration
from pyproxy.linux.xt_extensions import missing_extensions
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.flow import Destination
from tests.packets.modes import HAS_IPVS
from tests.packets.nft_agent import everything, node_namespace, node_settings
from tests.packets.own_namespace import load, own_namespace, run
from tests.properties.planning import difference, ruleset_of
from tests.unit.linux.test_conntrack import FIRST_PORT, SERVICES, add_flows

FOLDER = Path(__file__).parent / "corpus" / "netlink"
SERVER = VirtualServer(parse_ip("10.96.0.10"), 6, 80)
_change: Callable[[], object] = lambda: None  # noqa: E731  # replaced while recording
"""Changes our table, for the notifications of the change."""


def _changes() -> list[str]:
    with closing(ChangeMonitor(TABLE)) as monitor:
        monitor.listen()
        _change()
        return monitor.take(Family.IPV4)


def _flows(family: Family) -> object:
    return delete_udp_flows(family, [Destination(SERVICES[family], FIRST_PORT)], lambda _: True)


def _table(family: Family) -> object:
    with NfTablesSocket() as opened:
        reader = TableReader(opened, family)
        return reader.entries(), reader.pins_text()


def _commit() -> object:
    with NfTablesSocket() as opened:
        return opened.commit([new_chain(Family.IPV4, TABLE, "fuzz"), delete_chain(Family.IPV4, TABLE, "absent")])


def _generation() -> int:
    with NftGeneration() as generation:
        return generation.read()


def _vips() -> object:
    with Vips(Family.IPV4) as opened:
        return opened.read()


def _sets() -> object:
    sets, types = ipvs_sets(Family.IPV4)
    with sets:
        return sets.read(types)


def _servers() -> object:
    with IpvsConnection() as connection:
        return list(connection.services(Family.IPV4)), list(connection.reals(SERVER))


REQUESTS: Mapping[str, Callable[[], object]] = {
    "addresses": device_addresses,
    **{f"local-networks-{family}": lambda family=family: local_networks(family) for family in Family},  # type: ignore[misc]
    **{f"flows-{family}": lambda family=family: _flows(family) for family in Family},  # type: ignore[misc]
    **{f"table-{family}": lambda family=family: _table(family) for family in Family},  # type: ignore[misc]
    "generation": _generation,
    "counter": lambda: nftables_accounting.counted_packets(Family.IPV4, LOCALHOST_REJECTIONS),
    "changes": _changes,
    "commit": _commit,
    "iptables-chains": lambda: chain_names(Family.IPV4, "nat"),
    "iptables-hooks": lambda: find_hooks(Family.IPV4, "nat", known_hooks(Family.IPV4)),
    "iptables-jumps": lambda: jump_targets(Family.IPV4, "nat", "OUTPUT"),
    "iptables-counter": lambda: iptables_accounting.counted_packets(INVALID_COUNTER),
    "iptables-extensions": lambda: missing_extensions(Family.IPV4, {"comment": 0, "absent": 0}, {"MASQUERADE": 0}),
}
IPVS_REQUESTS: Mapping[str, Callable[[], object]] = {
    "ipvs-sets": _sets,
    "ipvs-servers": _servers,
    "ipvs-addresses": _vips,
}
Answers = Sequence[Sequence[bytes]]
"""What each socket received, in the order in which the sockets were opened."""


class Replayed:
    """A socket that receives recorded answers, whatever was sent."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = iter(answers)

    def recv(self, *_: int) -> bytes:
        """Return the next answer; after the last one a real socket would wait, or say that it has none."""
        for answer in self._answers:
            return answer
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def send(self, data: bytes) -> int:
        """Drop a request."""
        return len(data)

    def setsockopt(self, *_: object) -> None:
        """Do nothing, as `bind` and `close`."""

    bind = close = setsockopt


class Recording:
    """A socket of the kernel that keeps what it receives."""

    def __init__(self, opened: socket.socket, answers: list[bytes]) -> None:
        self._socket = opened
        self._answers = answers

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # of the socket
        return getattr(self._socket, name)

    def recv(self, *arguments: int) -> bytes:
        """Receive and keep an answer."""
        self._answers.append(self._socket.recv(*arguments))
        return self._answers[-1]


@contextmanager
def _sockets(make: Callable[..., object]) -> Iterator[None]:
    names = SimpleNamespace(**{**vars(socket), "socket": make})
    with patch.object(netlink, "socket", names), patch.object(change_monitor, "socket", names):
        yield


@contextmanager
def replayed(answers: Answers) -> Iterator[None]:
    """Answer all requests inside the block as recorded."""
    left = iter(answers)
    with _sockets(lambda *_: Replayed(next(left, ()))), patch.object(vips, "device_index", lambda _: 2):
        yield


def recorded(name: str) -> list[list[bytes]]:
    """Return the recorded answers to a request."""
    lists: list[list[str]] = json.loads((FOLDER / f"{name}.json").read_text())
    return [[bytes.fromhex(answer) for answer in answers] for answers in lists]


def _record(names: Mapping[str, Callable[[], object]]) -> None:
    for name, perform in names.items():
        answers: list[list[bytes]] = []

        def make(*arguments: int) -> Recording:
            answers.append([])  # noqa: B023  # called in this turn only
            return Recording(socket.socket(*arguments), answers[-1])  # noqa: B023

        with _sockets(make):
            try:
                result = perform()
            except OSError as error:
                result = error
            except Exception as error:  # noqa: BLE001  # a refusal is an answer, too
                result = error
        lists = [[answer.hex() for answer in of_socket] for of_socket in answers]
        (FOLDER / f"{name}.json").write_text(json.dumps(lists, indent=0) + "\n")
        print(f"{name}: {sum(map(len, answers))} answers: {str(result)[:100]}")


def main() -> None:
    """Record all requests that this kernel supports."""
    global _change  # noqa: PLW0603  # of this run
    FOLDER.mkdir(parents=True, exist_ok=True)
    if HAS_IPVS:
        with own_namespace(), ExitStack() as stack:
            run("ip", "link", "set", "lo", "up")
            connection = stack.enter_context(IpvsConnection())
            addresses = stack.enter_context(Vips(Family.IPV4))
            sets, types = ipvs_sets(Family.IPV4)
            stack.enter_context(sets)
            addresses.ensure_device()
            addresses.add({SERVER.ip: b"", parse_ip("10.96.0.11"): b""})
            sets.create(list(types), types)
            name = next(iter(SERVED))
            sets.add({Member(name, SERVER.ip, SERVER.protocol, SERVER.port, None): "default/web"})
            messages = [connection.add(SERVER, Scheduling("rr", 0, 0))]
            messages += [
                connection.add_real(RealServer(SERVER, Endpoint(parse_ip(f"10.244.1.{last}"), 8080)), 1)
                for last in (11, 12)
            ]
            connection.perform(messages)
            _record(IPVS_REQUESTS)
        return
    with node_namespace(node_settings(Family.IPV6)) as start_ipv6:
        start_ipv6().put(*everything(Family.IPV6))
        _record({"table-IPv6": REQUESTS["table-IPv6"]})
    with node_namespace(node_settings(Family.IPV4, relays_localhost=True)) as start:
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", "10.244.1.1/24", "dev", "lo")
        run("ip", "address", "add", "fd00:10:244:1::1/64", "dev", "lo")
        for family in Family:
            add_flows(family)
            add_flows(family, zone=7)
        start().put(*everything(Family.IPV4))
        rules = ruleset_of({}, IptablesSettings(family=Family.IPV4))
        load(Family.IPV4, Variant.NFT, restore_text(difference({}, rules)))
        iptables_accounting.ensure_counter(INVALID_COUNTER)
        run("nft", "add", "element", "ip", TABLE, "pins", "{ 10.244.1.11 . ffff:1 timeout 1h }")
        _change = lambda: run("nft", "add", "chain", "ip", TABLE, "foreign")  # noqa: E731
        _record({name: perform for name, perform in REQUESTS.items() if name != "table-IPv6"})


if __name__ == "__main__":
    main()
