"""The flags that count in ipvs mode only. Names and types are those of kube-proxy."""

from dataclasses import dataclass

from pyproxy.config.grammar import CIDRS_REPEATED, DURATION, SWITCH, TEXT
from pyproxy.config.option import not_negative, option, positive
from pyproxy.config.takeover_flags import TakeoverFlags
from pyproxy.model.address import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class IpvsFlags(TakeoverFlags):
    """The fields of Config that say something to the ipvs mode alone."""

    ipvs_scheduler: str = option(
        "", TEXT, "How IPVS spreads connections: rr, wrr, lc, wlc, sh, mh, …; empty means rr. A Service can differ."
    )
    ipvs_exclude_cidrs: tuple[Network, ...] = option(
        (), CIDRS_REPEATED, "Addresses whose virtual servers are never deleted, in ipvs mode."
    )
    ipvs_strict_arp: bool = option(
        False, SWITCH, "Have each network device answer ARP for its own addresses only, in ipvs mode; MetalLB needs it."
    )
    ipvs_tcp_timeout_seconds: float = option(
        0.0, DURATION, "How long IPVS keeps an idle TCP connection; 0 leaves the kernel's value.", check=not_negative
    )
    ipvs_tcpfin_timeout_seconds: float = option(
        0.0,
        DURATION,
        "How long IPVS keeps a TCP connection after a FIN; 0 leaves the kernel's value.",
        check=not_negative,
    )
    ipvs_udp_timeout_seconds: float = option(
        0.0, DURATION, "How long IPVS keeps an idle UDP flow; 0 leaves the kernel's value.", check=not_negative
    )
    ipvs_min_sync_period_seconds: float | None = option(
        None, DURATION, "As --iptables-min-sync-period, in ipvs mode.", check=not_negative
    )
    ipvs_sync_period_seconds: float = option(30.0, DURATION, "As --iptables-sync-period, in ipvs mode.", check=positive)
