"""``/statusz`` of an agent in each mode: while it works, and after a restart without an API server."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from pyproxy.serve.agent_status import AgentStatus
from tests.lab.waiting import wait_until

from .cluster import FLAGS, PYPROXY
from .modes import Mode
from .objects import node, port, service, slices
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

SERVER = "http://127.0.0.1:10249"


@contextmanager
def agent(folder: Path, mode: Mode, source: str) -> Iterator[None]:
    """Run an agent that serves the page and logs JSON."""
    own = ("--hostname-override=node1", f"--control-socket={folder / 'control'}", "--logging-format=json", source)
    command = [PYPROXY, "run", *mode.flags, *FLAGS, *own, "--metrics-bind-address=127.0.0.1:10249"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=os.environ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


def get(path: str, accept: str = "*/*") -> str:
    """Return a page in a form; nothing if the agent does not answer yet."""
    request = urllib.request.Request(SERVER + path, headers={"Accept": accept})  # noqa: S310  # its scheme is http
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  # see above
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def status(query: str = "") -> AgentStatus:
    """Return the status."""
    return msgspec.json.decode(get(f"/statusz{query}", "application/json"), type=AgentStatus)


def write(folder: Path, *objects: object) -> None:
    """Replace the objects of the agent."""
    path = folder / "new"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    path.rename(folder / "objects.json")


def test_the_life_of_a_node(tmp_path: Path, mode: Mode) -> None:
    """The status names node, mode and problems; has the Services and changes; and after a restart what the kernel has."""
    run("ip", "link", "set", "lo", "up")
    web, typo = service("web", 1, port(80)), service("typo", 2, port(80))
    typo["spec"]["ports"][0]["port"] = "eighty"
    write(tmp_path, node("node1"), web, *slices(web, "pod1-1"), typo)
    with agent(tmp_path, mode, f"--manifests={tmp_path / 'objects.json'}"):
        wait_until(lambda: get("/metrics").count("\nkubeproxy_sync_proxy_rules_last_timestamp_seconds{") == 2, "a sync")
        wait_until(lambda: status().doctor.time is not None, "the checks of doctor")
        found = status("?service=WEB")
        assert mode.flags[0] == f"--proxy-mode={found.mode}"
        assert found.variant in mode.name
        assert found.node.addresses
        assert "1 problem of input objects; last good versions, if any, are in use" in found.problems
        assert "spec.ports[0].port" in found.invalid[0]
        assert ({"default/web"}, 2, 1, {"ok"}) == (
            {each.service for each in found.services.items},
            found.services.total,
            found.services.matches,
            {each.state for each in found.services.items},
        )
        assert "does not work: spec.ports[0].port" in " ".join(each.text for each in found.doctor.findings)
        assert {"Service port" in each.text for each in found.changes} == {True}

        write(tmp_path, node("node1"), web, *slices(web, "pod1-1", "pod2-1"))
        wait_until(lambda: status().changes[0].subject == "default/web (TCP)", "a change")
        assert "problem of input objects" not in get("/statusz")
        assert "<!DOCTYPE html>" in get("/statusz", "text/html")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    synced = [line for line in lines if "sync done in" in line["msg"]]
    assert {"IPv4", "IPv6"} == {line["family"] for line in synced}
    assert all(line["duration_ms"] > 0 and line["entries"] >= 0 for line in synced)
    assert {"default/typo"} == {line["service"] for line in lines if "spec.ports[0].port" in line["msg"]}

    with agent(tmp_path, mode, "--master=http://127.0.0.1:1"):
        wait_until(lambda: "\npyproxy_watch_up{" in get("/metrics"), "a lost API server")
        found = status()
    assert found.earlier_rules is not None
    assert (1, 0) == (found.earlier_rules.services, found.services.total)
    assert "the kernel has those of an earlier run for 1 Service, last known to be up to date" in found.problems[0]
    assert 0 <= (found.earlier_rules.current_seconds or -1) < 300
    assert {"Connection refused"} == {watch.reason.rpartition(": ")[2] for watch in found.watches}
