"""The modes in which the proxies are compared, and how each proxy is configured for them."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.kubeproxy import Backend
from tests.lab import Host
from tests.lab.values import DEFAULT_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Limits that depend on the speed of the machine."""

    burst: int
    """Concurrent probes in each lab: as many as one server can answer."""
    answer_seconds: float
    """The time-out of an answer."""
    poll_seconds: float
    patience_seconds: float
    """Far longer than any change takes; exceeded only after a bug."""


QUICK = Pace(burst=400, answer_seconds=DEFAULT_TIMEOUT_SECONDS, poll_seconds=0.02, patience_seconds=60.0)
GUEST = Pace(burst=150, answer_seconds=3.0, poll_seconds=0.5, patience_seconds=400.0)
"""Limits on the guest kernel, where starting a program takes a tenth of a second."""
_FORGET_RECENT = "for list in /proc/net/xt_recent/*; do [ ! -e $list ] || echo / > $list; done"


@dataclass(frozen=True, slots=True)
class Mode:
    """A proxy mode with its variant."""

    name: str
    kube_proxy: Backend
    pyproxy: tuple[str, ...]
    """Flags of pyproxy for the same mode."""
    dumps: tuple[tuple[str, ...], ...]
    """Commands that print all rules of both families."""
    forget_clients: Callable[[Host], None]
    """Deletes the session affinity of all clients on a node."""
    flags: tuple[str, ...] = ("--iptables-min-sync-period=100ms",)
    """Flags for both proxies: short times between syncs if a sync is cheap."""
    pace: Pace = QUICK
    syncs: re.Pattern[str] | None = None
    """A pattern of kube-proxy's messages at the start and end ("complete") of a sync, with the family; None if unused.

    It is needed if syncs are slow, and some rules are written after those of the marker.
    """

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return self.name


def _forget_recent(node: Host) -> None:
    """Flush the lists of the iptables match ``recent``."""
    node.run("sh", "-c", _FORGET_RECENT)


def _forget_dynamic(node: Host) -> None:
    """Flush the sets and maps that packets fill."""
    for item in json.loads(node.run("nft", "--json", "list", "ruleset"))["nftables"]:
        for kind in ("set", "map"):
            found = item.get(kind, {})
            if "dynamic" in found.get("flags", ()):
                node.run("nft", "flush", kind, found["family"], found["table"], found["name"])


def _iptables(variant: str, backend: Backend) -> Mode:
    return Mode(
        name=f"iptables-{variant}",
        kube_proxy=backend,
        pyproxy=("--proxy-mode=iptables", f"--iptables-variant={variant}"),
        dumps=((f"iptables-{variant}-save",), (f"ip6tables-{variant}-save",)),
        forget_clients=_forget_recent,
    )


LEGACY = _iptables("legacy", "iptables-legacy")
NFT = _iptables("nft", "iptables-nft")
NFTABLES = Mode(
    name="nftables",
    kube_proxy="nftables",
    pyproxy=("--proxy-mode=nftables",),
    dumps=(("nft", "list", "ruleset"),),
    forget_clients=_forget_dynamic,
)
IPVS = Mode(
    name="ipvs",
    kube_proxy="ipvs-legacy",
    pyproxy=("--proxy-mode=ipvs", "--iptables-variant=legacy"),
    dumps=(("ipvsadm", "-Ln"),),
    # Not necessary: affinity is deleted with its virtual server, and each state has its own virtual servers.
    forget_clients=lambda _: None,
    flags=("-v=4",),
    pace=GUEST,
    syncs=re.compile(r'"(?:Syncing ipvs proxier rules|syncProxyRules (complete))".* ipFamily="(\w+)"'),
)
MODES = (LEGACY, NFT, NFTABLES)
"""The modes that every kernel supports; for IPVS see `test_peer_ipvs`."""
