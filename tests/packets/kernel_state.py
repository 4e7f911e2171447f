"""The rules of a node as text that two agents can be compared by: without counters, handles and what packets have added.

The kernel lists elements of sets in any order, and chains in the order in which they were created.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tests.lab import Host

from .cluster import PYPROXY, Cluster
from .modes import NFTABLES, Mode
from .objects import PLAN, JsonObject, node

_COUNTERS = re.compile(r"^#.*\n| \[\d+:\d+\]$", re.MULTILINE)
_HOOK = re.compile(r"-A (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) ")


def kernel_state(cluster: Cluster, host: Host) -> list[str]:
    """Return the rules of the mode on a node of a cluster."""
    return state_of(cluster.mode, lambda *argv: cluster.run(host, *argv))


def state_of(mode: Mode, run: Callable[..., str]) -> list[str]:
    """Return the rules of a mode; `run` runs a command on the node. Rules of one chain of pyproxy are in their order."""
    if mode is NFTABLES:
        commands = (f"nft --json list table {table} || true" for table in mode.nft_tables)
        listings = [text for text in (run("sh", "-c", command) for command in commands) if text]
        return sorted(line for text in listings for line in _nftables(json.loads(text)["nftables"]))
    lines = _COUNTERS.sub("", "".join(run(*command) for command in mode.dumps)).splitlines()
    chains: dict[str, list[str]] = {}
    for line in lines:
        # Hooks are sorted: repaired ones may be in another order.
        name = "" if _HOOK.match(line) or not line.startswith("-A ") else line.split()[1]
        chains.setdefault(name, []).append(line)
    return sorted(chains.pop("", [])) + ["\n".join(chains[name]) for name in sorted(chains)]


NODES = [node(planned.name) for planned in PLAN.nodes]


def start_fresh(
    cluster: Cluster, objects: Iterable[JsonObject], *flags: str, env: Mapping[str, str] | None = None
) -> list[str]:
    """Start agents on nodes without rules, with only these objects and the Nodes, and return the state of the first node."""
    cluster.stop()
    for host in cluster.lab.nodes:
        cluster.run(host, PYPROXY, "cleanup")
    cluster.write([*NODES, *objects])
    cluster.start(*flags, env=env)
    return kernel_state(cluster, cluster.lab["node1"])


def _nftables(items: list[dict[str, Any]]) -> Iterator[str]:
    rules: dict[tuple[str, str], list[str]] = {}
    for [(kind, item)] in (entry.items() for entry in items):
        item.pop("handle", None)
        if kind == "rule":
            written = json.dumps([_uncounted(part) for part in item["expr"]], sort_keys=True)
            rules.setdefault((item["family"], item["chain"]), []).append(written)
        elif kind in {"set", "map"}:
            # Elements of dynamic sets come from packets: pins of session affinity.
            elements = () if "dynamic" in item.get("flags", ()) else item.pop("elem", ())
            item.pop("elem", None)
            yield json.dumps([kind, item], sort_keys=True)
            for element in elements:
                yield json.dumps([item["family"], item["name"], element], sort_keys=True)
        elif kind in {"table", "chain"}:
            yield json.dumps([kind, item], sort_keys=True)
    for (family, chain), written_rules in rules.items():
        yield "\n".join([f"{family} {chain}", *written_rules])


def _uncounted(part: dict[str, Any]) -> dict[str, Any]:
    return {"counter": None} if "counter" in part else part
