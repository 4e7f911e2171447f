"""Finding the processes that listen on a port; an invisible process must not be reported as absent."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.packets.own_namespace import own_namespace

PORT = 10249
ASK = f"""
import json, socket
from pyproxy.linux.listening import who_listens
with socket.create_server(("127.0.0.2", {PORT})):
    print(json.dumps(who_listens({PORT})))
"""
"""The process that calls `who_listens` listens as well, and always sees itself."""


@pytest.fixture(params=["127.0.0.1", "::1"])
def _listener(request: pytest.FixtureRequest, needs_root: None) -> Iterator[None]:  # noqa: ARG001  # skips without root
    """Listen on the port in a network namespace, in the test's own process."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with own_namespace():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with socket.create_server((request.param, PORT), family=family):
            yield


@pytest.mark.usefixtures("_listener")
@pytest.mark.parametrize(
    ("wrapper", "is_seen"),
    [
        pytest.param([], True, id="root"),
        pytest.param(["setpriv", "--bounding-set=-all,+net_admin,+net_raw"], False, id="root with few capabilities"),
        pytest.param(["unshare", "--pid", "--fork", "--mount-proc"], False, id="other PID namespace"),
    ],
)
def test_who_is_seen(wrapper: list[str], is_seen: bool) -> None:  # noqa: FBT001  # a parameter
    """Root gets name and command line of all listeners; a process that cannot see all of them gets none."""
    told = subprocess.run([*wrapper, sys.executable, "-c", ASK], check=True, capture_output=True, text=True)
    commands = json.loads(told.stdout)

    assert (2 if is_seen else 0) == len(commands)
    assert is_seen == any("pytest" in command for command in commands)
