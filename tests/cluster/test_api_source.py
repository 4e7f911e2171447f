"""The API source against the real kube-apiserver: whatever happens to it, in the end the tracker equals the cluster."""

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
    """A tracker that follows a source, and how it got there."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.lists = 0
        """Complete lists of Services that have arrived."""
        self._changed = asyncio.Event()

    def deliver(self, change: ObjectChange) -> None:
        """Take a change."""
        self.tracker.apply(change)
        self.lists += isinstance(change, Replaced) and change.kind is Kind.SERVICE
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for changes that bring a condition about."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def synced(self) -> None:
        """Wait for a complete list of each kind."""
        await self.until(lambda: self.tracker.knows(*Kind))

    def has(self, *names: str) -> bool:
        """Tell whether exactly these Services are known, beside the API server's own."""
        expected = {NamespacedName("default", name) for name in ("kubernetes", *names)}
        return expected == self.tracker.services.keys()

    def ranges(self) -> set[Network]:
        """Return where cluster IPs come from, for all that is known."""
        return set(self.tracker.take_service_cidrs() or ())

    def port(self, name: str) -> int:
        """Return the port of a Service."""
        return self.tracker.services[NamespacedName("default", name)].ports[0].port


class LogEntry(logging.Handler):
    """Hears a text in the log of the source."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Listen."""
        if self._text in record.getMessage():
            self._heard.set()

    async def heard(self) -> None:
        """Wait for the text."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._heard.wait()

    def __enter__(self) -> Self:
        """Begin to listen."""
        logging.getLogger("pyproxy").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        logging.getLogger("pyproxy").removeHandler(self)


@asynccontextmanager
async def following(settings: AccessSettings, timing: Timing | None = None) -> AsyncIterator[Follower]:
    """Follow a cluster, from a state in which all of it is known."""
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
    """Return settings that lead through relays, one server each."""
    urls = [f"https://{LOOPBACK}:{relay.listen()}" for relay in relays]
    kubeconfig = control_plane.kubeconfig_for(user or {"token": control_plane.static_token()}, urls[0])
    return AccessSettings(kubeconfig=str(kubeconfig), master=",".join(urls))


def turn_over(cluster: Cluster) -> None:
    """Have one Service go, one change, and one come."""
    cluster.delete_service("goes")
    cluster.set_port("stays", 81)
    cluster.create_service("comes")


async def until_turned_over(follower: Follower) -> None:
    """Wait for what `turn_over` did, and see that it came without another list."""
    await follower.until(lambda: follower.has("stays", "comes"))
    assert (81, 1) == (follower.port("stays"), follower.lists)


@in_loop
async def test_objects_come_and_go(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """Services, slices and the Node arrive with what they say, and each change of them follows."""
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
    """The ServiceCIDR that every API server makes by itself is known from the start, and others follow."""
    default = set(map(parse_network, SERVICE_CIDRS))
    both = default | {parse_network("10.112.0.0/16")}
    async with following(through(control_plane, relay)) as follower:
        assert default == follower.ranges()
        cluster.create_service_cidr("more", "10.112.0.0/16")
        await follower.until(lambda: both == follower.ranges())
        cluster.delete_service_cidr("more")
        await follower.until(lambda: default == follower.ranges())


@in_loop
async def test_what_is_not_ours(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """A headless Service never arrives; one that is given to another proxy goes, and comes back."""
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
    """Watches whose connections are reset go on where they were: nothing is lost, nothing is listed again."""
    async with following(through(control_plane, relay)) as follower:
        for name in ("one", "two", "three"):
            relay.drop()
            cluster.create_service(name)
            await follower.until(lambda name=name: NamespacedName("default", name) in follower.tracker.services)  # type: ignore[misc]

        assert (1, True) == (follower.lists, follower.has("one", "two", "three"))


@in_loop
async def test_absence(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """What happened while the API server could not be reached is caught up with, and until then all stays."""
    cluster.create_service("stays")
    cluster.create_service("goes")
    async with following(through(control_plane, relay)) as follower:
        relay.refuse()
        turn_over(cluster)
        assert follower.has("stays", "goes")
        relay.resume()
        await until_turned_over(follower)


@in_loop
async def test_silence(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """A network that swallows everything for a while: all stays, and is caught up with when it is over."""
    cluster.create_service("stays")
    cluster.create_service("goes")
    with LogEntry("API server lost") as loss:
        async with following(through(control_plane, relay), QUICK) as follower:
            relay.hold()
            turn_over(cluster)
            await loss.heard()
            assert (True, 80) == (follower.has("stays", "goes"), follower.port("stays"))
            relay.resume()
            await until_turned_over(follower)


@in_loop
async def test_restart(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """A restarted API server is followed on."""
    cluster.create_service("stays")
    async with following(through(control_plane, relay)) as follower:
        control_plane.stop_apiserver()
        control_plane.start_apiserver()
        cluster.create_service("comes")
        await follower.until(lambda: follower.has("stays", "comes"))


@in_loop
async def test_compaction(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """Where the API server has forgotten what happened a new list says what is gone."""
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
async def test_server_that_falls_silent(control_plane: ControlPlane, cluster: Cluster, relay: Relay) -> None:
    """A server that keeps its connections and says nothing any more, like one without power, gives way to another."""
    second = control_plane.new_relay()
    async with following(through(control_plane, relay, second), QUICK) as follower:
        relay.hold()
        cluster.create_service("comes")
        await follower.until(lambda: follower.has("comes"))

        assert 1 == follower.lists


def rotate(control_plane: ControlPlane, token: Path) -> None:
    """Replace the token in a file by that of another account, and make the old one worth nothing."""
    token.write_text(control_plane.create_token("second"))
    control_plane.kubectl("delete", "serviceaccount", "first")


async def outlast_rotation(
    settings: AccessSettings, token: Path, control_plane: ControlPlane, cluster: Cluster, relay: Relay
) -> None:
    """Go on, with new connections, when the token in a file is another."""
    async with following(settings) as follower:
        rotate(control_plane, token)
        relay.drop()
        cluster.create_service("comes")
        await follower.until(lambda: follower.has("comes"))
        control_plane.kubectl("delete", "serviceaccount", "second")


@in_loop
async def test_rotated_token_file(control_plane: ControlPlane, cluster: Cluster, relay: Relay, tmp_path: Path) -> None:
    """A token file is read again: its old token may be worth nothing by the time that a watch ends."""
    token = tmp_path / "token"
    token.write_text(control_plane.create_token("first"))
    await outlast_rotation(through(control_plane, relay, tokenFile=str(token)), token, control_plane, cluster, relay)


@in_loop
async def test_token_that_is_rotated_late(
    control_plane: ControlPlane, cluster: Cluster, relay: Relay, tmp_path: Path
) -> None:
    """A token that the server does not take any more is tried until there is another one; the state stays so long."""
    token = tmp_path / "token"
    token.write_text(control_plane.create_token("first"))
    settings = through(control_plane, relay, tokenFile=str(token))
    with LogEntry("401 Unauthorized") as refusal:
        async with following(settings) as follower:
            control_plane.kubectl("delete", "serviceaccount", "first")
            control_plane.stop_apiserver()  # it remembers for seconds that a token is good
            control_plane.start_apiserver()
            cluster.create_service("comes")
            await refusal.heard()
            assert follower.has()
            token.write_text(control_plane.static_token())
            await follower.until(lambda: follower.has("comes"))


@in_loop
async def test_service_account(
    control_plane: ControlPlane, cluster: Cluster, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod the service account's token and CA are all that is needed, and its token too may be rotated."""
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text(control_plane.create_token("first"))
    ca.write_bytes(control_plane.authority.certificate.read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", LOOPBACK)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(relay.listen()))
    await outlast_rotation(AccessSettings(service_account=str(tmp_path)), token, control_plane, cluster, relay)


@in_loop
async def test_client_certificate(control_plane: ControlPlane, relay: Relay) -> None:
    """A client certificate is as good as a token."""
    issued = control_plane.client_certificate(KUBE_PROXY_USER)
    user = {"client-certificate": str(issued.certificate), "client-key": str(issued.key)}
    async with following(through(control_plane, relay, **user)) as follower:
        assert follower.has()


def test_older_server_that_checks_permissions(peers: None) -> None:  # noqa: ARG001 - it decides whether to skip
    """The built-in role of proxies is enough, and a server that cannot stream lists is listed in pages."""
    names = [f"web-{number}" for number in range(PAGE_SIZE + 1)]
    with ControlPlane(authorization="RBAC", flags=["--feature-gates=WatchList=false"]) as older:
        for name in names:
            older.request("POST", SERVICES, {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
        asyncio.run(_follow_older(older, names))


async def _follow_older(older: ControlPlane, names: list[str]) -> None:
    async with following(through(older, older.new_relay())) as follower:
        assert follower.has(*names)
        assert set(map(parse_network, SERVICE_CIDRS)) == follower.ranges()
