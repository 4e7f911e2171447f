"""Which modes are compared, and how each is asked of both proxies."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.kubeproxy import Backend
from tests.lab import Host
from tests.lab.values import DEFAULT_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a machine can be asked to do."""

    burst: int
    """Probes at once in each lab: as many as a server can take, even if all are for it."""
    answer_seconds: float
    """For how long an answer is waited for."""
    poll_seconds: float
    patience_seconds: float
    """Far longer than any change takes: only a fault exceeds it."""


QUICK = Pace(burst=400, answer_seconds=DEFAULT_TIMEOUT_SECONDS, poll_seconds=0.02, patience_seconds=60.0)
GUEST = Pace(burst=150, answer_seconds=3.0, poll_seconds=0.5, patience_seconds=400.0)
"""On the guest kernel, where starting a program takes a tenth of a second."""
_FORGET_RECENT = "for list in /proc/net/xt_recent/*; do [ ! -e $list ] || echo / > $list; done"


@dataclass(frozen=True, slots=True)
class Mode:
    """A proxy mode with its variant: a row more compares a mode more."""

    name: str
    kube_proxy: Backend
    pyproxy: tuple[str, ...]
    """Flags that bring pyproxy into the same mode."""
    dumps: tuple[tuple[str, ...], ...]
    """Commands that print all rules of both families."""
    forget_clients: Callable[[Host], None]
    """Makes a node forget which client is pinned to which endpoint."""
    flags: tuple[str, ...] = ("--iptables-min-sync-period=100ms",)
    """Flags for both proxies: for short times between syncs, where a sync is cheap."""
    pace: Pace = QUICK
    syncs: re.Pattern[str] | None = None
    """What kube-proxy says at the beginning of a sync, or else at its end ("complete"), with the family; None: nothing.

    Needed where a sync takes long, and something is written after a mark.
    """

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return self.name


def _forget_recent(node: Host) -> None:
    """Empty the lists of the iptables match ``recent``."""
    node.run("sh", "-c", _FORGET_RECENT)


def _forget_dynamic(node: Host) -> None:
    """Empty the sets and maps that packets fill."""
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
    # The kernel forgets by itself: a pin goes with the virtual server it belongs to, and each state has its own.
    forget_clients=lambda _: None,
    flags=("-v=4",),
    pace=GUEST,
    syncs=re.compile(r'"(?:Syncing ipvs proxier rules|syncProxyRules (complete))".* ipFamily="(\w+)"'),
)
MODES = (LEGACY, NFT, NFTABLES)
"""Those that every kernel has; for IPVS there is `test_peer_ipvs`."""
