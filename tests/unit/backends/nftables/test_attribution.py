"""Listings of elements that pyproxy did not write."""

import pytest
from msgspec.structs import replace

from pyproxy.backends.interface import desired_entries
from pyproxy.backends.nftables.attribution import list_elements, users
from pyproxy.backends.nftables.elements import ADDRESSED, HAIRPIN, ElementKey, Value, pack_number, pack_port
from pyproxy.backends.nftables.program import NftablesProgram, PortElements
from pyproxy.model.address import Family, parse_ip
from tests.packets.nft_agent import endpoints, everything, node_settings

ICMP = b"\1\0\0\0"
LONGEST_COMMENT = 127


def test_foreign_elements_are_common() -> None:
    """An element with a protocol that no Service has, or a comment that is not UTF-8, is listed as common to all Services."""
    key = ElementKey(ADDRESSED.main.counts.prefix + parse_ip("192.0.2.1") + ICMP + pack_port(80))
    entries: dict[ElementKey, Value] = {key: pack_number(2) + b"default/web\xff"}

    listing = list_elements(Family.IPV4, entries)

    assert {} == listing.services
    assert ['counts { 192.0.2.1 . 1 . 80 comment "default/web\ufffd" : 0:2 }'] == [rule.rule for rule in listing.common]


@pytest.mark.parametrize("family", Family, ids=str)
def test_users_of_shared_elements(family: Family) -> None:
    """The users of each shared element are the Service ports whose plans need it; own elements and the layout have none."""
    # All Services of this node have the same endpoints on it, which these plans do not.
    on_node = endpoints(family, 1, 2, 3, 4)
    plans = {
        plan.name: replace(plan, node_endpoints=on_node)
        for plan in everything(family)
        if len(str(plan.name)) < LONGEST_COMMENT
    }
    program = NftablesProgram(node_settings(family))
    entries: dict[ElementKey, Value] = desired_entries(program, plans)
    shared = {name: set(PortElements(plan).shared) for name, plan in plans.items()}
    needed = {key: {name for name in plans if key in shared[name]} for key in entries}
    found = {key: set(users(family, [key], entries)) for key in entries}

    assert {key: names for key, names in needed.items() if key[0] != HAIRPIN.number} == {
        key: names for key, names in found.items() if key[0] != HAIRPIN.number
    }
    hairpins = [key for key in entries if key[0] == HAIRPIN.number]
    assert all(found[key] <= needed[key] for key in hairpins)
    assert any(found[key] for key in hairpins)
    without_static = [key for key in entries if needed[key] or key[0] >= ADDRESSED.external_cluster.number]
    assert sorted(plans) == users(family, without_static, entries)
    assert [] == users(family, entries.keys(), entries)
