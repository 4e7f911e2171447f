"""Foreign rules that the programs of iptables cannot list, and helpers that add and count rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family

from .own_namespace import load, run

_MISSING = "length"
"""An extension that every kernel has; `hide_extension` hides it from the iptables programs."""
WITH_MISSING = """\
*filter
-I FORWARD -m length --length 1:2 -j ACCEPT
COMMIT
*nat
-I PREROUTING -m length --length 1:2 -j ACCEPT
-I POSTROUTING -m length --length 1:2 -j ACCEPT
COMMIT
"""
NATIVE = {
    "masquerade": ["add rule {f} nat POSTROUTING oifname eth0 masquerade"],
    "conntrack": [
        "insert rule {f} filter INPUT ct state established,related accept",
        "insert rule {f} filter FORWARD ct state vmap { established : accept, related : accept, invalid : drop }",
        "insert rule {f} nat PREROUTING ct state new counter",
    ],
    "anonymous sets": [
        "insert rule {f} filter FORWARD tcp dport { 80, 443 } meta mark set 1",
        "insert rule {f} nat PREROUTING tcp dport { 80, 443 } meta mark set 1",
        "insert rule {f} nat POSTROUTING tcp dport { 80, 443 } meta mark set 1",
    ],
    "chains, sets and maps": [
        "add set {f} nat friends { type inet_service; flags interval; elements = { 1-9 }; }",
        "add map {f} filter verdicts { type inet_service : verdict; elements = { 1 : accept }; }",
        "add chain {f} nat postrouting { type nat hook postrouting priority 110; }",
        "add rule {f} nat postrouting oifname eth0 masquerade",
        "add chain {f} filter admin",
        "add rule {f} filter admin meta l4proto udp limit rate 5/second accept",
    ],
}
"""Native nftables rules by kind, for `nft`; `{f}` is nft's name of the family."""
IN_OURS = [
    "insert rule {f} nat KUBE-SERVICES ct state new counter",
    "insert rule {f} filter KUBE-FORWARD tcp dport { 80, 443 } meta mark set 1",
]
"""Native nftables rules in pyproxy's chains."""

DOCKER = """\
*filter
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -i eth9 -p tcp -m tcp --dport 9 -j ACCEPT
-A OUTPUT -o eth9 -p tcp -m tcp --dport 9 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -o docker9 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
"""
"""Chains and rules as Docker creates them."""
EVERYDAY = [
    "add set {f} filter trusted { type inet_service; flags interval; elements = { 20000-20100 }; }",
    "insert rule {f} filter INPUT ct state established,related accept",
    "add rule {f} filter INPUT ct state invalid counter drop",
    "add rule {f} filter INPUT iif lo accept",
    "add rule {f} filter INPUT tcp dport 22 ct state new limit rate 10/minute accept",
    "add rule {f} filter INPUT tcp dport { 80, 443 } counter accept",
    "add rule {f} filter INPUT udp dport { 51820, 1194 } accept",
    "add rule {f} filter INPUT tcp dport @trusted counter accept",
    "add rule {f} filter INPUT meta l4proto { icmp, ipv6-icmp } limit rate 50/second accept",
    "add rule {f} filter INPUT iifname wg0 accept",
    'add rule {f} filter INPUT tcp dport 23 log prefix "telnet: " counter drop',
    "add rule {f} filter INPUT meta pkttype broadcast counter",
    "add rule {f} filter INPUT tcp flags & (fin|syn|rst|ack) == syn counter",
    "add rule {f} filter INPUT ct status dnat accept",
    'insert rule {f} filter FORWARD ct state established,related counter accept comment "VPN"',
    "insert rule {f} filter FORWARD tcp dport { 81, 444 } meta mark set 1",
    "add rule {f} filter FORWARD iifname wg0 oifname eth9 accept",
    "add rule {f} filter FORWARD tcp flags syn tcp option maxseg size set rt mtu",
    "add rule {f} filter FORWARD meta mark 0x77 ct mark set meta mark",
    "add rule {f} filter FORWARD tcp dport vmap { 6667 : drop, 6668 : drop }",
    "insert rule {f} filter OUTPUT ct state established counter",
    "add rule {f} filter OUTPUT meta skuid 0 counter",
    "add rule {f} filter OUTPUT udp dport 53 counter accept",
    "insert rule {f} nat PREROUTING ct state new counter",
    "add rule {f} nat PREROUTING tcp dport 8443 redirect to :443",
    "insert rule {f} nat PREROUTING tcp dport { 8081, 8082 } meta mark set 1",
    "insert rule {f} nat POSTROUTING tcp dport { 8081, 8082 } counter",
    "add rule {f} nat POSTROUTING oifname wg0 masquerade",
    "add rule {f} nat POSTROUTING oifname { tun0, tun1 } masquerade random",
    "add rule {f} nat OUTPUT tcp dport 8444 redirect to :444",
]
"""Native rules as administrators and VPNs add them."""


def add_native(family: Family, rules: Iterable[str]) -> None:
    """Add native rules to the tables that iptables-nft uses."""
    run("nft", "-f", "-", stdin="".join(f"{rule}\n" for rule in rules).replace("{f}", nft_word(family)))


def nft_word(family: Family) -> str:
    """Return nft's name of a family."""
    return "ip" if family is Family.IPV4 else "ip6"


def hide_extension(directory: Path, monkeypatch: pytest.MonkeyPatch, missing: str = _MISSING) -> None:
    """Have programs of iptables, and libraries, not find an extension, as in a small container."""
    [installed] = (path for path in Path("/usr/lib").glob("*/xtables") if path.is_dir())
    for path in installed.iterdir():
        if path.name != f"libxt_{missing}.so":
            (directory / path.name).symlink_to(path)
    monkeypatch.setenv("XTABLES_LIBDIR", str(directory))


def add_unknown(family: Family, variant: Variant) -> None:
    """Add rules with the extension that `hide_extension` hides; call it before hiding."""
    load(family, variant, WITH_MISSING)


def hook_counts(family: Family, variant: Variant) -> Counter[tuple[str, str, str]]:
    """Return how many rules jump from a foreign chain of a table to one of pyproxy, counted without iptables-nft."""
    return hooks_of(_listing(family, variant))


def hooks_of(listing: str) -> Counter[tuple[str, str, str]]:
    """Return how many rules jump from a foreign chain to one of pyproxy, in the output of nft or iptables-save."""
    found: Counter[tuple[str, str, str]] = Counter()
    table = chain = ""
    for line in listing.splitlines():
        if named := re.match(r"\*(\w+)|table \w+ (\S+) \{", line):
            table = named[1] or named[2]
        if named := re.match(r"\tchain (\S+) \{|-A (\S+) ", line):
            chain = named[1] or named[2]
        jump = re.search(r"(?:jump|-j) ((?:KUBE|PYPROXY)-\S+)$", line)
        if jump and not chain.startswith(("KUBE-", "PYPROXY-")):
            found[table, chain, jump[1]] += 1
    return found


def without_counts(family: Family, variant: Variant) -> str:
    """Return all rules without their counters."""
    return uncounted(_listing(family, variant))


def uncounted(listing: str) -> str:
    """Return a listing without counters, comment lines and dates."""
    return re.sub(r"(?m)^#.*\n|packets \d+ bytes \d+| ?\[\d+:\d+\] ?", "", listing)


def _listing(family: Family, variant: Variant) -> str:
    if variant is Variant.NFT:
        return run("nft", "list", "ruleset", nft_word(family))
    # With all extensions visible.
    return run("env", "-u", "XTABLES_LIBDIR", program(family, variant, "save"))
