"""Detecting the iptables variant of a node from its kernel and PATH, without leaving a trace."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from pyproxy.backends.iptables.variant import detect_variant
from pyproxy.errors import ConfigError
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family

from .each import families, variants
from .own_namespace import listed_tables, load

pytestmark = pytest.mark.usefixtures("own_tables")

SERVICE_RULES = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
FOREIGN_RULES = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n"

hints = pytest.mark.parametrize("hint", ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"])


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Provide an empty directory, which `install` fills, and `detect` uses as PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


def install(directory: Path, *variants: Variant) -> None:
    """Install all programs of these variants."""
    for name in (program(family, v, verb) for v in variants for family in Family for verb in ("", "save", "restore")):
        link(directory, name, name)


def link(directory: Path, name: str, original: str) -> None:
    """Install a program of this machine under another name."""
    path = shutil.which(original)
    assert path
    (directory / name).symlink_to(path)


def hint_chain(name: str) -> str:
    """Return restore input for a chain, as the kubelet creates it."""
    return f"*mangle\n:{name} - [0:0]\nCOMMIT\n"


def detect(path: Path | None = None) -> tuple[Variant, str]:
    """Return the detected variant, optionally with a directory as PATH; check that this creates no table."""
    before = listed_tables()
    with pytest.MonkeyPatch.context() as patch:
        if path:
            patch.setenv("PATH", str(path))
        answer = asyncio.run(detect_variant())

    assert before == listed_tables()
    return answer


@hints
@families
@variants
def test_the_kubelets_hint_decides(variant: Variant, family: Family, hint: str) -> None:
    """The variant with a chain of the kubelet in its mangle table is used, in either family."""
    load(family, variant, hint_chain(hint))

    assert (variant, f"its tables contain the kubelet's chain {hint}") == detect()


def test_a_hint_in_nft_wins() -> None:
    """With hints in both variants, nft is used: the legacy hint is stale, from before the kubelet switched."""
    for variant in Variant:
        load(Family.IPV4, variant, hint_chain("KUBE-IPTABLES-HINT"))

    assert Variant.NFT is detect()[0]


@variants
def test_a_hint_beats_service_rules(variant: Variant) -> None:
    """The kubelet's hint in one variant takes precedence over rules for Services in the other."""
    [other] = set(Variant) - {variant}
    load(Family.IPV4, other, SERVICE_RULES)
    load(Family.IPV4, variant, hint_chain("KUBE-IPTABLES-HINT"))

    assert variant is detect()[0]


@families
@variants
def test_service_rules_decide(variant: Variant, family: Family) -> None:
    """Without a hint, the variant with rules for Services is used, which kube-proxy or pyproxy has written."""
    load(family, variant, SERVICE_RULES)

    assert (variant, "its tables contain rules for Services") == detect()


@variants
def test_path_decides(variant: Variant, programs: Path) -> None:
    """With neither hint nor rules, the variant of the iptables on PATH is used; the reason names its version."""
    install(programs, *Variant)
    link(programs, "iptables", program(Family.IPV4, variant))

    detected, reason = detect(programs)

    assert variant is detected
    assert re.fullmatch(r"the iptables on PATH is iptables v[\d.]+ \((legacy|nf_tables)\)", reason)


@variants
def test_foreign_rules_do_not_count(variant: Variant, programs: Path) -> None:
    """Foreign rules in one variant do not take precedence over the iptables on PATH."""
    [other] = set(Variant) - {variant}
    load(Family.IPV4, other, FOREIGN_RULES)
    install(programs, *Variant)
    link(programs, "iptables", program(Family.IPV4, variant))

    assert variant is detect(programs)[0]


def test_no_iptables_on_path(programs: Path) -> None:
    """With both variants installed but no plain iptables on PATH, nft is used."""
    install(programs, *Variant)

    assert (Variant.NFT, "there is no iptables on PATH") == detect(programs)


@variants
def test_the_only_variant(variant: Variant, programs: Path) -> None:
    """If only one variant is installed it is used, whatever rules the kernel has in the other."""
    [other] = set(Variant) - {variant}
    load(Family.IPV4, other, hint_chain("KUBE-IPTABLES-HINT"))
    install(programs, variant)

    assert (variant, "the other variant is not installed") == detect(programs)


def test_no_variant(programs: Path) -> None:
    """If no variant is installed, the error names the flag and the programs."""
    with pytest.raises(ConfigError, match=r"--iptables-variant: neither iptables-nft-restore nor iptables-legacy"):
        detect(programs)
