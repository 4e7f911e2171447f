"""Files that change while they are followed: which changes result, what is kept, and what is logged once."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from pyproxy.errors import SourceError
from pyproxy.linux import file_notifications
from pyproxy.linux.file_notifications import FileNotifications
from pyproxy.manifests.files import FileSource
from pyproxy.manifests.manifest import read_manifest
from pyproxy.model.address import parse_network
from pyproxy.model.change import Kind, ObjectChange, ProblemsChanged, Put, Removed, Replaced
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from tests.unit.manifests.test_files import endpoint_slice, service, service_cidr, write

POLL_SECONDS = 0.005
PATIENCE_SECONDS = 10.0
"""Time limit for what must happen."""


class Follower:
    """A source that is followed, with the names of its changes."""

    def __init__(self, changes: AsyncGenerator[ObjectChange, None]) -> None:
        self._changes = changes

    async def next(self) -> ObjectChange:
        """Return the next change; it must come."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await anext(self._changes)

    async def listed(self) -> dict[Kind, tuple[Any, ...]]:
        """Return the complete lists that come first."""
        lists = [await self.next() for _ in Kind]
        return {change.kind: change.objects for change in lists if isinstance(change, Replaced)}


@pytest.fixture(autouse=True)
def _long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only notifications end a wait, so that a missing one is found."""
    monkeypatch.setattr(file_notifications, "LONGEST_WAIT_SECONDS", 10 * PATIENCE_SECONDS)


def follow(
    path: Path, scenario: Callable[[Follower], Coroutine[Any, Any, None]], *, is_notified: bool = True
) -> FileSource:
    """Run a scenario with a source that looks soon after each notification, or polls often."""

    async def run() -> FileSource:
        with FileNotifications() as notifications:
            source = FileSource(path, POLL_SECONDS, notifications=notifications if is_notified else None)
            async with aclosing(source.changes()) as changes:
                await scenario(Follower(changes))
        return source

    return asyncio.run(run())


def named(name: str, ip: str = "10.96.0.1") -> Service:
    """Return the model of `service`."""
    return read_manifest("f", json.dumps(service(name, ip)).encode()).services[0].object


def sliced(name: str, *ips: str) -> EndpointSlice:
    """Return the model of `endpoint_slice`."""
    return read_manifest("f", json.dumps(endpoint_slice(name, *ips)).encode()).slices[0].object


def gone(name: str, kind: Kind = Kind.SERVICE) -> Removed:
    """Return the removal of an object of the namespace default."""
    return Removed(kind, NamespacedName("default", name))


@pytest.mark.parametrize("is_notified", [True, False])
def test_follow(tmp_path: Path, is_notified: bool) -> None:  # noqa: FBT001  # a case's
    """Complete lists come first, then only changes: slices before Services, and additions before removals."""
    write(tmp_path / "a.json", service("web"), service("same", "10.96.0.5"))

    async def scenario(follower: Follower) -> None:
        services = (named("web"), named("same", "10.96.0.5"))
        assert dict.fromkeys(Kind, ()) | {Kind.SERVICE: services} == await follower.listed()
        write(tmp_path / "b.json", service("new", "10.96.0.9"), endpoint_slice("web-1", "10.0.0.1"))
        assert Put(sliced("web-1", "10.0.0.1")) == await follower.next()
        assert Put(named("new", "10.96.0.9")) == await follower.next()
        write(tmp_path / "a.json", service("web", "10.96.0.2"), service("same", "10.96.0.5"))
        assert Put(named("web", "10.96.0.2")) == await follower.next()
        (tmp_path / "b.json").unlink()
        assert gone("new") == await follower.next()
        assert gone("web-1", Kind.ENDPOINT_SLICE) == await follower.next()

    follow(tmp_path, scenario, is_notified=is_notified)


def test_problems_are_reported_until_they_are_gone(tmp_path: Path) -> None:
    """What is wrong with an object is reported when it is read, and again when it is right."""
    reported: list[ProblemsChanged] = []
    write(tmp_path / "a.json", service("web", "no address"))

    async def run() -> None:
        source = FileSource(tmp_path, POLL_SECONDS, problems_changed=reported.append)
        async with aclosing(source.changes()) as changes:
            follower = Follower(changes)
            await follower.listed()
            write(tmp_path / "a.json", service("web"))
            assert Put(named("web")) == await follower.next()

    asyncio.run(run())

    [text] = reported[0].appeared
    assert "Service default/web: spec.clusterIP" in text
    assert [ProblemsChanged((text,)), ProblemsChanged((), (text,))] == reported


def test_follow_service_cidrs(tmp_path: Path) -> None:
    """ServiceCIDRs are followed like all other objects."""
    write(tmp_path / "a.json", service_cidr("kubernetes", "10.96.0.0/16"))

    async def scenario(follower: Follower) -> None:
        name = NamespacedName("", "kubernetes")
        assert (ServiceCidr(name, (parse_network("10.96.0.0/16"),)),) == (await follower.listed())[Kind.SERVICE_CIDR]
        write(tmp_path / "a.json", service_cidr("kubernetes", "10.97.0.0/16"))
        assert Put(ServiceCidr(name, (parse_network("10.97.0.0/16"),))) == await follower.next()
        (tmp_path / "a.json").unlink()
        assert Removed(Kind.SERVICE_CIDR, name) == await follower.next()

    follow(tmp_path, scenario)


def test_follow_one_file(tmp_path: Path) -> None:
    """A single file is followed, also across the moment in which an editor has moved it away."""
    path = tmp_path / "a.json"
    write(path, service("web"))

    async def scenario(follower: Follower) -> None:
        await follower.listed()
        path.rename(tmp_path / "backup")
        write(path, service("other"))
        assert Put(named("other")) == await follower.next()
        assert gone("web") == await follower.next()

    follow(path, scenario)


def test_follow_config_map(tmp_path: Path) -> None:
    """A ConfigMap volume changes by a symbolic link that is swapped beside the files."""
    for version, ip in (("1", "10.96.0.1"), ("2", "10.96.0.2")):
        (tmp_path / f"..{version}").mkdir()
        write(tmp_path / f"..{version}" / "a.json", service("web", ip))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.json").symlink_to("..data/a.json")

    async def scenario(follower: Follower) -> None:
        assert (named("web"),) == (await follower.listed())[Kind.SERVICE]
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        assert Put(named("web", "10.96.0.2")) == await follower.next()

    follow(tmp_path, scenario)


@pytest.mark.parametrize("broken", ["", "\n", "{", json.dumps(service("half"))[:-5], "a: [", "a: \xff"])
def test_last_good_objects_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str) -> None:
    """A good file that becomes broken or empty keeps its objects, is reported once, and is used again once it is good."""
    write(tmp_path / "a.json", service("web"))
    caplog.set_level(logging.WARNING)

    async def scenario(follower: Follower) -> None:
        await follower.listed()
        (tmp_path / "a.json").write_bytes(broken.encode("latin-1"))
        write(tmp_path / "b.json", service("other", "10.96.0.2"))
        assert Put(named("other", "10.96.0.2")) == await follower.next()
        write(tmp_path / "b.json", service("other", "10.96.0.3"))
        assert Put(named("other", "10.96.0.3")) == await follower.next()
        assert 1 == len(caplog.records)
        write(tmp_path / "a.json", service("web", "10.96.0.4"))
        assert Put(named("web", "10.96.0.4")) == await follower.next()

    assert set() == follow(tmp_path, scenario).problems


def test_directory_that_goes_away(tmp_path: Path) -> None:
    """A directory that is temporarily unavailable removes no objects; when it is back its content is used."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    write(folder / "a.json", service("web"), service("other", "10.96.0.2"))

    async def scenario(follower: Follower) -> None:
        await follower.listed()
        folder.rename(tmp_path / "away")
        write(tmp_path / "away" / "a.json", service("web", "10.96.0.3"), service("other", "10.96.0.2"))
        (tmp_path / "away").rename(folder)
        assert Put(named("web", "10.96.0.3")) == await follower.next()
        write(folder / "b.json", service("next", "10.96.0.4"))
        assert Put(named("next", "10.96.0.4")) == await follower.next()

    follow(folder, scenario)


class _Waiting(FileNotifications):
    """Notifications that say when they are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waiting = asyncio.Event()

    async def wait(self) -> None:
        self.is_waiting.set()
        await super().wait()


@pytest.mark.parametrize("how", ["in place", "renamed", "swapped", "moved away"])
def test_change_during_a_wait(tmp_path: Path, how: str) -> None:
    """A source that waits for notifications finds a file that is written, renamed or swapped by a link of any directory."""
    before, after = tmp_path / "1", tmp_path / "2"
    for folder, ip in ((before, "10.96.0.1"), (after, "10.96.0.2")):
        folder.mkdir()
        write(folder / "a.json", service("web", ip))
    (tmp_path / "current").symlink_to("1")

    def change() -> None:
        match how:
            case "in place":
                (before / "a.json").write_bytes((after / "a.json").read_bytes())
            case "renamed":
                (after / "a.json").rename(before / "a.json")
            case "swapped":
                (tmp_path / "new").symlink_to("2")
                (tmp_path / "new").rename(tmp_path / "current")
            case _:
                before.rename(tmp_path / "old")
                after.rename(before)

    async def run() -> None:
        with _Waiting() as notifications:
            source = FileSource(tmp_path / "current", POLL_SECONDS, notifications=notifications)
            async with aclosing(source.changes()) as changes:
                follower = Follower(changes)
                await follower.listed()
                found = asyncio.create_task(follower.next())
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await notifications.is_waiting.wait()
                change()
                assert Put(named("web", "10.96.0.2")) == await found

    asyncio.run(run())


def test_following_nothing(tmp_path: Path) -> None:
    """A path that does not exist at the beginning is an error."""

    async def scenario(follower: Follower) -> None:
        with pytest.raises(SourceError):
            await follower.listed()

    follow(tmp_path / "gone", scenario)


def test_pipe_is_read_once(tmp_path: Path) -> None:
    """A pipe gives complete lists and no further changes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def scenario(follower: Follower) -> None:
        script = f"open({str(pipe)!r}, 'w').write({json.dumps(service('web'))!r})"
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        assert (named("web"),) == (await follower.listed())[Kind.SERVICE]
        assert 0 == await writer.wait()

    follow(pipe, scenario)
