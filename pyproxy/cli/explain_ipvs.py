"""Virtual servers, ipsets and persistence of IPVS in the kernel, for ``explain`` on a node."""

from dataclasses import replace
from pathlib import Path

from pyproxy.backends.explanation import Host
from pyproxy.backends.ipvs.entries import VirtualServer
from pyproxy.backends.ipvs.explain import IpvsState, ipvs_state
from pyproxy.backends.ipvs.reader import read_entries
from pyproxy.cli.explain_rules import NodeRules
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import PROTOCOLS

CONNECTIONS = Path("/proc/net/ip_vs_conn")
_PROTOCOLS = {protocol.name: number for number, protocol in PROTOCOLS.items()}


def with_ipvs(rules: NodeRules, host: Host) -> tuple[NodeRules, Host]:
    """Return rules with what IPVS has, if it has virtual servers, and the node with the addresses of Services."""
    states = {family: read_state(family) for family in Family}
    if not any(state.virtuals for state in states.values()):
        return rules, host
    for state in states.values():
        host = state.host(host)
    return replace(rules, ipvs=states), host


def read_state(family: Family) -> IpvsState:
    """Return the virtual servers, ipsets and persistence templates of a family."""
    try:
        entries, _ = read_entries(family)
    except OSError:  # a kernel with IPVS may lack ipset
        entries = {}
    return ipvs_state(family, entries, persistence())


def persistence() -> dict[tuple[VirtualServer, bytes], Endpoint]:
    """Return the persistence templates: connections from port 0.

    A line of ``/proc/net/ip_vs_conn`` has protocol, address and port of client, virtual server and real server in
    hexadecimal, the state and the seconds until it expires; an IPv6 address has colons.
    """
    try:
        lines = CONNECTIONS.read_text().splitlines()[1:]
    except OSError:
        return {}
    found: dict[tuple[VirtualServer, bytes], Endpoint] = {}
    for line in lines:
        protocol, *places = line.split()[:7]
        client, port, virtual, virtual_port, real, real_port = places
        if int(port, 16) == 0 and protocol in _PROTOCOLS:
            server = VirtualServer(_address(virtual), _PROTOCOLS[protocol], int(virtual_port, 16))
            found[server, _address(client)] = Endpoint(_address(real), int(real_port, 16))
    return found


def _address(text: str) -> bytes:
    return parse_ip(text.strip("[]")) if ":" in text else bytes.fromhex(text)
