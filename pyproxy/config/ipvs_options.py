"""The options that have an effect in ipvs mode only. Flags and types are those of kube-proxy."""

from dataclasses import dataclass

from pyproxy.config.grammar import CIDRS_REPEATED, DURATION, SWITCH, TEXT
from pyproxy.config.option import not_negative, option, positive
from pyproxy.model.address import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class IpvsOptions:
    """Options of the ipvs mode; their flags begin with ``--ipvs-``."""

    scheduler: str = option(
        "",
        TEXT,
        "Scheduler of IPVS: rr, wrr, lc, wlc, sh, mh, …; empty means rr. An annotation of a Service overrides it.",
    )
    exclude_cidrs: tuple[Network, ...] = option(
        (), CIDRS_REPEATED, "CIDR blocks in which the ipvs mode never deletes a virtual server."
    )
    strict_arp: bool = option(
        False,
        SWITCH,
        "In ipvs mode, let each network device answer ARP requests for its own addresses only; required by MetalLB.",
    )
    # IPVS has its own table of connections, beside conntrack; the shorter timeout of the two ends a connection.
    tcp_timeout_seconds: float = option(
        0.0,
        DURATION,
        "Time after which IPVS forgets an idle TCP connection; 0 keeps the kernel's value.",
        check=not_negative,
    )
    tcpfin_timeout_seconds: float = option(
        0.0,
        DURATION,
        "Time after which IPVS forgets a TCP connection after a FIN; 0 keeps the kernel's value.",
        check=not_negative,
    )
    udp_timeout_seconds: float = option(
        0.0, DURATION, "Time after which IPVS forgets an idle UDP flow; 0 keeps the kernel's value.", check=not_negative
    )
    # Options of their own, as in kube-proxy: a node changes its mode without changing its other flags.
    min_sync_period_seconds: float | None = option(
        None, DURATION, "Same as --iptables-min-sync-period, for the ipvs mode.", check=not_negative
    )
    sync_period_seconds: float = option(
        30.0, DURATION, "Same as --iptables-sync-period, for the ipvs mode.", check=positive
    )
