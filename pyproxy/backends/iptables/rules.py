"""Single iptables rules as text, in the words and the order of ``iptables-save``.

Whatever is written here must come back from the kernel letter by letter, through the legacy and the nft
variant: start-up adoption and drift detection compare text. `tests/packets` holds that.
"""

from collections.abc import Sequence

from pyproxy.model.address import Family, Network, ip_text
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol
from pyproxy.model.node import LocalTraffic

_STATISTIC_STEPS = 1 << 31
"""xt_statistic keeps a probability as a 31-bit fraction."""


def rules(chain: str, *bodies: str) -> str:
    """Return the rules of a chain as the lines that append them."""
    return "".join(f"-A {chain} {body}\n" for body in bodies)


def comment(text: str) -> str:
    """Return the match that carries a remark. Callers pass checked names and fixed words only."""
    return f'-m comment --comment "{text}"'


def destination(ip: bytes) -> str:
    """Return the match for one destination address."""
    return f"-d {ip_text(ip)}/{len(ip) * 8}"


def source(block: Network) -> str:
    """Return the match for a source range followed by a space; nothing for the range of all addresses, as iptables-save."""
    return f"-s {block} " if block.prefix else ""


def host_source(ip: bytes) -> str:
    """Return the match for one source address."""
    return f"-s {ip_text(ip)}/{len(ip) * 8}"


def destination_port(protocol: Protocol, port: int) -> str:
    """Return the match for a destination port; ``-p`` stands apart because iptables-save prints it before comments."""
    return f"-m {protocol.value} --dport {port}"


def if_local(traffic: LocalTraffic) -> str:
    """Return the match for packets that come from pods."""
    if traffic.cidr is not None:
        return f"-s {traffic.cidr}"
    return f"-i {traffic.interface or traffic.interface_prefix + '+'}"


def if_not_local(traffic: LocalTraffic) -> str:
    """Return the match for packets that do not come from pods."""
    return f"! {if_local(traffic)}"


def dnat(protocol: Protocol, endpoint: Endpoint, before: str = "") -> str:
    """Return the rule body that sends a connection to an endpoint, behind the given extra match."""
    return f"-p {protocol.value} {before}-j DNAT --to-destination {endpoint}"


def random_share(left: int) -> str:
    """Return the match that takes one of `left` equal shares, followed by a space; nothing where it takes all.

    The value is what the kernel keeps and prints: the nearest 31-bit fraction, with 11 decimals.
    """
    if left == 1:
        return ""
    kept = round(_STATISTIC_STEPS / left) / _STATISTIC_STEPS
    return f"-m statistic --mode random --probability {kept:.11f} "


def equal_shares(bodies: Sequence[tuple[str, str]]) -> list[str]:
    """Join (before, after) pairs with matches that give each the same share of connections.

    A rule sees only what the rules before it let through: 1/n, then 1/(n-1), and the last takes the rest.
    """
    total = len(bodies)
    return [f"{before}{random_share(total - index)}{after}" for index, (before, after) in enumerate(bodies)]


def recent(option: str, name: str, family: Family) -> str:
    """Return a match on the list of recent clients of an endpoint, as iptables-save completes it."""
    mask = "255.255.255.255" if family is Family.IPV4 else "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    return f"-m recent {option} --name {name} --mask {mask} --rsource"


def source_is_destination(family: Family) -> str:
    """Return the match for packets whose source and destination address are equal.

    No iptables match compares two fields, so this is four (for IPv6: sixteen) instructions of classic BPF
    over the IP header: load a word of the source, keep it, load the same word of the destination, compare.
    """
    source_at, destination_at, words = (12, 16, 1) if family is Family.IPV4 else (8, 24, 4)
    program: list[str] = []
    for word in range(words):
        left = 4 * (words - 1 - word)
        program += [
            f"32 0 0 {source_at + 4 * word}",
            "7 0 0 0",
            f"32 0 0 {destination_at + 4 * word}",
            f"29 0 {left + 1} 0",
        ]
    program += ["6 0 0 65535", "6 0 0 0"]
    return f'-m bpf --bytecode "{len(program)},{",".join(program)}"'
