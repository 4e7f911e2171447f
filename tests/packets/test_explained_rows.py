"""The interpreters give the answer of each row of the packet suites, which real packets give in the kernel.

No packet is sent here. A row that the kernel answers in tests/packets, and the interpreter answers differently here, is a
fault of the interpreter.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyproxy.backends.explanation import Fate, Host, Interpreter, Packet
from pyproxy.backends.explanation import Path as Way
from pyproxy.backends.registry import open_dumper
from pyproxy.cli.objects import offline_cluster
from pyproxy.config.config import Config, ProxyMode
from pyproxy.manifests.files import read_objects
from pyproxy.model.address import Family, is_loopback, parse_network, socket_text
from pyproxy.model.names import Protocol
from pyproxy.node.context import NodeContext
from pyproxy.plan.planner import final_plans
from tests.lab import CLUSTER_CIDRS

from . import test_cluster_ips, test_external_addresses
from .modes import IPVS, LEGACY, NFTABLES, Mode
from .objects import NODE_OF, PLAN, PORT, node, node_plan
from .table import Row, address_of, rows

OBJECTS = [*test_cluster_ips.OBJECTS, *test_external_addresses.OBJECTS]
TABLES = (
    test_cluster_ips.TABLE,
    test_external_addresses.EXTERNAL_IPS,
    test_external_addresses.NODE_PORTS,
    test_external_addresses.LOAD_BALANCERS,
    test_external_addresses.SOURCE_RANGES,
    test_external_addresses.LOCAL_POLICY,
)
ON_EVERY_ADDRESS = test_external_addresses.NODE_PORTS_ON_SECOND_ADDRESSES
ON_LOCALHOST = test_external_addresses.NODE_PORTS_ON_LOCALHOST
FATES = {"refused": Fate.REJECTED, "dropped": Fate.DROPPED, "untouched": Fate.UNCHANGED}
CLOSED_PORT = ["outside1", "node1:80/udp", "refused"]
"""A row in which no rule refuses: the node has no server on this port."""
MODES = {
    "iptables": (ProxyMode.IPTABLES, LEGACY),
    "nftables": (ProxyMode.NFTABLES, NFTABLES),
    "ipvs": (ProxyMode.IPVS, IPVS),
}


@cache
def interpreter(mode: ProxyMode, name: str, family: Family) -> tuple[Interpreter, Host]:
    """Return an interpreter of the rules of a node of the lab."""
    config = Config(
        proxy_mode=mode, hostname_override=name, cluster_cidr=tuple(parse_network(str(cidr)) for cidr in CLUSTER_CIDRS)
    )
    items = [*OBJECTS, *(node(planned.name) for planned in PLAN.nodes)]
    with TemporaryDirectory() as directory:
        file = Path(directory) / "objects.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        cluster = offline_cluster(read_objects(file), config, name)
    planned = node_plan(name)
    addresses = (*planned.addresses, *planned.second_addresses, *planned.gateways)
    host = Host(frozenset(ip.packed for ip in addresses))
    context = NodeContext(node=cluster.node, local_ips=host.ips)
    plans = final_plans(cluster.tracker, cluster.node, family)
    return open_dumper(config).interpreter(family, context, plans), host


def node_of(row: Row) -> str:
    """Return the node whose rules decide: that of the destination, else that of the client, else its router."""
    for planned in PLAN.nodes:
        if row.to.ip in (*planned.addresses, *planned.second_addresses):
            return planned.name
    return NODE_OF.get(row.source, "node2" if row.source.endswith("2") else "node1")


def paths_of(row: Row, mode: ProxyMode) -> tuple[Way, ...]:
    """Return what the interpreter of a mode finds for a row."""
    name = node_of(row)
    interpret, host = interpreter(mode, name, Family(row.version))
    destination = row.to.ip.packed
    source = (row.source_ip or address_of(row.source, row.version)).packed
    is_own = row.source == name
    if is_own and row.source_ip is None and host.is_local(destination):
        source = destination
    packet = Packet(source, destination, Protocol(row.protocol.value.lower()), row.to.port, "" if is_own else "?")
    return interpret(packet, host)


def agree(row: Row, mode: ProxyMode, chosen: Mode) -> None:
    """Compare verdict, endpoints, and the source that they see."""
    found = paths_of(row, mode)
    answers = [{"unserved": chosen.unserved, "unclaimed": chosen.unclaimed}.get(word, word) for word in row.answers]
    assert all(path.is_certain for path in found)
    if answers[0] in FATES:
        assert {FATES[answers[0]]} == {path.fate for path in found}, found
        return
    words = {(Fate.FORWARDED, _reached(answer, row.version)) for answer in answers}
    assert words == {(path.fate, str(path.endpoint)) for path in found}, found
    if row.seen_as in {planned.name for planned in PLAN.nodes} - {row.source}:
        assert all(path.is_masqueraded for path in found)
    if row.seen_as == "itself" != node_of(row):
        assert not any(path.is_masqueraded for path in found)


def _reached(answer: str, version: int) -> str:
    server, _, number = answer.partition(":")
    return socket_text(address_of(server, version).packed, int(number or PORT))


@pytest.mark.parametrize("mode", MODES)
@rows("\n".join(TABLES), OBJECTS)
def test_interpreter_and_kernel(row: Row, mode: str) -> None:
    """The interpreter finds the verdict, the endpoints and the translation of the source that packets meet."""
    proxy_mode, chosen = MODES[mode]
    is_closed = row.answers == ("reset",) or row.text.split() == CLOSED_PORT
    if is_closed or (is_loopback(row.to.ip.packed) and chosen is not LEGACY):
        # The node itself answers, or refuses: no rule matches.
        assert {Fate.UNCHANGED} == {path.fate for path in paths_of(row, proxy_mode)}
    else:
        agree(row, proxy_mode, chosen)


@rows(f"{ON_EVERY_ADDRESS}{ON_LOCALHOST}", OBJECTS)
def test_interpreter_and_kernel_on_all_addresses(row: Row) -> None:
    """In iptables mode the interpreter finds node ports on all addresses of the node, loopback included."""
    agree(row, ProxyMode.IPTABLES, LEGACY)
