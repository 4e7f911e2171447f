"""Single iptables rules as text, with the spelling and the order of ``iptables-save``.

Adoption and drift detection compare text, so a rule that is written must be read back from the kernel character by
character, in the legacy and in the nft variant (`tests/packets/test_restart.py`: a restart writes nothing).

iptables-save prints, in this order: source, destination, interfaces, protocol, matches, target. Options that it always
prints are written out here, even where they are defaults (a mask of 32 bits, ``--rsource``).
"""

from collections.abc import Sequence

from pyproxy.model.address import Family, Network, ip_text
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol
from pyproxy.model.node import LocalTraffic

# xt_statistic stores a probability as a 31-bit fraction (`linux/netfilter/xt_statistic.h`).
_STATISTIC_STEPS = 1 << 31


def rules(chain: str, *bodies: str) -> str:
    """Return the rules of a chain as the lines that append them."""
    return "".join(f"-A {chain} {body}\n" for body in bodies)


def comment(text: str) -> str:
    """Return the match that carries a comment, of at most 255 characters (XT_MAX_COMMENT_LEN less the final zero).

    The text is not escaped: callers pass names that the API server has validated, and constants.
    """
    return f'-m comment --comment "{text}"'


def destination(ip: bytes) -> str:
    """Return the match for one destination address."""
    return f"-d {ip_text(ip)}/{len(ip) * 8}"


def source(block: Network) -> str:
    """Return the match for a source range, followed by a space; an empty text for the range of all addresses.

    iptables-save does not print ``-s 0.0.0.0/0``.
    """
    return f"-s {block} " if block.prefix else ""


def host_source(ip: bytes) -> str:
    """Return the match for one source address."""
    return f"-s {ip_text(ip)}/{len(ip) * 8}"


def destination_port(protocol: Protocol, port: int) -> str:
    """Return the match for a destination port, without ``-p``, which iptables-save prints before comments."""
    # `-m tcp` loads the extension with this option. iptables adds it if it is missing, and iptables-save prints it.
    return f"-m {protocol.value} --dport {port}"


def if_local(traffic: LocalTraffic) -> str:
    """Return the match for packets from pods of this node."""
    if traffic.cidr is not None:
        return f"-s {traffic.cidr}"
    # With a trailing + iptables matches all interfaces whose name begins with the text before it.
    return f"-i {traffic.interface or traffic.interface_prefix + '+'}"


def if_not_local(traffic: LocalTraffic) -> str:
    """Return the match for packets that are not from pods of this node."""
    return f"! {if_local(traffic)}"


def dnat(protocol: Protocol, endpoint: Endpoint, before: str = "") -> str:
    """Return the rule that sends a connection to an endpoint, with `before` as an additional match."""
    return f"-p {protocol.value} {before}-j DNAT --to-destination {endpoint}"


def random_share(left: int) -> str:
    """Return the match for one of `left` equal shares, followed by a space; an empty text for the only share.

    The probability is printed as the kernel stores it: the nearest 31-bit fraction, with 11 decimals.
    """
    if left == 1:
        return ""
    # Another value would be stored as this one, and would be read back with other digits.
    kept = round(_STATISTIC_STEPS / left) / _STATISTIC_STEPS
    return f"-m statistic --mode random --probability {kept:.11f} "


def equal_shares(bodies: Sequence[tuple[str, str]]) -> list[str]:
    """Return a rule for each (before, after) pair, with a match between the two that gives each the same share.

    A rule only gets the connections that the rules before it did not match: so the probabilities are 1/n, 1/(n-1), and so
    on, and the last rule matches the rest.
    """
    total = len(bodies)
    return [f"{before}{random_share(total - index)}{after}" for index, (before, after) in enumerate(bodies)]


def recent(option: str, name: str, family: Family) -> str:
    """Return a match on the list of recent clients of an endpoint, with the options that iptables-save adds."""
    # xt_recent keeps a list of addresses for each name. The mask makes every address a client of its own.
    mask = "255.255.255.255" if family is Family.IPV4 else "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    return f"-m recent {option} --name {name} --mask {mask} --rsource"


def source_is_destination(family: Family) -> str:
    """Return the match for packets whose source and destination address are equal.

    No iptables match compares two fields, so this is a program of classic BPF over the IP header. It returns 65535 (true)
    if each 32-bit word of the source equals that of the destination, else 0. An instruction is ``code jt jf k``, with codes
    of `linux/bpf_common.h`:

        32  A = the word at offset k (BPF_LD | BPF_W | BPF_ABS)
         7  X = A (BPF_MISC | BPF_TAX)
        29  if A == X skip jt instructions, else jf (BPF_JMP | BPF_JEQ | BPF_X)
         6  return k (BPF_RET)
    """
    # Offsets of the addresses: RFC 791 and RFC 8200.
    source_at, destination_at, words = (12, 16, 1) if family is Family.IPV4 else (8, 24, 4)
    program: list[str] = []
    for word in range(words):
        # On a mismatch skip four instructions for each word that is left, and the first return.
        left = 4 * (words - 1 - word)
        program += [
            f"32 0 0 {source_at + 4 * word}",
            "7 0 0 0",
            f"32 0 0 {destination_at + 4 * word}",
            f"29 0 {left + 1} 0",
        ]
    program += ["6 0 0 65535", "6 0 0 0"]
    return f'-m bpf --bytecode "{len(program)},{",".join(program)}"'
