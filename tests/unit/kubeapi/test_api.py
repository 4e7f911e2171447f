"""The API source against a real HTTP server with scripted responses: requests, delivered changes, and log.

Not covered here: TLS, proxies and single answers (test_transport), credentials (test_credentials), and whether a real
API server plays along (tests/cluster).
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import Access, Server
from pyproxy.kubeapi.api import ApiSource, Availability, Store, Watched
from pyproxy.kubeapi.transport import Timing
from pyproxy.model.address import parse_network
from pyproxy.model.change import Kind, Object, Put, Removed, Replaced, Unserved
from pyproxy.model.names import NamespacedName
from pyproxy.model.service import NoPacketPath, Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService
from tests.fakes.apiserver import (
    NODES,
    PATIENCE_SECONDS,
    SERVICE_CIDRS,
    SERVICES,
    SLICES,
    ApiServer,
    Json,
    bookmark,
    end_of_list,
    event,
    listed,
    refused,
    service,
    service_cidr,
)
from tests.unit.kubeapi.running import Changes, access_to, in_loop, running, wanted

NAME = NamespacedName("default", "web")
WEB, OTHER = service("web", "5"), service("other", "6")
BAD = service("web", "8", ports="eighty")
KUBERNETES = ServiceCidr(NamespacedName("", "kubernetes"), (parse_network("10.96.0.0/16"),))
QUICK = Timing(connect=2.0, answer=2.0, silence=0.2)


@asynccontextmanager
async def watching(*lines: Json) -> AsyncIterator[tuple[ApiServer, Changes]]:
    """Run a source whose server begins with some lines about Services."""
    async with ApiServer() as server:
        server.say(SERVICES, server.stream(*lines, then_end=True))
        async with running(access_to(server.url)) as changes:
            yield server, changes


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the log of the source after the first line, which names the server."""
    first, *others = (record for record in caplog.records if record.name == "pyproxy.kubeapi.api")
    assert first.message.startswith("API server: http://127.0.0.1:")
    return others


@in_loop
async def test_what_is_asked() -> None:
    """Each resource is streamed with selectors that exclude objects without a packet path."""
    async with ApiServer() as server, running(access_to(server.url)):
        queries = [(await server.asked(path)).query for path in (SERVICES, SLICES, NODES, SERVICE_CIDRS)]

    common = {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "300",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    services = {"labelSelector": "!service.kubernetes.io/service-proxy-name", "fieldSelector": "spec.clusterIP!=None"}
    slices = {"labelSelector": "!service.kubernetes.io/headless"}
    assert [common | services, common | slices, common | {"fieldSelector": "metadata.name=node-1"}, common] == queries


@in_loop
async def test_stream_and_changes() -> None:
    """The initial events are one complete list; the events after them are delivered one by one."""
    gone = service("gone")
    lines = [event("ADDED", gone), event("ADDED", WEB), event("DELETED", gone), end_of_list("7")]
    lines += [event("ADDED", OTHER), event("MODIFIED", service("other", "9", clusterIP="None")), event("DELETED", WEB)]
    async with watching(*lines) as (_, changes):
        names = await changes.names()
        then = [await changes.next() for _ in range(3)]

    assert {"default/web"} == names
    assert isinstance(then[0], Put)
    assert NamespacedName("default", "other") == then[0].object.name
    headless = UnservedService(NamespacedName("default", "other"), NoPacketPath.HEADLESS)
    assert [Unserved(headless), Removed(Kind.SERVICE, NAME)] == then[1:]


@in_loop
async def test_empty_cluster() -> None:
    """A kind without objects is delivered as an empty list."""
    async with ApiServer() as server, running(access_to(server.url)) as changes:
        assert Replaced(Kind.NODE, ()) == await changes.next(Kind.NODE)
        assert Replaced(Kind.ENDPOINT_SLICE, ()) == await changes.next(Kind.ENDPOINT_SLICE)


@pytest.mark.parametrize(
    ("last", "expected"), [(event("ADDED", OTHER), "6"), (event("DELETED", OTHER), "6"), (bookmark("11"), "11")]
)
@in_loop
async def test_watch_is_resumed(last: Json, expected: str) -> None:
    """A watch that ended is resumed at the version of its last event or bookmark, without a new list."""
    async with watching(end_of_list("4"), last) as (server, _):
        await server.asked(SERVICES)
        resumed = (await server.asked(SERVICES)).query

    assert (expected, "1", None) == (resumed["resourceVersion"], resumed["watch"], resumed.get("sendInitialEvents"))


@pytest.mark.parametrize("status", [400, 422])
@in_loop
async def test_pages(status: int) -> None:
    """From a server that cannot stream lists they are requested in pages, and delivered as one complete list."""
    async with ApiServer() as server:
        server.say(SERVICES, refused(status), listed("9", WEB, more="token"), listed("9", OTHER), server.stream())
        async with running(access_to(server.url)) as changes:
            names = await changes.names()
            queries = [(await server.asked(SERVICES)).query for _ in range(4)]

    assert {"default/web", "default/other"} == names
    assert [None, "500", "500", None] == [query.get("limit") for query in queries]
    assert [None, None, "token", None] == [query.get("continue") for query in queries]
    assert "9" == queries[3]["resourceVersion"]


@in_loop
async def test_stream_without_initial_events() -> None:
    """From a server that treats a stream as a mere watch lists are requested in pages."""
    async with watching(event("ADDED", WEB), bookmark("3")) as (server, changes):
        server.say(SERVICES, listed("9", OTHER))

        assert {"default/other"} == await changes.names()


@in_loop
async def test_expired_page() -> None:
    """If the rest of a list has expired, the whole list is requested in one page, and the first pages are dropped."""
    async with ApiServer() as server:
        server.say(SERVICES, refused(400), listed("8", WEB, more="token"), refused(410), listed("9", OTHER))
        async with running(access_to(server.url)) as changes:
            names = await changes.names()
            queries = [(await server.asked(SERVICES)).query for _ in range(4)]

    assert {"default/other"} == names
    assert (None, None) == (queries[3].get("limit"), queries[3].get("continue"))


@pytest.mark.parametrize("in_stream", [True, False], ids=["event", "status"])
@in_loop
async def test_expired_watch(in_stream: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A resource version that the server has forgotten leads to a new complete list."""
    async with ApiServer() as server:
        expired = server.stream(event("ERROR", {"code": 410, "reason": "Expired"}), then_end=True)
        again = server.stream(event("ADDED", OTHER), end_of_list("9"))
        server.say(SERVICES, server.stream(event("ADDED", WEB), end_of_list("4"), then_end=True))
        server.say(SERVICES, expired if in_stream else refused(410), again)
        async with running(access_to(server.url)) as changes:
            names = [await changes.names(), await changes.names()]

    assert [{"default/web"}, {"default/other"}] == names


@in_loop
async def test_line_that_is_no_event(caplog: pytest.LogCaptureFixture) -> None:
    """A line that is not an event is logged, and followed by a new list."""
    async with watching(end_of_list("4"), {"kind": "Surprise"}) as (server, changes):
        server.say(SERVICES, listed("9", WEB))
        await changes.names()

        assert {"default/web"} == await changes.names()
    assert "a line of the watch is not an event" in caplog.text


@in_loop
async def test_deep_objects() -> None:
    """Objects in which fields that are not read are nested deeply are listed, changed and deleted like any other."""
    deep = service("deep")
    deep["metadata"]["managedFields"] = json.loads("[" * 900 + "]" * 900)
    text = json.dumps(event("ADDED", deep)).replace("[" * 900, "[" * 9000).replace("]" * 900, "]" * 9000)

    def lines(*kinds: str) -> list[bytes]:
        return [text.replace("ADDED", kind).encode() for kind in kinds]

    async with ApiServer() as server:
        server.say(SERVICES, server.stream(*lines("ADDED"), end_of_list("4"), *lines("MODIFIED", "DELETED")))
        async with running(access_to(server.url)) as changes:
            assert {"default/deep"} == await changes.names()
            put, removed = await changes.next(), await changes.next()

    assert isinstance(put, Put)
    assert Removed(Kind.SERVICE, NamespacedName("default", "deep")) == removed


@in_loop
async def test_large_object() -> None:
    """An object of ten megabytes is delivered like any other."""
    large = service("large")
    large["metadata"]["annotations"] = {"padding": "x" * (10 << 20)}
    async with watching(end_of_list("4"), event("ADDED", large), event("ADDED", WEB)) as (_, changes):
        await changes.names()
        puts = [await changes.next(), await changes.next()]

    assert ["default/large", "default/web"] == [str(put.object.name) for put in puts if isinstance(put, Put)]


@in_loop
async def test_silent_watch_is_resumed() -> None:
    """A watch without data for too long is repeated at the same version."""
    async with ApiServer() as server:
        server.say(SERVICES, server.stream(end_of_list("4")))
        async with running(access_to(server.url), timing=QUICK):
            versions = [(await server.asked(SERVICES)).query.get("resourceVersion") for _ in range(3)]

    assert [None, "4", "4"] == versions


@pytest.mark.parametrize("items", [[BAD, OTHER], [OTHER, BAD]])
@in_loop
async def test_bad_object_in_a_page(items: list[Json], caplog: pytest.LogCaptureFixture) -> None:
    """An object that cannot be decoded is reported with its field, and does not affect its page."""
    async with ApiServer() as server:
        server.say(SERVICES, refused(400), listed("9", *items))
        async with running(access_to(server.url)) as changes:
            assert {"default/other"} == await changes.names()
    assert "Service default/web: spec.ports: " in caplog.text


@in_loop
async def test_bad_object_keeps_its_last_good_version(caplog: pytest.LogCaptureFixture) -> None:
    """An object that becomes invalid is neither replaced nor removed, in a watch or a list; it is reported, and logged once."""
    kept: dict[NamespacedName, Object] = {}
    lines = [event("ADDED", WEB), end_of_list("4"), event("MODIFIED", BAD), event("ADDED", OTHER)]
    async with ApiServer() as server:
        server.say(SERVICES, server.stream(*lines, then_end=True), refused(410))
        server.say(SERVICES, server.stream(event("ADDED", BAD), end_of_list("9")))
        async with running(access_to(server.url), lambda _, name: kept.get(name)) as changes:
            first = await changes.next()
            assert isinstance(first, Replaced)
            kept.update({item.name: item for item in first.objects if isinstance(item, Service)})
            bad, other, again = [await changes.next() for _ in range(3)]

    assert isinstance(bad, Unserved)
    assert (NAME, None) == (bad.service.name, bad.service.kind)
    assert "spec.ports: " in bad.service.problem
    assert isinstance(other, Put)
    assert Replaced(Kind.SERVICE, first.objects, (bad.service,)) == again
    assert 1 == caplog.text.count("Service default/web: spec.ports: ")


@in_loop
async def test_problems_are_reported_until_they_are_gone() -> None:
    """A problem is reported once for a version, and again when the object is valid, has another problem, or is deleted."""
    worse, gone = service("web", "9", ports="ninety"), service("other", "10", ports=1)
    lines = [
        event("ADDED", BAD),
        end_of_list("4"),
        event("MODIFIED", worse),
        event("ADDED", gone),
        event("MODIFIED", WEB),
    ]
    async with watching(*lines, event("DELETED", gone), event("ADDED", service("last"))) as (_, changes):
        while not (isinstance(change := await changes.next(), Put) and str(change.object.name) == "default/last"):
            pass

    shown = [(len(each.appeared), len(each.gone)) for each in changes.problems]
    assert [(1, 0), (0, 1), (1, 0), (1, 0), (0, 1), (0, 1)] == shown
    assert {text for each in changes.problems for text in each.appeared} == {
        text for each in changes.problems for text in each.gone
    }
    assert changes.problems[0].appeared[0].startswith("Service default/web: spec.ports: ")


@in_loop
async def test_object_that_is_partly_bad(caplog: pytest.LogCaptureFixture) -> None:
    """An object with an invalid field is delivered without it, and the field is reported."""
    async with watching(event("ADDED", service("web", externalIPs=["10.0.0.300"])), end_of_list("4")) as (_, changes):
        assert {"default/web"} == await changes.names()
    assert "Service default/web: spec.externalIPs[0]: " in caplog.text


@in_loop
async def test_field_selector_unknown_to_the_server() -> None:
    """From an older server that cannot select Services by cluster IP all are requested; headless ones are not delivered."""
    unknown = refused(400, "field label not supported: spec.clusterIP")
    headless = service("headless", clusterIP="None", clusterIPs=["None"])
    async with ApiServer() as server:
        server.say(SERVICES, unknown, unknown, listed("9", WEB, headless))
        async with running(access_to(server.url)) as changes:
            names = await changes.names()
            queries = [(await server.asked(SERVICES)).query for _ in range(3)]

    assert {"default/web"} == names
    assert [True, True, False] == ["fieldSelector" in query for query in queries]


@in_loop
async def test_missing_permission(caplog: pytest.LogCaptureFixture) -> None:
    """A 403 is logged once with the missing rule of a role, and the resource is retried until it is available."""
    async with ApiServer() as server:
        server.say(SLICES, *[refused(403, "endpointslices is forbidden")] * 2)
        async with running(access_to(server.url)) as changes:
            await changes.next(Kind.ENDPOINT_SLICE)
    rule = 'apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"]'
    assert 1 == caplog.text.count(rule)


@pytest.mark.parametrize(
    ("status", "level", "more"),
    [
        (404, "INFO", ""),
        (403, "WARNING", '; it needs a role with apiGroups: ["networking.k8s.io"], resources: ["servicecidrs"]'),
    ],
)
@in_loop
async def test_server_without_service_cidrs(
    status: int, level: str, more: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server without ServiceCIDRs, or that forbids them, is not lost: there are no ranges until it has some."""
    caplog.set_level(logging.INFO)
    async with ApiServer() as server:
        server.say(SERVICE_CIDRS, *[refused(status)] * 2, listed("7", service_cidr("10.96.0.0/16")))
        async with running(access_to(server.url)) as changes:
            absent, there = [await changes.next(Kind.SERVICE_CIDR) for _ in range(2)]

    assert [Replaced(Kind.SERVICE_CIDR, ()), Replaced(Kind.SERVICE_CIDR, (KUBERNETES,))] == [absent, there]
    [record] = logged(caplog)
    text = f"unavailable; pyproxy works without it and will retry: {SERVICE_CIDRS}: {status} no{more}"
    assert (level, text) == (record.levelname, record.message[: len(text)])


@in_loop
async def test_service_cidrs_that_the_server_loses(caplog: pytest.LogCaptureFixture) -> None:
    """If the server no longer has ServiceCIDRs, for example an older one in its place, known ranges are removed."""
    caplog.set_level(logging.INFO)
    async with ApiServer() as server:
        known = [event("ADDED", service_cidr("10.96.0.0/16")), end_of_list("4")]
        server.say(SERVICE_CIDRS, server.stream(*known, then_end=True), refused(503), *[refused(404)] * 2)
        async with running(access_to(server.url)) as changes:
            before, after = [await changes.next(Kind.SERVICE_CIDR) for _ in range(2)]

    assert [Replaced(Kind.SERVICE_CIDR, (KUBERNETES,)), Replaced(Kind.SERVICE_CIDR, ())] == [before, after]
    messages = [record.message for record in logged(caplog)]
    beginnings = ("API server lost, ", "API server is back ", "unavailable; ")
    assert [True] * 3 == [message.startswith(begin) for message, begin in zip(messages, beginnings, strict=True)]


@in_loop
async def test_other_kinds_do_not_wait_for_service_cidrs() -> None:
    """Other objects are delivered before it is known whether ServiceCIDRs are needed, and while they are not listed."""
    wanted = asyncio.get_running_loop().create_future()
    async with ApiServer() as server:
        server.say(SERVICE_CIDRS, server.send_nothing)
        async with running(access_to(server.url), service_cidrs=wanted) as changes:
            assert Replaced(Kind.SERVICE, ()) == await changes.next()
            wanted.set_result(True)
            await server.asked(SERVICE_CIDRS)
            assert Replaced(Kind.ENDPOINT_SLICE, ()) == await changes.next(Kind.ENDPOINT_SLICE)
            assert Replaced(Kind.NODE, ()) == await changes.next(Kind.NODE)


@pytest.mark.parametrize("are_wanted", [True, False])
@in_loop
async def test_service_cidrs_are_watched_where_they_are_wanted(are_wanted: bool) -> None:  # noqa: FBT001  # pytest calls it
    """A mode that does not use ServiceCIDRs does not watch them."""
    wanted = asyncio.get_running_loop().create_future()
    wanted.set_result(are_wanted)
    async with ApiServer() as server, running(access_to(server.url), service_cidrs=wanted) as changes:
        await changes.next()
        watched = {task.get_name() for task in asyncio.all_tasks()}

    assert (True, are_wanted) == (f"watch {SERVICES}" in watched, f"watch {SERVICE_CIDRS}" in watched)


@in_loop
async def test_rotated_token(tmp_path: Path) -> None:
    """Each request reads the token file, so that the current token is used."""
    token = tmp_path / "token"
    token.write_text("first\n")
    async with ApiServer() as server:
        server.say(SERVICES, server.stream(end_of_list("4"), then_end=True))
        async with running(access_to(server.url, token_file=str(token)), timing=QUICK):
            first = await server.asked(SERVICES)
            token.write_text("second")
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (second := await server.asked(SERVICES)).authorization == first.authorization:
                    pass

    assert ("Bearer first", "Bearer second") == (first.authorization, second.authorization)


@in_loop
async def test_unauthorized() -> None:
    """After a 401 the credentials are found again, once for all requests that were refused."""
    found: list[str] = []

    async def find_access() -> Access:
        found.append(f"Bearer {len(found)}")
        return Access(servers=(Server(server.url),), authorization=found[-1])

    async with ApiServer() as server:
        for path in (SERVICES, SLICES, NODES):
            server.say(path, refused(401, "Unauthorized"))
        async with running(find_access) as changes:
            for kind in Kind:
                await changes.next(kind)
            tokens = {(await server.asked(path)).authorization for path in (SERVICES, SLICES, NODES) * 2}

    assert ["Bearer 0", "Bearer 1"] == found
    assert {"Bearer 0", "Bearer 1"} == tokens


@in_loop
async def test_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The loss and the return of a server are one line each, regardless of the number of retries."""
    caplog.set_level(logging.INFO)
    async with ApiServer() as server:
        for path in (SERVICES, SLICES, NODES, SERVICE_CIDRS):
            server.say(path, *[refused(503, "etcd is not ready")] * 3)
        async with running(access_to(server.url)) as changes:
            for kind in Kind:
                await changes.next(kind)

    messages = [record.message for record in logged(caplog)]
    assert "API server lost, the last good state is kept: 503 etcd is not ready" == messages[0]
    assert re.fullmatch(r"API server is back after \d+\.\d s: http://127\.0\.0\.1:\d+", messages[1])
    assert 2 == len(messages)


def test_reasons_that_are_never_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Responses that differ each time, for example by a time, are logged only up to a limit."""
    caplog.set_level(logging.INFO)
    reasons: list[str] = []
    availability = Availability(lambda _, reason: reasons.append(reason))
    for second in range(1000):
        availability.lose(Kind.SERVICE, f"503 sorry, it is {second} now", second)

    assert (1000, 20) == (len(reasons), len(caplog.records))


async def refused_once() -> tuple[ApiServer, Changes]:
    """Return a server that refused Services once, and what was reported until all of it was known."""
    async with ApiServer() as server:
        server.say(SERVICES, refused(503))
        async with running(access_to(server.url)) as changes:
            for kind in Kind:
                await changes.next(kind)
    return server, changes


@in_loop
async def test_who_is_watched_is_told() -> None:
    """A kind that is refused is reported as unavailable until it is watched; other kinds are not affected."""
    _, changes = await refused_once()

    others = {kind: [""] for kind in Kind if kind is not Kind.SERVICE}
    assert {Kind.SERVICE: ["503 no", ""]} | others == changes.watched


@in_loop
async def test_requests_are_told() -> None:
    """Each request is recorded with its server and the status of its response; a watch has no duration."""
    server, changes = await refused_once()

    assert {("GET", server.url.removeprefix("http://"))} == {(each.method, each.host) for each in changes.exchanges}
    assert ["200"] * len(Kind) + ["503"] == sorted(each.code for each in changes.exchanges)
    assert {None} == {each.seconds for each in changes.exchanges}


@in_loop
async def test_several_servers() -> None:
    """If a server cannot be reached the next one is used, and stays in use."""
    async with ApiServer() as gone:
        url = gone.url
    async with ApiServer() as server, running(access_to(url, server.url)) as changes:
        for kind in Kind:
            assert Replaced(kind, ()) == await changes.next(kind)


@in_loop
async def test_credentials_that_come_late() -> None:
    """An exec plugin that fails is retried."""
    failures = iter([SourceError("exec plugin gave no credentials")] * 2)

    async def find_access() -> Access:
        for error in failures:
            raise error
        return Access(servers=(Server(server.url),))

    async with ApiServer() as server, running(find_access) as changes:
        assert Replaced(Kind.NODE, ()) == await changes.next(Kind.NODE)


@in_loop
async def test_impossible_configuration() -> None:
    """A configuration that cannot work ends the source."""

    async def find_access() -> Access:
        message = "kubeconfig /nowhere: no such file"
        raise ConfigError(message)

    with pytest.raises(ConfigError, match="kubeconfig /nowhere"):
        await ApiSource(
            find_access,
            Watched(node_name="node-1", service_cidrs=asyncio.ensure_future(wanted())),
            Store(deliver=Changes().deliver),
        ).run()
