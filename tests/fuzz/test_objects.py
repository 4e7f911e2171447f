"""Damaged API objects: decoding reports what is wrong with them, and the rest becomes rules without a foreign byte."""

from collections.abc import Iterable
from random import Random
from typing import Any

import msgspec

from pyproxy.backends.interface import Program, desired_entries
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.restore_text import restore_text
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.backends.ipvs.program import IpvsProgram
from pyproxy.backends.ipvs.static_rules import IpvsSettings
from pyproxy.backends.nftables.layout import NftablesSettings, layout_text
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.backends.nftables.text import table_text
from pyproxy.errors import DecodeError, SourceError
from pyproxy.kubeapi.resource import Item, Resource, endpoint_slices, node, service_cidrs, services
from pyproxy.model.address import Family
from pyproxy.model.change import Put, Unserved
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.plan.planner import final_plans
from tests.fuzz.conftest import Sources
from tests.fuzz.mutation import damaged, damaged_bytes, packed
from tests.fuzz.objects import OBJECTS
from tests.properties.planning import difference

RESOURCES: dict[str, Resource[Any]] = {
    "Service": services(),
    "EndpointSlice": endpoint_slices(),
    "Node": node("node1"),
    "ServiceCIDR": service_cidrs(),
}
HERE = Node(name="node1")


def is_one_line(text: str) -> bool:
    """Return whether a message is one line of printable ASCII, as each value of an object is in it."""
    return text.isascii() and text.isprintable()


def check(item: Item, kind: str) -> None:
    """Check that each problem names object and field, in one line."""
    for problem in item.problems:
        assert isinstance(problem, DecodeError)
        assert is_one_line(str(problem)), repr(str(problem))
        assert problem.subject.startswith(f"{kind} ")
        assert problem.reason
        # A text that is not UTF-8 has no path, because msgspec finds it before it knows the field.
        assert problem.field or not item.problems[1:]


def items_of(resource: Resource[Any], body: bytes) -> list[Item]:
    """Return the items of a response, or none if it is not a list; the error is one line."""
    message = ""
    try:
        return resource.decode_page(body).items
    except SourceError as error:
        message = str(error)
    assert message.isprintable()
    return []


def content(item: Item) -> tuple[object, ...]:
    """Return what two equal items have in common; errors are not equal to each other."""
    return item.name, item.object, item.unserved, tuple(map(str, item.problems))


def test_decoding(sources: Sources) -> None:
    """A damaged object is used or has problems that name it; an undamaged neighbour is always used."""
    for source in sources(4000):
        kind = source.choice(list(RESOURCES))
        good, bad = source.choice(OBJECTS[kind]), damaged(source.choice(OBJECTS[kind]), source)
        data = packed(bad, source)
        resource = RESOURCES[kind]
        item = resource.decode_object(msgspec.Raw(data))
        check(item, kind)
        items = items_of(resource, b'{"items": [' + data + b"," + msgspec.json.encode(good) + b"]}")
        if items:
            assert content(resource.decode_object(msgspec.Raw(msgspec.json.encode(good)))) == content(items[-1])


def tracked(source: Random) -> Tracker:
    """Return a tracker with a few damaged and undamaged objects, as far as they are usable."""
    tracker = Tracker()
    for _ in range(source.randrange(2, 8)):
        kind = source.choice(("Service", "Service", "EndpointSlice", "EndpointSlice", "Node"))
        tree = source.choice(OBJECTS[kind])
        if source.random() < 0.7:
            tree = damaged(tree, source)
        item = RESOURCES[kind].decode_object(msgspec.Raw(packed(tree, source)))
        if item.unserved:
            tracker.apply(Unserved(item.unserved))
        if item.object is not None:
            tracker.apply(Put(item.object))
    return tracker


def programs(family: Family) -> Iterable[Program[Any, Any]]:
    """Return an empty program of each mode."""
    return (
        IptablesProgram(IptablesSettings(family=family)),
        NftablesProgram(NftablesSettings(family=family)),
        IpvsProgram(IpvsSettings(family=family)),
    )


def test_planning(sources: Sources) -> None:
    """What is left of damaged objects is planned, and becomes rules of printable ASCII in each mode."""
    for source in sources(400):
        tracker = tracked(source)
        for family in Family:
            plans = final_plans(tracker, tracker.node or HERE, family)
            iptables, nftables, _ = (desired_entries(program, plans) for program in programs(family))
            text = restore_text(difference({}, iptables))
            text += table_text(family, layout_text(NftablesSettings(family=family)), nftables)
            assert is_one_line(text.replace("\n", "").replace("\t", ""))


def test_text_of_pages(sources: Sources) -> None:
    """A damaged response is a list, with or without problems, or an error of the source that is one line."""
    pages = {kind: msgspec.json.encode({"items": OBJECTS[kind][:5]}) for kind in RESOURCES}
    for source in sources(4000):
        kind = source.choice(list(RESOURCES))
        for item in items_of(RESOURCES[kind], damaged_bytes(pages[kind], source)):
            check(item, kind)
