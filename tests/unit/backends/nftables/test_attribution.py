"""Listings of elements that pyproxy did not write."""

from pyproxy.backends.nftables.attribution import list_elements
from pyproxy.backends.nftables.elements import ADDRESSED, ElementKey, Value, pack_number, pack_port
from pyproxy.model.address import Family, parse_ip

ICMP = b"\1\0\0\0"


def test_foreign_elements_are_common() -> None:
    """An element with a protocol that no Service has, or a comment that is not UTF-8, is listed as common to all Services."""
    key = ElementKey(ADDRESSED.main.counts.prefix + parse_ip("192.0.2.1") + ICMP + pack_port(80))
    entries: dict[ElementKey, Value] = {key: pack_number(2) + b"default/web\xff"}

    listing = list_elements(Family.IPV4, entries)

    assert {} == listing.services
    assert ['counts { 192.0.2.1 . 1 . 80 comment "default/web\ufffd" : 0:2 }'] == [rule.rule for rule in listing.common]
