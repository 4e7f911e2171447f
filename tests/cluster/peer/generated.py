"""Random states: every field of Services and slices takes all relevant kinds of values.

A state depends only on a seed and a number. Its expected behaviour is unambiguous: no two Services have the same
address and port, and no endpoint has contradicting conditions in two slices.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from .objects import HEADLESS_LABEL, PROXY_NAME_LABEL, Entry, JsonObject, On, State, port, service, slices
from .world import ADDRESSES, FAMILIES, PORT, SECOND_ADDRESSES, SECOND_PORT, public

SERVICES = 4
MOST_ENDPOINTS = 3
"""The number of endpoints in one slice; with affinity, more would need more clients."""
PROTOCOLS = ("TCP", "TCP", "UDP", "UDP", "SCTP")
HOSTS = ("pod1-1", "pod1-2", "pod1-3", "pod2-1", "pod2-2", "pod2-3", "node1", "node2", "database")
CONDITIONS: Sequence[JsonObject] = (
    *[{}] * 4,
    *[{"ready": True, "serving": True, "terminating": False}] * 4,
    *[{"ready": False, "serving": True, "terminating": True}] * 4,
    {"ready": False, "serving": False, "terminating": True},
    {"ready": False, "serving": False, "terminating": False},
    {"ready": False, "serving": True, "terminating": False},
    {"ready": False},
    {"ready": True, "serving": True, "terminating": True},
    {"terminating": True},
)
FAMILY_CHOICES = ({}, {}, {}, {"ipFamilies": [*reversed(FAMILIES)]}, *({"ipFamilies": [family]} for family in FAMILIES))
RANGES = (
    *("172.18.0.0/24", "172.18.0.101/32", "172.18.0.128/26", "172.19.0.0/16", "10.244.1.0/24", "10.244.0.0/16"),
    *("172.18.0.11/32", "203.0.113.0/24", "0.0.0.0/0", "198.51.100.0/24"),
    *("fd00:172:18::/64", "fd00:172:18::101/128", "fd00:172:19::/64", "fd00:10:244:1::/64", "fd00:172:18::11/128"),
    *("2001:db8:113::/48", "::/0"),
)


def state(seed: str, number: int) -> State:
    """Return the state with this number."""
    random = Random(f"{seed}/{number}")  # noqa: S311 - must be repeatable
    entries = tuple(_entry(random, f"g{number}-{place}", place) for place in range(SERVICES))
    return State(entries, {"node1": random.choice(("a", "a", "b", None)), "node2": random.choice(("a", "b", "c"))})


def _entry(random: Random, name: str, place: int) -> Entry:
    owner = _service(random, name, place)
    return Entry(owner, tuple(_slices(random, owner)))


def _service(random: Random, name: str, place: int) -> JsonObject:
    kind = random.choice(
        ("ClusterIP", "ClusterIP", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "LoadBalancer")
    )
    spec: dict[str, Any] = {"type": kind, **random.choice(FAMILY_CHOICES)}
    if len(spec.get("ipFamilies", FAMILIES)) == 1:
        spec["ipFamilyPolicy"] = "SingleStack"
    if external_ips := _external_ips(random, place):
        spec["externalIPs"] = external_ips
    if (kind != "ClusterIP" or external_ips) and _happens(random, 0.4):
        spec["externalTrafficPolicy"] = "Local"
    if _happens(random, 0.25):
        spec["internalTrafficPolicy"] = "Local"
    if _happens(random, 0.2):
        spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
    if kind == "LoadBalancer":
        spec |= _balancer(random, place)
    labels = {PROXY_NAME_LABEL: "other"} if _happens(random, 0.04) else {}
    return service(name, *_ports(random), labels=labels, **spec)


def _external_ips(random: Random, place: int) -> list[str]:
    """Return addresses that no other Service has."""
    pool = [*public(60 + place), *public(70 + place)]
    if place == 0:
        pool += [*map(str, ADDRESSES["node1"]), *map(str, SECOND_ADDRESSES["node1"])]
    return random.sample(pool, random.choice((0, 0, 1, 2)))


def _balancer(random: Random, place: int) -> JsonObject:
    found: JsonObject = {"allocateLoadBalancerNodePorts": _happens(random, 0.7)}
    modes: Sequence[JsonObject] = ({}, {"ipMode": "VIP"}, {"ipMode": "VIP"}, {"ipMode": "Proxy"})
    numbers = random.choice(((80,), (80,), (80, 90), ()))
    found["ingress"] = [{"ip": ip, **random.choice(modes)} for number in numbers for ip in public(number + place)]
    if _happens(random, 0.2):
        found["ingress"].append({"hostname": "lb.example.com"})
    if _happens(random, 0.5):
        found["loadBalancerSourceRanges"] = random.sample(RANGES, random.choice((1, 2, 3)))
    return found


def _ports(random: Random) -> list[JsonObject]:
    wanted = {(random.choice((80, 53, 8443)), random.choice(PROTOCOLS)) for _ in range(random.choice((1, 1, 2, 3)))}
    ordered = random.sample(sorted(wanted), len(wanted))
    if len(ordered) == 1 and _happens(random, 0.5):
        return [port(*ordered[0])]
    return [port(number, protocol, name=f"p{index}") for index, (number, protocol) in enumerate(ordered)]


def _slices(random: Random, owner: JsonObject) -> list[JsonObject]:
    hints = random.choice(("none", "none", "none", "zones", "zones", "nodes", "both", "some"))
    known: dict[str, On] = {}
    found: list[JsonObject] = []
    for suffix in random.choice(("", "a", "a", "a", "ab", "ab", "abc")):
        hosts = random.sample(HOSTS, random.randint(0, MOST_ENDPOINTS))
        if len({*known, *hosts}) > MOST_ENDPOINTS:
            hosts = [*known]
        endpoints = [_again(random, known[host]) if host in known else _endpoint(random, host, hints) for host in hosts]
        known |= {on.host: on for on in endpoints if on.host not in known}
        labels = {HEADLESS_LABEL: ""} if _happens(random, 0.05) else {}
        found += slices(owner, *endpoints, to=_targets(random, owner), suffix=suffix, labels=labels)
    return found


def _targets(random: Random, owner: JsonObject) -> dict[str, int]:
    """Return the ports of the endpoints: a single number with affinity, to limit the number of endpoints."""
    names = [entry["name"] for entry in owner["spec"]["ports"]]
    if "sessionAffinity" in owner["spec"]:
        return dict.fromkeys(names, PORT)
    numbers = (PORT, PORT, PORT, SECOND_PORT)
    return {name: random.choice(numbers) for name in names if not _happens(random, 0.05)}


def _endpoint(random: Random, host: str, hints: str) -> On:
    is_hinted = hints != "some" or _happens(random, 0.5)
    zones = _some(random, ("a", "b", "c")) if is_hinted and hints in {"zones", "both", "some"} else ()
    nodes = _some(random, ("node1", "node2")) if is_hinted and hints in {"nodes", "both"} else ()
    return On(host, random.choice(CONDITIONS), zones, nodes, is_ready_for=not _happens(random, 0.1))


def _again(random: Random, on: On) -> On:
    """Return an endpoint for another slice: the same one, or a terminating pod whose address is reused."""
    if on.conditions.get("terminating", False) or _happens(random, 0.5):
        return on
    return On(
        on.host, {"ready": False, "serving": _happens(random, 0.5), "terminating": True}, is_ready_for=on.is_ready_for
    )


def _some(random: Random, pool: Sequence[str]) -> Sequence[str]:
    return random.sample(pool, random.choice((1, 1, 2)))


def _happens(random: Random, probability: float) -> bool:
    return random.random() < probability
