"""Opening the nftables mode where something is missing."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.backends.nftables.mode import NftablesMode
from pyproxy.backends.registry import open_backend
from pyproxy.config.config import Config, IptablesVariant, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family

pytestmark = pytest.mark.usefixtures("own_tables")


@pytest.fixture
def without_nft(tmp_path: Path, own_tables: None) -> Iterator[None]:  # noqa: ARG001 - its end needs the whole PATH
    """Set PATH to a directory with the programs of iptables only."""
    for family in Family:
        for variant in Variant:
            for verb in ("", "restore", "save"):
                name = program(family, variant, verb)
                if found := shutil.which(name):
                    (tmp_path / name).symlink_to(found)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", str(tmp_path))
        yield


def open_descriptors() -> set[str]:
    """Return the descriptors that this process has open."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names, not paths


@pytest.mark.usefixtures("without_nft")
def test_auto_without_nft() -> None:
    """On a node without nft, the mode auto chooses iptables."""
    config = Config(proxy_mode=ProxyMode.AUTO, iptables_variant=IptablesVariant.LEGACY)

    assert ProxyMode.IPTABLES == asyncio.run(open_backend(config)).mode


@pytest.mark.usefixtures("without_nft")
def test_nftables_without_nft() -> None:
    """On a node without nft, the mode nftables is refused with a message that names it, and no socket stays open."""
    before = open_descriptors()

    with pytest.raises(ConfigError, match=r"^--proxy-mode=nftables: IPv4: nft: No such file"):
        asyncio.run(open_backend(Config(proxy_mode=ProxyMode.NFTABLES)))

    assert before == open_descriptors()


def test_close() -> None:
    """After the mode is closed, no socket of its kernels stays open."""
    before = open_descriptors()
    mode = asyncio.run(opened_with_kernels())
    during = open_descriptors()
    mode.close()

    assert before < during
    assert before == open_descriptors()


async def opened_with_kernels() -> NftablesMode:
    """Return the mode with a kernel for each family, each of which looked for changes once."""
    mode = await NftablesMode.open(Config(proxy_mode=ProxyMode.NFTABLES))
    for family in mode.families:
        mode.kernel(family).changed_externally()
    return mode
