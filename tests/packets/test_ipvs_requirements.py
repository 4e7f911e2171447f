"""What the IPVS mode says of a kernel that lacks something: the module, and what else there is.

The refusals of a kernel that has everything are a gate's; one that has no IPVS refuses by itself.
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
from tests.packets.modes import HAS_IPVS, LEGACY, NFT
from tests.packets.own_namespace import own_namespace, run

pytestmark = pytest.mark.usefixtures("needs_root")

with_ipvs = pytest.mark.skipif(not HAS_IPVS, reason="this kernel has no IPVS: python -m tests.guest brings one")


def need_rules(
    directory: Path, monkeypatch: pytest.MonkeyPatch, refused: str = "", variant: Variant = Variant.LEGACY
) -> None:
    """Ask for what the rules need on a node that was never used, whose kernel refuses a text."""
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


@pytest.mark.skipif(HAS_IPVS, reason="this kernel has what is missing here")
def test_kernel_without_ipvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The match for packets of IPVS is named where a kernel has none."""
    with pytest.raises(ConfigError, match=r"needs the kernel module xt_ipvs, .*--proxy-mode=nftables"):
        need_rules(tmp_path, monkeypatch)


@with_ipvs
@pytest.mark.parametrize("module", ["set", "ipvs", "bpf"])
def test_missing_match(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of a match that is refused is named, with the modes that do without."""
    expected = rf"needs the kernel module xt_{module}, .*: .*line \d+ failed.*--proxy-mode=iptables"
    with pytest.raises(ConfigError, match=expected):
        need_rules(tmp_path, monkeypatch, f"-m {module}")


@with_ipvs
@pytest.mark.parametrize("variant", Variant)
def test_kernel_that_has_everything(variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused, and nothing of the trial stays."""
    need_rules(tmp_path, monkeypatch, variant=variant)


@with_ipvs
@pytest.mark.parametrize(("variant", "other"), [(Variant.LEGACY, "nft"), (Variant.NFT, "legacy")])
def test_kernel_that_takes_no_rules_of_a_variant(
    variant: Variant, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the plainest rule is refused, the error does not blame a match, and names the other variant."""
    expected = rf"needs rules in iptables-{variant.value}, .*--iptables-variant={other}"
    with pytest.raises(ConfigError, match=expected):
        need_rules(tmp_path, monkeypatch, "-j RETURN", variant)
