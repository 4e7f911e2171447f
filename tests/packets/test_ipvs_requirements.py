"""Errors of the IPVS mode on a kernel that lacks a feature: they name the module, and the alternatives.

On a kernel with all features a gate refuses the probes; a kernel without IPVS refuses them itself.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyproxy.backends.ipvs.requirements import require_rules
from pyproxy.errors import ConfigError
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family
from tests.packets.gate import Gate
from tests.packets.modes import LEGACY, NFT
from tests.packets.own_namespace import own_namespace, run

pytestmark = pytest.mark.usefixtures("needs_root")


def need_rules(
    directory: Path, monkeypatch: pytest.MonkeyPatch, refused: str = "", variant: Variant = Variant.LEGACY
) -> None:
    """Check the requirements in a new namespace, with a gate that refuses a text."""
    gate = Gate({Variant.LEGACY: LEGACY, Variant.NFT: NFT}[variant], directory)
    if refused:
        gate.refuse(refused)
    for name, value in {**gate.env, "XTABLES_LOCKFILE": str(directory / "lock")}.items():
        monkeypatch.setenv(name, value)
    with own_namespace():
        try:
            asyncio.run(require_rules(Family.IPV4, variant))
        finally:
            assert "" == run("ipset", "list", "-n")
            assert "PROBE" not in run("iptables-legacy-save")


@pytest.mark.needs_no_ipvs
def test_kernel_without_ipvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel without IPVS the error names the module of the missing match."""
    with pytest.raises(ConfigError, match=r"needs the kernel module xt_ipvs, .*--proxy-mode=nftables"):
        need_rules(tmp_path, monkeypatch)


@pytest.mark.needs_ipvs
@pytest.mark.parametrize("module", ["set", "ipvs", "bpf"])
def test_missing_match(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the module of a refused match, and the modes that do not need it."""
    expected = rf"needs the kernel module xt_{module}, .*: .*line \d+ failed.*--proxy-mode=iptables"
    with pytest.raises(ConfigError, match=expected):
        need_rules(tmp_path, monkeypatch, f"-m {module}")


@pytest.mark.needs_ipvs
@pytest.mark.parametrize("variant", Variant)
def test_kernel_that_has_everything(variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all features nothing is refused, and the probes leave nothing behind."""
    need_rules(tmp_path, monkeypatch, variant=variant)


@pytest.mark.needs_ipvs
@pytest.mark.parametrize(("variant", "other"), [(Variant.LEGACY, "nft"), (Variant.NFT, "legacy")])
def test_kernel_that_takes_no_rules_of_a_variant(
    variant: Variant, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If even the simplest rule is refused, the error names the other variant, and no match."""
    expected = rf"needs rules in iptables-{variant.value}, .*--iptables-variant={other}"
    with pytest.raises(ConfigError, match=expected):
        need_rules(tmp_path, monkeypatch, "-j RETURN", variant)
