"""Whether configuration files still say the same: real files, as editors and ConfigMap volumes change them."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyproxy.agent.config_watch import changed_file, texts_of

QUICK_SECONDS = 0.005
PATIENCE_SECONDS = 10.0
LOOKS = 20
"""So many looks say that nothing is found."""


class Volume:
    """A ConfigMap volume: files are links through ``..data``, which is swapped as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._updates = 0
        self.update(mode="iptables", other="1")
        for name in ("config.conf", "kubeconfig.conf"):
            (folder / name).symlink_to(Path("..data", name))

    def update(self, *, mode: str, other: str) -> None:
        """Put new contents in place, as the kubelet does (``pkg/volume/util/atomic_writer.go``)."""
        self._updates += 1
        data = self.folder / f"..{self._updates}"
        data.mkdir()
        (data / "config.conf").write_text(f"mode: {mode}")
        (data / "kubeconfig.conf").write_text(other)
        new = self.folder / "..data_tmp"
        new.symlink_to(data.name)
        new.rename(self.folder / "..data")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """Give a volume with two files."""
    return Volume(tmp_path)


async def found(path: Path, *changes: Callable[[], object]) -> str:
    """Return which file is found changed after changes that were made while it was watched; nothing if none is."""
    watching = asyncio.create_task(changed_file(texts_of(str(path)), QUICK_SECONDS))
    for change in changes:
        for _ in range(LOOKS):
            await asyncio.sleep(QUICK_SECONDS)
        change()
    done, _ = await asyncio.wait((watching,), timeout=LOOKS * QUICK_SECONDS)
    watching.cancel()
    return watching.result() if done else ""


async def until_found(path: Path, change: Callable[[], object]) -> str:
    """Return which file is found changed after a change, which must be found."""
    texts = texts_of(str(path))
    watching = asyncio.create_task(changed_file(texts, QUICK_SECONDS))
    await asyncio.sleep(QUICK_SECONDS)
    change()
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await watching


def test_swap_of_a_volume(volume: Volume) -> None:
    """New contents behind ``..data`` are a change of the file, whose own link stays as it is."""
    path = volume.folder / "config.conf"

    assert str(path) == asyncio.run(until_found(path, lambda: volume.update(mode="nftables", other="1")))


def test_swap_for_another_file(volume: Volume) -> None:
    """A volume that is swapped because another file changed leaves this file unchanged."""
    path = volume.folder / "config.conf"

    assert "" == asyncio.run(found(path, lambda: volume.update(mode="iptables", other="2")))


@pytest.mark.parametrize("how", ["in place", "renamed"])
def test_edit(tmp_path: Path, how: str) -> None:
    """A rewritten file is detected, whether it was written in place or renamed."""
    path, new = tmp_path / "config.conf", tmp_path / "new"
    path.write_text("a: 1")

    def change() -> None:
        (new if how == "renamed" else path).write_text("a: 2")
        if how == "renamed":
            new.rename(path)

    assert str(path) == asyncio.run(until_found(path, change))


def test_what_is_no_change(tmp_path: Path) -> None:
    """A touch, the same content again, and a file that is gone for a while are none."""
    path, aside = tmp_path / "config.conf", tmp_path / "aside"
    path.write_text("a: 1")
    changes = (
        lambda: os.utime(path),
        lambda: path.write_text("a: 1"),
        lambda: path.rename(aside),
        lambda: aside.rename(path),
    )

    assert "" == asyncio.run(found(path, *changes))


def test_change_between_reading_and_watching(tmp_path: Path) -> None:
    """What changed after it was read and before it was watched is found, too."""
    path = tmp_path / "config.conf"
    path.write_text("a: 2")

    assert str(path) == asyncio.run(
        asyncio.wait_for(changed_file({str(path): "a: 1"}, QUICK_SECONDS), PATIENCE_SECONDS)
    )


def test_a_pipe_is_left_alone(tmp_path: Path) -> None:
    """A configuration that comes through a pipe, as ``<(…)`` of a shell, is neither read again nor waited for."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    assert {} == texts_of(str(path))
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(changed_file({str(path): "a: 1"}, QUICK_SECONDS), LOOKS * QUICK_SECONDS))


def test_no_file_is_watched_for_ever() -> None:
    """Without files nothing ever changes; a file that cannot be read has no text, and its reader reports the error."""
    assert ({}, {}) == (texts_of(""), texts_of("/nowhere/at/all"))
