"""Session affinity in the kernel: entries survive restarts and repairs, and are deleted with their endpoint."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from pyproxy.model.address import Family, ip_text
from pyproxy.model.names import Protocol
from pyproxy.plan.service_plan import ServicePlan

from .nft_agent import NftAgent, Start, cluster_ip, endpoints, node_namespace, node_settings, plan
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("needs_root")

SECONDS = 10800
EXTERNAL = 5000
NODE_PORT = 30001
CLIENTS = 40


@pytest.fixture
def start(family: Family) -> Iterator[Start]:
    """Enter a namespace in which packets pass our rules, and are then discarded."""
    with node_namespace(node_settings(family, local_traffic=None)) as start_agent:
        run("ip", "-batch", "-", stdin="link set lo up\naddr add 10.0.0.1 dev lo\nroute add local 10.0.0.0/8 dev lo\nroute add local fd00::/16 dev lo\n")  # fmt: skip
        yield start_agent


def pinned(family: Family, *pods: int, **fields: Any) -> ServicePlan:  # noqa: ANN401  # any field of a plan
    """Return the plan of the Service with session affinity."""
    return plan(family, 1, *pods, protocol=Protocol.UDP, affinity_seconds=SECONDS, **fields)


def send(family: Family, numbers: range = range(CLIENTS), to: int = 1, port: int = 80) -> None:
    """Send one packet from each of these clients."""
    for number in numbers:
        kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
        with socket.socket(kind, socket.SOCK_DGRAM) as client:
            client.setsockopt(*((socket.IPPROTO_IP, 15) if family is Family.IPV4 else (socket.IPPROTO_IPV6, 78)), 1)
            client.bind((ip_text(cluster_ip(family, 40_000 + number)), 0))
            client.sendto(b"x", (ip_text(cluster_ip(family, to)), port))


def pins(agent: NftAgent) -> dict[str, str]:
    """Return the id of each client's endpoint."""
    listing = run("nft", "list", "set", *agent.table.split(), "pins")
    found = re.findall(r"([0-9a-f.:]+) \. ([0-9a-f]+:[0-9a-f]+) timeout", listing)
    assert len(found) == len(dict(found)), "a client has two pins"
    return dict(found)


def test_a_client_is_pinned_once(start: Start, family: Family) -> None:
    """A client has one affinity entry, with the time-out of the Service, for any number of connections and addresses."""
    agent = start()
    agent.put(pinned(family, 1, 2, 3, external_ips=(cluster_ip(family, EXTERNAL),)))
    send(family)
    first = pins(agent)
    send(family, to=EXTERNAL)

    assert CLIENTS == len(first)
    assert first == pins(agent)
    assert 3 == len(set(first.values()))
    assert f"timeout {SECONDS // 3600}h" in run("nft", "list", "set", *agent.table.split(), "pins")
    run("nft", "--check", "--file", "-", stdin=run("nft", "list", "ruleset"))


def test_pins_survive(start: Start, family: Family) -> None:
    """A restart, a repair of elements and all unrelated changes keep the affinity entries."""
    start().put(pinned(family, 1, 2, 3))
    send(family)
    agent = start()
    before = pins(agent)
    agent.put(pinned(family, 1, 2, 3))
    agent.nft("flush map TABLE counts\nflush map TABLE slots\nflush map TABLE endpoints")
    agent.look()
    others = [plan(family, 50 + number, 1, 2, 3, 4, affinity_seconds=77) for number in range(3)]
    agent.put(*others)
    agent.remove(*others)
    agent.put(pinned(family, 5, 3, 2, 1))
    send(family)

    assert CLIENTS == len(before)
    assert before == pins(agent)


@pytest.mark.parametrize("script", ["insert rule TABLE services counter", "add chain TABLE layout-0-0"])
def test_pins_survive_when_the_table_is_recreated(start: Start, family: Family, script: str) -> None:
    """If the table is replaced, after a change of rules or of the version, the affinity entries are copied."""
    agent = start()
    agent.put(pinned(family, 1, 2, 3))
    send(family)
    before = pins(agent)
    agent.nft(script)
    agent.look()
    after = pins(agent)
    send(family)

    assert CLIENTS == len(before)
    assert before == after == pins(agent)
    assert agent.wanted() == agent.read()


def test_pins_are_copied_with_their_time(start: Start, family: Family) -> None:
    """An affinity entry keeps its remaining time when the table is replaced."""
    agent = start()
    agent.put(pinned(family, 1))
    text = f"{ip_text(cluster_ip(family, 40_000))} . 8000:1"
    agent.nft(f"add element TABLE pins {{ {text} timeout 1h expires 10m }}\nadd chain TABLE other")
    agent.look()

    listing = run("nft", "list", "set", *agent.table.split(), "pins")
    assert re.search(rf"{re.escape(text)} timeout 1h expires [5-9]m", listing)


def test_pins_in_another_format_are_dropped(start: Start, family: Family) -> None:
    """A table with affinity entries in another format can be replaced."""
    agent = start()
    agent.nft("table TABLE { set pins { type inet_service; timeout 1h; elements = { 80 }\n }\nchain other { }\n }")
    agent.put(pinned(family, 1))

    assert {} == pins(agent)
    assert agent.wanted() == agent.read()


def test_pins_are_deleted_with_their_endpoint(start: Start, family: Family) -> None:
    """Removing an endpoint deletes exactly its affinity entries; they do not return with the endpoint."""
    agent = start()
    agent.put(pinned(family, 1, 2, 3))
    send(family)
    before = pins(agent)
    agent.put(pinned(family, 1, 3))
    after = pins(agent)
    agent.put(pinned(family, 1, 2, 3))

    [gone] = set(before.values()) - set(after.values())
    assert {client: number for client, number in before.items() if number != gone} == after == pins(agent)


def test_pins_of_endpoints_removed_while_no_agent_ran(start: Start, family: Family) -> None:
    """An agent that starts deletes the affinity entries of endpoints that were removed meanwhile."""
    start().put(pinned(family, 1, 2, 3))
    send(family)
    agent = start()
    before = set(pins(agent).values())
    agent.put(pinned(family, 1, 3))

    assert before > set(pins(agent).values())


def test_moved_clients_stay_where_they_moved(start: Start, family: Family) -> None:
    """A client whose endpoint was removed stays with its new endpoint, also if the old one returns."""
    agent = start()
    agent.put(pinned(family, 1, 2))
    send(family)
    agent.put(pinned(family, 2))
    send(family)
    moved = pins(agent)
    agent.put(pinned(family, 1, 2))
    send(family)

    assert 1 == len(set(moved.values()))
    assert moved == pins(agent)


@pytest.mark.parametrize("field", ["external_ips", "load_balancer_ips", "node_port"])
def test_pins_last_when_an_address_goes(start: Start, family: Family, field: str) -> None:
    """Removing one address of a Service keeps its affinity entries."""
    agent = start()
    value: Any = NODE_PORT if field == "node_port" else (cluster_ip(family, EXTERNAL),)
    agent.put(pinned(family, 1, 2, 3, **{field: value}))
    send(family)
    before = pins(agent)
    agent.put(pinned(family, 1, 2, 3))

    assert CLIENTS == len(before)
    assert before == pins(agent)


def test_pins_last_while_any_policy_has_the_endpoint(start: Start, family: Family) -> None:
    """An endpoint that remains only for the policy Local keeps its affinity entries."""
    agent = start()
    ips = (cluster_ip(family, EXTERNAL),)
    both = pinned(family, 1, 2, external_ips=ips, external_local=True, local_endpoints=endpoints(family, 1))
    agent.put(both)
    send(family)
    before = pins(agent)
    agent.put(replace(both, cluster_endpoints=endpoints(family, 2)))
    kept = pins(agent)
    agent.put(replace(both, cluster_endpoints=endpoints(family, 2), local_endpoints=()))

    assert before == kept
    assert 1 == len(set(pins(agent).values()))


def test_pins_are_deleted_with_affinity(start: Start, family: Family) -> None:
    """Disabling session affinity, or removing the Service, deletes all its affinity entries."""
    agent = start()
    agent.put(pinned(family, 1, 2))
    send(family)
    before = pins(agent)
    agent.put(plan(family, 1, 1, 2, protocol=Protocol.UDP))

    assert before
    assert {} == pins(agent)
