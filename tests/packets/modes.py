"""The proxy modes in which the packet suites run, and the features of each.

A mode is one row here. A test of a feature that some modes lack is marked with `needs`, and deselected in those modes.
Where modes treat the same packet differently, the row of the mode has the expected result.
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
    """The programs that write all rules, IPv4 first; empty if the mode does not use iptables-restore for all rules."""
    nft_tables: tuple[str, ...] = ()
    """The tables of nf_tables that contain the rules, IPv4 first; empty for legacy tables."""
    localhost_node_ports: bool = False
    """Whether node ports answer on 127.0.0.1."""
    relay_rejects_sctp: bool = False
    """Whether packets to SCTP node ports on loopback are rejected and counted where the relay serves TCP and UDP."""
    node_ports_on_every_address: bool = False
    """Whether node ports answer on all addresses of a node unless `--nodeport-addresses` says otherwise."""
    lets_health_checks_in: bool = False
    """Whether health check node ports are accepted despite a host firewall that drops unknown packets."""
    drops_unallocated: bool = False
    """Whether packets to addresses of a ServiceCIDR that no Service has are dropped."""
    shares_pins: bool = True
    """Whether session affinity holds across all addresses of a Service port."""
    ends_pins_in_time: bool = True
    """Whether session affinity ends with its time-out, and not later, with the last conntrack entry of its connections."""
    moves_flows_in_zones: bool = True
    """Whether a UDP flow in a separate conntrack zone moves with its address."""
    removes_last: bool = False
    """Whether new entries are added before old ones are removed, so that a test has to wait for both."""
    unclaimed: str = "untouched"
    """What happens to a packet for an external address of a Service, but not a port of it: a word of `table`."""
    unserved: str = "untouched"
    """What happens to a packet for a cluster IP, but not a port of its Service: a word of `table`."""

    @property
    def is_iptables(self) -> bool:
        """Whether all rules are iptables rules."""
        return bool(self.restores)

    @property
    def iptables(self) -> tuple[str, ...]:
        """The iptables programs of both families, IPv4 first; empty if the mode has no iptables rules."""
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
    # `nft` fails if the table does not exist; here this means that there are no rules.
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
"""The modes in which the packet suites run: all except IPVS, or only IPVS under `python -m tests.guest`, which is
slower.

A list of names in the environment variable MODES overrides both; the guest supports all modes.
"""
