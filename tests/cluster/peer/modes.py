"""Which modes are compared, and how each is asked of both proxies."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.kubeproxy import Backend
from tests.lab import Host

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
MODES = (LEGACY, NFT, NFTABLES)
