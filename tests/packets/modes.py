"""The proxy modes that the packet suites run in, and what each has and has not.

Law: a mode is one row here. A test of what not every mode has says so with `needs`, and is not collected for the others;
where modes give different answers to the same packet, the mode has the answer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A proxy mode with its variant."""

    name: str
    flags: tuple[str, ...]
    dumps: tuple[tuple[str, ...], ...]
    """Commands that print the rules of both families, IPv4 first."""
    restores: tuple[str, ...] = ()
    """The programs through which all rules are written, IPv4 first; empty where it is not done by iptables-restore."""
    nft_tables: tuple[str, ...] = ()
    """The tables of nf_tables that the rules are in, those of IPv4 first; empty in legacy tables."""
    localhost_node_ports: bool = False
    """Whether node ports answer on 127.0.0.1."""
    relay_rejects_sctp: bool = False
    """Whether packets to SCTP node ports on loopback are rejected and counted where the relay serves the others."""
    node_ports_on_every_address: bool = False
    """Whether node ports answer on all addresses of a node unless `--nodeport-addresses` says otherwise."""
    lets_health_checks_in: bool = False
    """Whether health check node ports pass a firewall that drops what it does not know."""
    drops_unallocated: bool = False
    """Whether packets are dropped to addresses of a ServiceCIDR that no Service has."""
    shares_pins: bool = True
    """Whether all addresses of a Service port share a client's pin."""
    ends_pins_in_time: bool = True
    """Whether a pin ends with its time-out, and not later, with the last trace of the connections made under it."""
    moves_flows_in_zones: bool = True
    """Whether a UDP flow that connection tracking keeps in a zone of its own moves with its address."""
    removes_last: bool = False
    """Whether what is new is there before what is old is gone, so that a test has to wait for both."""
    unclaimed: str = "nobody"
    """What a packet meets that is for a port of a Service's external address that the Service does not have."""
    unserved: str = "nobody"
    """What a packet meets that is for a port of a cluster IP that the Service does not have: a word of `table`."""

    @property
    def is_iptables(self) -> bool:
        """Whether all rules are rules of iptables."""
        return bool(self.restores)

    @property
    def iptables(self) -> tuple[str, ...]:
        """The iptables programs of both families, IPv4 first; empty where no rule is iptables'."""
        programs = (dump[0] for dump in self.dumps)
        return tuple(name.removesuffix("-save") for name in programs if name.endswith("-save"))

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return self.name


def needs(feature: str) -> pytest.MarkDecorator:
    """Collect a test only for the modes in which this attribute of `Mode` is true."""
    return pytest.mark.needs(feature)


def _iptables(variant: str, *nft_tables: str) -> Mode:
    programs = (f"iptables-{variant}", f"ip6tables-{variant}")
    return Mode(
        name=f"iptables-{variant}",
        flags=("--proxy-mode=iptables", f"--iptables-variant={variant}"),
        dumps=tuple((f"{program}-save",) for program in programs),
        restores=tuple(f"{program}-restore" for program in programs),
        nft_tables=nft_tables,
        localhost_node_ports=True,
        node_ports_on_every_address=True,
        lets_health_checks_in=True,
    )


LEGACY = _iptables("legacy")
NFT = _iptables("nft", "ip nat", "ip filter", "ip6 nat", "ip6 filter")
NFTABLES = Mode(
    name="nftables",
    flags=("--proxy-mode=nftables",),
    # A table that is not there is an error to `nft`; here it is one without rules.
    dumps=tuple(("sh", "-c", f"nft list table {family} pyproxy || true") for family in ("ip", "ip6")),
    nft_tables=("ip pyproxy", "ip6 pyproxy"),
    relay_rejects_sctp=True,
    drops_unallocated=True,
    unserved="refused",
)


def _ipvs(name: str, variant: str, *nft_tables: str) -> Mode:
    saves = tuple((f"{program}-{variant}-save",) for program in ("iptables", "ip6tables"))
    return Mode(
        name=name,
        flags=("--proxy-mode=ipvs", f"--iptables-variant={variant}", "--ipvs-strict-arp"),
        dumps=(*saves, ("ipset", "-sorted", "save"), ("ipvsadm", "-Sn")),
        nft_tables=nft_tables,
        node_ports_on_every_address=True,
        lets_health_checks_in=True,
        removes_last=True,
        moves_flows_in_zones=False,
        shares_pins=False,
        ends_pins_in_time=False,
        unclaimed="refused",
        unserved="refused",
    )


IPVS = _ipvs("ipvs", "legacy")
IPVS_NFT = _ipvs("ipvs-nft", "nft", *NFT.nft_tables)
HAS_IPVS = Path("/proc/net/ip_vs").exists()
IS_GUEST = "GUEST" in os.environ
_CHOSEN = os.environ.get("MODES", "ipvs" if IS_GUEST else "iptables-legacy,iptables-nft,nftables")
MODES = tuple(mode for mode in (LEGACY, NFT, NFTABLES, IPVS, IPVS_NFT) if mode.name in _CHOSEN.split(","))
"""Those that the packet suites run in: all that need no IPVS, and under `python -m tests.guest`, which is slower, IPVS alone.

A list of names in the environment variable MODES overrules both; the guest has them all.
"""
