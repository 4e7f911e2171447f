"""IPVS as base chains: their place among other chains, persistence, and the hook that a scheduled packet passes next."""

from pyproxy.backends import hooks
from pyproxy.backends.explanation import Fate, Host, Packet, Path
from pyproxy.backends.ipvs.entries import Scheduling, VirtualServer
from pyproxy.backends.ipvs.explain import IpvsState, Persistence, ipvs_chains
from pyproxy.backends.nftables.explain import base_chains
from pyproxy.backends.nftables.ruleset_text import read_ruleset
from pyproxy.model.address import parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol

VIP, CLIENT = parse_ip("10.96.0.10"), parse_ip("192.0.2.7")
VIRTUAL = VirtualServer(VIP, Protocol.TCP.number, 80)
FIRST, SECOND = Endpoint(parse_ip("10.244.1.2"), 8080), Endpoint(parse_ip("10.244.2.2"), 8080)
HOST = Host(frozenset({parse_ip("172.18.0.11"), VIP}))


def explained(
    weights: dict[Endpoint, int], chain: str = "", persistence: Persistence | None = None, interface: str = "eth0"
) -> tuple[Path, ...]:
    """Return the paths of a packet to a virtual server with session affinity, next to a chain of nf_tables."""
    state = IpvsState({VIRTUAL: Scheduling("rr", timeout=60)}, {VIRTUAL: weights}, persistence=persistence or {})
    tables = read_ruleset(f"table ip fw {{\n\tchain c {{\n\t\t{chain}\n\t}}\n}}\n" if chain else "")
    chains = [*ipvs_chains(state), *base_chains(tables, len(CLIENT))]
    return hooks.paths(chains, Packet(CLIENT, VIP, Protocol.TCP, 80, interface), HOST, {})


def test_priorities() -> None:
    """Chains with the priorities of the hooks that undo the translation of replies see a packet before it is scheduled."""
    drop = "type filter hook {} priority {}; policy accept;\n\t\tip daddr 10.96.0.10 drop"
    found = [
        explained({FIRST: 1}, drop.format(hook, priority), interface=interface)[0].fate
        for hook, interface, priorities in (("input", "eth0", (98, 100)), ("output", "", (-99, -97)))
        for priority in priorities
    ]

    assert [Fate.DROPPED, Fate.FORWARDED] * 2 == found


def test_persistence() -> None:
    """A client stays with its real server, but leaves one with weight 0, as the kernel does by expire_quiescent_template."""
    persistence = {(VIRTUAL, CLIENT): FIRST}
    (stays,) = explained({FIRST: 1, SECOND: 1}, persistence=persistence)
    (leaves,) = explained({FIRST: 0, SECOND: 1}, persistence=persistence)

    assert [(FIRST, True), (SECOND, False)] == [(path.endpoint, bool(path.affinity_entry)) for path in (stays, leaves)]


def test_scheduled_packets_are_not_translated_again() -> None:
    """A packet that the node sends passes the hook output once more after IPVS, where nat is done with the connection."""
    nat = "type nat hook output priority dstnat; policy accept;\n\t\tip daddr 10.244.1.2 dnat to 198.51.100.1:99"
    (path,) = explained({FIRST: 1}, nat, interface="")

    assert FIRST == path.endpoint
