"""The API source with a real kube-apiserver: after any failure, the tracker equals the cluster."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from pyproxy.kubeapi.access import AccessSettings
from pyproxy.kubeapi.api import ApiSource, Store, Watched
from pyproxy.kubeapi.load_access import load_access
from pyproxy.kubeapi.reflector import PAGE_SIZE
from pyproxy.kubeapi.transport import Timing
from pyproxy.model.address import Network, parse_network
from pyproxy.model.change import Kind, ObjectChange, Replaced
from pyproxy.model.names import NamespacedName
from pyproxy.model.tracker import Tracker
from tests.unit.kubeapi.running import in_loop

from .controlplane import KUBE_PROXY_USER, SERVICE_CIDRS, ControlPlane
from .objects import NODE, SERVICES, Cluster
from .relay import LOOPBACK, Relay

PATIENCE_SECONDS = 30.0
QUICK = Timing(connect=1.0, answer=2.0, silence=1.0)


class Follower:
    """A tracker that follows a source, with a record of the lists."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.lists = 0
        """The number of complete lists of Services so far."""
        self._changed = asyncio.Event()

    def deliver(self, change: ObjectChange) -> None:
        """Process a change."""
        self.tracker.apply(change)
        self.lists += isinstance(change, Replaced) and change.kind is Kind.SERVICE
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for changes until a condition holds."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def synced(self) -> None:
        """Wait for a complete list of each kind."""
        await self.until(lambda: self.tracker.knows(*Kind))

    def has(self, *names: str) -> bool:
        """Return whether exactly these Services are known, apart from that of the API server."""
        expected = {NamespacedName("default", name) for name in ("kubernetes", *names)}
        return expected == self.tracker.services.keys()

    def ranges(self) -> set[Network]:
        """Return the known ranges of cluster IPs."""
        return set(self.tracker.take_service_cidrs() or ())

    def port(self, name: str) -> int:
        """Return the port of a Service."""
        return self.tracker.services[NamespacedName("default", name)].ports[0].port


class LogEntry(logging.Handler):
    """Waits for a text in the log of the source."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Check a log record."""
        if self._text in record.getMessage():
            self._heard.set()

    async def seen(self) -> None:
        """Wait for the text."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._heard.wait()

    def __enter__(self) -> Self:
        """Start checking log records."""
        logging.getLogger("pyproxy").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop checking log records."""
        logging.getLogger("pyproxy").removeHandler(self)


@asynccontextmanager
async def following(settings: AccessSettings, timing: Timing | None = None) -> AsyncIterator[Follower]:
    """Follow a cluster; entered when everything is known."""
    follower = Follower()
    store = Store(deliver=follower.deliver)
    wanted = asyncio.get_running_loop().create_future()
    wanted.set_result(True)
    watched = Watched(node_name=NODE, service_cidrs=wanted)
    source = ApiSource(partial(load_access, settings), watched, store, timing=timing, random=float)
    task = asyncio.create_task(source.run())
    try:
        await follower.synced()
        yield follower
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def through(control_plane: ControlPlane, *relays: Relay, **user: str) -> AccessSettings:
    """Return settings with one server for each relay."""
    urls = [f"https://{LOOPBACK}:{relay.listen()}" for relay in relays]
    kubeconfig = control_plane.kubeconfig_for(user or {"token": control_plane.static_token()}, urls[0])
    return AccessSettings(kubeconfig=str(kubeconfig), master=",".join(urls))


def change_all(cluster: Cluster) -> None:
    """Delete one Service, change one, and create one."""
    cluster.delete_service("goes")
    cluster.set_port("stays", 81)
    cluster.create_service("comes")


async def until_changed(follower: Follower) -> None:
    """Wait for the changes of `change_all`, and check that they arrived without a relist."""
    await follower.until(lambda: follower.has("stays", "comes"))
    assert (81, 1) == (follower.port("stays"), follower.lists)


@in_loop
async def test_objects_come_and_go(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """Services, slices and the Node arrive with their content, as do all their changes."""
    cluster.create_service("before")
    async with following(through(control_plane, relay)) as follower:
        assert follower.has("before")
        cluster.create_service("web")
        cluster.create_slice("web", "10.244.0.7")
        cluster.create_node()
        await follower.until(lambda: follower.has("before", "web") and follower.tracker.node is not None)
        cluster.set_port("web", 81)
        await follower.until(lambda: follower.port("web") == 81)
        cluster.delete_service("web")
        await follower.until(lambda: follower.has("before"))

        slices = list(follower.tracker.slices(NamespacedName("default", "web")))
        assert [bytes([10, 244, 0, 7])] == [endpoint.ip for item in slices for endpoint in item.endpoints]


@in_loop
async def test_ranges_of_cluster_ips(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """The default ServiceCIDR of the API server is known from the start, and later ones arrive."""
    default = set(map(parse_network, SERVICE_CIDRS))
    both = default | {parse_network("10.112.0.0/16")}
    async with following(through(control_plane, relay)) as follower:
        assert default == follower.ranges()
        cluster.create_service_cidr("more", "10.112.0.0/16")
        await follower.until(lambda: both == follower.ranges())
        cluster.delete_service_cidr("more")
        await follower.until(lambda: default == follower.ranges())


@in_loop
async def test_services_of_other_proxies(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """A headless Service never arrives; one that is assigned to another proxy is removed, and returns later."""
    cluster.create_service("headless", clusterIP="None")
    cluster.create_service("web")
    async with following(through(control_plane, relay)) as follower:
        assert follower.has("web")
        cluster.give_to("web", "other")
        cluster.create_service("marker")
        await follower.until(lambda: follower.has("marker"))
        cluster.give_to("web", None)
        await follower.until(lambda: follower.has("marker", "web"))


@in_loop
async def test_killed_connections(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """Watches resume after connection resets: nothing is lost, and nothing is listed again."""
    async with following(through(control_plane, relay)) as follower:
        for name in ("one", "two", "three"):
            relay.drop()
            cluster.create_service(name)
            await follower.until(lambda name=name: NamespacedName("default", name) in follower.tracker.services)  # type: ignore[misc]

        assert (1, True) == (follower.lists, follower.has("one", "two", "three"))


@in_loop
async def test_absence(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """While the API server is unreachable, all objects stay; changes made meanwhile arrive afterwards."""
    cluster.create_service("stays")
    cluster.create_service("goes")
    async with following(through(control_plane, relay)) as follower:
        relay.refuse()
        change_all(cluster)
        assert follower.has("stays", "goes")
        relay.resume()
        await until_changed(follower)


@in_loop
async def test_silence(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """While the network drops everything, all objects stay; changes made meanwhile arrive afterwards."""
    cluster.create_service("stays")
    cluster.create_service("goes")
    with LogEntry("API server lost") as loss:
        async with following(through(control_plane, relay), QUICK) as follower:
            relay.hold()
            change_all(cluster)
            await loss.seen()
            assert (True, 80) == (follower.has("stays", "goes"), follower.port("stays"))
            relay.resume()
            await until_changed(follower)


@in_loop
async def test_restart(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """Changes arrive after a restart of the API server."""
    cluster.create_service("stays")
    async with following(through(control_plane, relay)) as follower:
        control_plane.stop_apiserver()
        control_plane.start_apiserver()
        cluster.create_service("comes")
        await follower.until(lambda: follower.has("stays", "comes"))


@in_loop
async def test_compaction(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """After a compaction, a relist finds deleted objects."""
    cluster.create_service("stays")
    cluster.create_service("goes")
    async with following(through(control_plane, relay)) as follower:
        relay.refuse()
        cluster.delete_service("goes")
        cluster.create_service("comes")
        control_plane.compact()
        relay.resume()
        await follower.until(lambda: follower.has("stays", "comes"))

        assert 2 == follower.lists


@in_loop
async def test_server_that_stops_answering(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """A server that keeps its connections but no longer answers, as without power, is replaced by another server."""
    second = control_plane.new_relay()
    async with following(through(control_plane, relay, second), QUICK) as follower:
        relay.hold()
        cluster.create_service("comes")
        await follower.until(lambda: follower.has("comes"))

        assert 1 == follower.lists


def rotate(control_plane: ControlPlane, token: Path) -> None:
    """Replace the token in a file by that of another account, and invalidate the old one."""
    token.write_text(control_plane.create_token("second"))
    control_plane.kubectl("delete", "serviceaccount", "first")


async def outlast_rotation(
    settings: AccessSettings, token: Path, control_plane: ControlPlane, cluster: Cluster, relay: Relay
) -> None:
    """Check that new connections use a rotated token."""
    async with following(settings) as follower:
        rotate(control_plane, token)
        relay.drop()
        cluster.create_service("comes")
        await follower.until(lambda: follower.has("comes"))
        control_plane.kubectl("delete", "serviceaccount", "second")


@in_loop
async def test_rotated_token_file(control_plane: ControlPlane, cluster: Cluster, relay: Relay, tmp_path: Path) -> None:
    """A token file is read again, because its old token may be invalid when a watch ends."""
    token = tmp_path / "token"
    token.write_text(control_plane.create_token("first"))
    await outlast_rotation(through(control_plane, relay, tokenFile=str(token)), token, control_plane, cluster, relay)


@in_loop
async def test_token_that_is_rotated_late(
    control_plane: ControlPlane, cluster: Cluster, relay: Relay, tmp_path: Path
) -> None:
    """A rejected token is retried until there is a new one; until then all objects stay."""
    token = tmp_path / "token"
    token.write_text(control_plane.create_token("first"))
    settings = through(control_plane, relay, tokenFile=str(token))
    with LogEntry("401 Unauthorized") as refusal:
        async with following(settings) as follower:
            control_plane.kubectl("delete", "serviceaccount", "first")
            control_plane.stop_apiserver()  # it caches valid tokens for some seconds
            control_plane.start_apiserver()
            cluster.create_service("comes")
            await refusal.seen()
            assert follower.has()
            token.write_text(control_plane.static_token())
            await follower.until(lambda: follower.has("comes"))


@in_loop
async def test_service_account(
    control_plane: ControlPlane, cluster: Cluster, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod the token and CA of the service account suffice, and the token may be rotated."""
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text(control_plane.create_token("first"))
    ca.write_bytes(control_plane.authority.certificate.read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", LOOPBACK)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(relay.listen()))
    await outlast_rotation(AccessSettings(service_account=str(tmp_path)), token, control_plane, cluster, relay)


@in_loop
async def test_client_certificate(control_plane: ControlPlane, relay: Relay) -> None:
    """A client certificate works like a token."""
    issued = control_plane.client_certificate(KUBE_PROXY_USER)
    user = {"client-certificate": str(issued.certificate), "client-key": str(issued.key)}
    async with following(through(control_plane, relay, **user)) as follower:
        assert follower.has()


def test_older_server_that_checks_permissions(peers: None) -> None:  # noqa: ARG001 - fails without the programs
    """The built-in role of kube-proxy suffices, and lists are paged if the server does not support streaming lists."""
    names = [f"web-{number}" for number in range(PAGE_SIZE + 1)]
    with ControlPlane(authorization="RBAC", flags=["--feature-gates=WatchList=false"]) as older:
        for name in names:
            older.request("POST", SERVICES, {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
        asyncio.run(_follow_older(older, names))


async def _follow_older(older: ControlPlane, names: list[str]) -> None:
    async with following(through(older, older.new_relay())) as follower:
        assert follower.has(*names)
        assert set(map(parse_network, SERVICE_CIDRS)) == follower.ranges()
