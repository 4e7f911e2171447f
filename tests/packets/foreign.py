"""Rules of others that programs of iptables cannot list, and what they do to those programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from pyproxy.apply.iptables import Variant, program
from pyproxy.model.address import Family

from .own_namespace import load, run

_MISSING = "length"
"""An extension that every kernel has, and that is taken from where iptables looks for them."""
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
"""Native rules by what they have, as nft reads them where `{f}` is the word for the family."""
IN_OURS = [
    "insert rule {f} nat KUBE-SERVICES ct state new counter",
    "insert rule {f} filter KUBE-FORWARD tcp dport { 80, 443 } meta mark set 1",
]
"""Native rules in chains of ours."""


def add_native(family: Family, rules: Iterable[str]) -> None:
    """Add native rules to the tables that iptables-nft has its own in."""
    run("nft", "-f", "-", stdin="".join(f"{rule}\n" for rule in rules).replace("{f}", nft_word(family)))


def nft_word(family: Family) -> str:
    """Return nft's word for a family."""
    return "ip" if family is Family.IPV4 else "ip6"


def hide_extension(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs of iptables, and libraries, not find the extension of `WITH_MISSING`, as in a small container."""
    [installed] = (path for path in Path("/usr/lib").glob("*/xtables") if path.is_dir())
    for path in installed.iterdir():
        if path.name != f"libxt_{_MISSING}.so":
            (directory / path.name).symlink_to(path)
    monkeypatch.setenv("XTABLES_LIBDIR", str(directory))


def add_unknown(family: Family, variant: Variant) -> None:
    """Add rules with the extension that `hide_extension` hides; to be called before."""
    load(family, variant, WITH_MISSING)


def hook_counts(family: Family, variant: Variant) -> Counter[tuple[str, str, str]]:
    """Return how many rules jump from a table's chain of others to a chain of ours, counted without iptables-nft."""
    found: Counter[tuple[str, str, str]] = Counter()
    table = chain = ""
    for line in _listing(family, variant).splitlines():
        if named := re.match(r"\*(\w+)|table \w+ (\S+) \{", line):
            table = named[1] or named[2]
        if named := re.match(r"\tchain (\S+) \{|-A (\S+) ", line):
            chain = named[1] or named[2]
        jump = re.search(r"(?:jump|-j) ((?:KUBE|PYPROXY)-\S+)$", line)
        if jump and not chain.startswith(("KUBE-", "PYPROXY-")):
            found[table, chain, jump[1]] += 1
    return found


def without_counts(family: Family, variant: Variant) -> str:
    """Return all rules, whatever they have counted."""
    return re.sub(r"(?m)^#.*\n|packets \d+ bytes \d+| ?\[\d+:\d+\] ?", "", _listing(family, variant))


def _listing(family: Family, variant: Variant) -> str:
    if variant is Variant.NFT:
        return run("nft", "list", "ruleset", nft_word(family))
    # With all extensions.
    return run("env", "-u", "XTABLES_LIBDIR", program(family, variant, "save"))
