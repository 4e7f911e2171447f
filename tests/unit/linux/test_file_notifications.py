"""Notifications of changes in directories, by the kernel of this machine."""

import asyncio
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from pyproxy.linux import file_notifications
from pyproxy.linux.file_notifications import FileNotifications

PATIENCE_SECONDS = 10.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Provide a directory with a file."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "file").write_text("a")
    return made


@pytest.fixture(autouse=True)
def _long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only notifications end a wait."""
    monkeypatch.setattr(file_notifications, "LONGEST_WAIT_SECONDS", 10 * PATIENCE_SECONDS)


def recreate(folder: Path) -> None:
    """Replace a directory by a new one of the same name."""
    folder.rename(folder.with_name("old"))
    folder.mkdir()


@pytest.mark.parametrize("is_early", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "new").write_text(""),
        lambda folder: (folder / "file").write_text("b"),
        lambda folder: (folder / "file").chmod(0o600),
        lambda folder: (folder / "file").unlink(),
        lambda folder: (folder.parent / "other").rename(folder / "file"),
        recreate,
    ],
    ids=["create", "write", "chmod", "delete", "rename", "recreate"],
)
def test_changes(folder: Path, change: Callable[[Path], object], is_early: bool) -> None:  # noqa: FBT001  # a case's
    """A change in a covered directory, or of the directory itself, ends a wait, whether it is made before or during it."""
    (folder.parent / "other").write_text("b")

    async def scenario() -> None:
        with FileNotifications() as notifications:
            assert [False, True] == [notifications.cover([str(folder)]) for _ in range(2)]
            if is_early:
                change(folder)
            waiting = asyncio.create_task(notifications.wait())
            await asyncio.sleep(0)
            if not is_early:
                change(folder)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await waiting

    asyncio.run(scenario())


def test_directories_that_are_replaced(folder: Path) -> None:
    """A directory that has been replaced, or is new among those to cover, is not yet covered when it is named first."""
    one, other = str(folder), str(folder.parent)
    with FileNotifications() as notifications:
        found = [notifications.cover(paths) for paths in ([one], [one], [one, other], [other, one])]
        recreate(folder)
        found += [notifications.cover([one, other]) for _ in range(2)]

    assert [False, True, False, True, False, True] == found


def test_directories_that_cannot_be_covered(folder: Path) -> None:
    """A directory that does not exist, and one of a file system that is not known to be local, need polling."""
    with FileNotifications() as notifications:
        for path in (folder / "nosuch", Path("/proc/self")):
            assert [False, False] == [notifications.cover([str(folder), str(path)]) for _ in range(2)]


def test_end_of_a_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait without a notification ends after some time."""
    monkeypatch.setattr(file_notifications, "LONGEST_WAIT_SECONDS", 0.01)

    async def scenario() -> None:
        with FileNotifications() as notifications:
            notifications.cover([str(folder)])
            async with asyncio.timeout(PATIENCE_SECONDS):
                await notifications.wait()

    asyncio.run(scenario())


def test_without_inotify(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the kernel gives no instance, nothing is covered, and the log says so."""
    caplog.set_level("INFO")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with FileNotifications() as notifications:
            assert [False, False] == [notifications.cover([str(folder)]) for _ in range(2)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert ["inotify is not available, files are polled instead: Too many open files"] == caplog.messages


def test_descriptors_are_closed() -> None:
    """The end closes the descriptor."""

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = descriptors()
    with FileNotifications():
        assert before + 1 == descriptors()

    assert before == descriptors()
