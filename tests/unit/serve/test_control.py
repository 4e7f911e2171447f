"""The control socket: root is answered, other users are not, and a client that misbehaves does not affect other clients."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyproxy.cli.control import ControlError, NoAgentError, ask
from pyproxy.serve.control import MOST_REQUEST_BYTES, ControlServer

NOBODY = 65534
REQUEST = b'{"command": "echo"}\n'
PATIENCE_SECONDS = 20.0
_CLIENT = """
import os, socket, sys
from pyproxy.cli.control import ControlError, ask
os.setuid(int(sys.argv[2]))
try:
    ask(sys.argv[1], "echo", dict)
except ControlError as error:
    print(error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Provide a directory that every user can write to; pytest's own exclude other users."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


async def echo(request: dict[str, object]) -> bytes:
    """Answer the one request that is known."""
    if request != {"command": "echo"}:
        message = "unknown request"
        raise ValueError(message)
    return b'{"done": true}'


@asynccontextmanager
async def serving(
    path: Path, answer: Callable[[dict[str, object]], object] = echo, seconds: float = PATIENCE_SECONDS
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a server, whose clients have some seconds for a request."""
    task = asyncio.create_task(ControlServer(str(path), answer, seconds).run())  # type: ignore[arg-type]  # see `answer`
    while not _is_listening(path) and not task.done():  # noqa: ASYNC110  # the kernel has no event for it
        await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _is_listening(path: Path) -> bool:
    """Return whether there is a socket that accepts connections."""
    listed = Path("/proc/net/unix").read_text().splitlines()
    # Flags have __SO_ACCEPTCON (0x10000) for a socket that listens (net/unix/af_unix.c, unix_seq_show).
    return any(line.split()[3] == "00010000" for line in listed if line.endswith(f" {path}"))


async def exchange(path: Path, request: bytes) -> dict[str, object]:
    """Send a request and return the reply."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), PATIENCE_SECONDS)
    writer.close()
    reply: dict[str, object] = json.loads(line)
    return reply


def test_a_request_of_root_is_answered(tmp_path: Path, needs_root: None) -> None:  # noqa: ARG001
    """Root gets the answer, and the file has a mode that excludes other users, whatever the umask is."""
    path = tmp_path / "new" / "control.sock"

    async def main() -> tuple[dict[str, object], int]:
        before = os.umask(0)
        try:
            async with serving(path):
                return await exchange(path, REQUEST), stat.S_IMODE(path.stat().st_mode)
        finally:
            os.umask(before)

    assert ({"result": {"done": True}}, 0o600) == asyncio.run(main())
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_another_user_is_refused(open_folder: Path, mode: int, needs_root: None) -> None:  # noqa: ARG001
    """The file mode keeps another user out; if it did not, the agent would refuse to answer."""
    path = open_folder / "control.sock"

    async def main() -> str:
        async with serving(path):
            path.chmod(mode)
            command = [sys.executable, "-c", _CLIENT, str(path), str(NOBODY)]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
            return done.stdout

    said = asyncio.run(main())
    expected = "only root may ask the agent" if mode == 0o600 else f"uid {NOBODY} may not use the control socket"
    assert expected in said


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"\n", "Expecting value"),
        (b"\xff\xfe\n", "'utf-8' codec can't decode"),
        (b"[1]\n", "the request is not a JSON object"),
        (b"[" * 4000 + b"\n", ""),
        (b'{"command": "shutdown"}\n', "unknown request"),
        (b"x" * (MOST_REQUEST_BYTES + 1) + b"\n", "Separator is found, but chunk is longer than limit"),
        (b"x" * (3 * MOST_REQUEST_BYTES), "Separator is not found, and chunk exceed the limit"),
    ],
    ids=["empty", "not text", "array", "deep", "unknown", "long", "endless"],
)
def test_garbage_gets_an_error(tmp_path: Path, request_: bytes, error: str, needs_root: None) -> None:  # noqa: ARG001
    """A request that cannot be read gets an error, and the next client gets its answer."""
    path = tmp_path / "control.sock"

    async def main() -> tuple[dict[str, object], dict[str, object]]:
        async with serving(path):
            return await exchange(path, request_), await exchange(path, REQUEST)

    refused, answered = asyncio.run(main())
    assert ["error"] == list(refused)
    assert error in str(refused["error"])
    assert {"result": {"done": True}} == answered


def test_silent_clients_do_not_hold_up_another(tmp_path: Path, needs_root: None) -> None:  # noqa: ARG001
    """While some clients say nothing, another one is answered; the silent ones are disconnected after their time."""
    path = tmp_path / "control.sock"

    async def main() -> tuple[dict[str, object], bytes]:
        async with serving(path, seconds=0.5):
            silent = [await asyncio.open_unix_connection(str(path)) for _ in range(5)]
            answered = await exchange(path, REQUEST)
            rest = [await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) for reader, _ in silent]
            for _, writer in silent:
                writer.close()
            return answered, b"".join(rest)

    assert ({"result": {"done": True}}, b"") == asyncio.run(main())


def test_connections_are_limited(tmp_path: Path, needs_root: None) -> None:  # noqa: ARG001
    """One more client than the limit gets an error that says to try again; it is answered once the silent ones are gone."""
    path = tmp_path / "control.sock"

    async def main() -> tuple[dict[str, object], dict[str, object]]:
        async with serving(path):
            silent = [await asyncio.open_unix_connection(str(path)) for _ in range(8)]
            refused = await exchange(path, REQUEST)
            for _, writer in silent:
                writer.close()
                await writer.wait_closed()
            while (answered := await exchange(path, REQUEST)) == refused:  # noqa: ASYNC110  # of another process
                await asyncio.sleep(0)
            return refused, answered

    assert ({"error": "too many connections, try again"}, {"result": {"done": True}}) == asyncio.run(main())


def test_a_client_that_does_not_read_does_not_hold_up_another(tmp_path: Path, needs_root: None) -> None:  # noqa: ARG001
    """A reply that its client does not read delays no other client."""
    path = tmp_path / "control.sock"

    async def answer(request: dict[str, object]) -> bytes:
        return b"1" * 10_000_000 if request == {"command": "much"} else await echo(request)

    async def main() -> dict[str, object]:
        async with serving(path, answer):
            _, writer = await asyncio.open_unix_connection(str(path), limit=1)
            writer.write(b'{"command": "much"}\n')
            answered = await exchange(path, REQUEST)
            writer.transport.abort()
            return answered

    assert {"result": {"done": True}} == asyncio.run(main())


def test_the_socket_of_an_ended_agent_is_replaced(tmp_path: Path, needs_root: None) -> None:  # noqa: ARG001
    """A file that a killed agent left behind does not prevent the next one from serving."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def main() -> dict[str, object]:
        async with serving(path):
            return await exchange(path, REQUEST)

    assert {"result": {"done": True}} == asyncio.run(main())


def test_the_socket_of_a_running_agent_stays(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    needs_root: None,  # noqa: ARG001
) -> None:
    """A second agent leaves the socket to the first one, warns, and goes on without."""
    path = tmp_path / "control.sock"

    async def main() -> dict[str, object]:
        async with serving(path), serving(path) as second:
            await asyncio.wait_for(second, PATIENCE_SECONDS)
            return await exchange(path, REQUEST)

    assert {"result": {"done": True}} == asyncio.run(main())
    assert f"control socket {path} cannot be opened: another agent uses it" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/directory/control.sock", "No such file or directory"),
        ("file", "the file exists and is not a socket"),
        ("x" * 120, "AF_UNIX path too long"),
    ],
)
def test_a_path_that_cannot_be_used(tmp_path: Path, name: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """An agent whose socket cannot be opened warns and goes on without; a file that is not a socket stays."""
    (tmp_path / "file").write_text("precious")

    asyncio.run(asyncio.wait_for(ControlServer(str(tmp_path / name), echo).run(), PATIENCE_SECONDS))

    assert reason in caplog.text
    assert "precious" == (tmp_path / "file").read_text()


def test_a_command_without_an_agent(tmp_path: Path) -> None:
    """Without a socket, and with one on which no process listens, a command finds no agent."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))

    for name in ("none.sock", "left.sock"):
        with pytest.raises(NoAgentError, match="no agent answers on"):
            ask(str(tmp_path / name), "services", dict)


def test_a_command_shows_the_error_of_the_agent(tmp_path: Path, needs_root: None) -> None:  # noqa: ARG001
    """An agent that does not know a command answers with an error, which the command shows."""
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with serving(path):
            with pytest.raises(ControlError, match="unknown request"):
                await asyncio.to_thread(ask, str(path), "shutdown", type(None))

    asyncio.run(main())


def test_a_command_does_not_trust_a_socket_of_another_user(open_folder: Path, needs_root: None) -> None:  # noqa: ARG001
    """A command that root runs sends nothing to a process of another user."""
    path = open_folder / "control.sock"
    program = (
        "import os, socket, sys; os.setuid(int(sys.argv[2])); server = socket.socket(socket.AF_UNIX);"
        " server.bind(sys.argv[1]); server.listen(); print('ready', flush=True); server.accept(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path), str(NOBODY)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        with pytest.raises(ControlError, match=f"a process of uid {NOBODY} listens"):
            ask(str(path), "services", dict)
