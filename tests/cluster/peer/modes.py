"""Which modes are compared, and how each is asked of both proxies."""

from dataclasses import dataclass

from tests.cluster.kubeproxy import Backend

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
    forget_clients: tuple[str, ...]
    """Command that makes a node forget which client is pinned to which endpoint."""

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return self.name


def _iptables(variant: str, backend: Backend) -> Mode:
    return Mode(
        name=f"iptables-{variant}",
        kube_proxy=backend,
        pyproxy=("--proxy-mode=iptables", f"--iptables-variant={variant}"),
        dumps=((f"iptables-{variant}-save",), (f"ip6tables-{variant}-save",)),
        forget_clients=("sh", "-c", _FORGET_RECENT),
    )


MODES = (_iptables("legacy", "iptables-legacy"), _iptables("nft", "iptables-nft"))
