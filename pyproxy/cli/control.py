"""Asking the agent of this node through its control socket."""

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from pyproxy.errors import PyproxyError
from pyproxy.serve.control import peer_pid, peer_uid

T = TypeVar("T")
# The agent may be busy with a large first sync.
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


class ControlError(PyproxyError):
    """The agent cannot be asked, or refuses to answer."""


class NoAgentError(ControlError):
    """No agent listens on the control socket."""


class _Reply(msgspec.Struct):
    error: str = ""
    result: msgspec.Raw = msgspec.Raw()


def ask(path: str, command: str, type_: type[T]) -> T:
    """Send a command to the agent and return its answer.

    Raises:
        NoAgentError: no agent listens on the socket.
        ControlError: the agent cannot be asked, or refuses to answer.
    """
    try:
        reply = _exchange(path, json.dumps({"command": command}).encode() + b"\n")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        message = f"no agent answers on {path}"
        raise NoAgentError(message) from error
    except PermissionError as error:
        message = f"{path}: only root may ask the agent; run the command as root"
        raise ControlError(message) from error
    except TimeoutError as error:
        message = f"{path}: the agent did not answer within {_TIMEOUT_SECONDS:.0f} s"
        raise ControlError(message) from error
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        raise ControlError(message) from error
    try:
        answer = msgspec.json.decode(reply, type=_Reply)
        if not answer.error:
            return msgspec.json.decode(answer.result, type=type_)
    except msgspec.DecodeError as error:
        message = f"{path}: the reply cannot be read; agent and command must have the same version: {error}"
        raise ControlError(message) from error
    message = f"{path}: {answer.error}"
    raise ControlError(message)


def is_agent_here(path: str) -> bool:
    """Return whether an agent in the network namespace of this process listens on the control socket.

    The socket is a file, so an agent in another network namespace may have created it. If the namespace of the agent
    cannot be read, it is assumed to be the same.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_TIMEOUT_SECONDS)
            client.connect(path)
            pid = peer_pid(client)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    # Something listens, although it cannot be asked. To take it for an agent is the safe error: cleanup then refuses.
    except OSError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    return True


def agent_pid(path: str) -> int:
    """Return the process ID of the agent that listens on the control socket; 0 if there is none or it is not visible."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT_SECONDS)
        try:
            client.connect(path)
            return peer_pid(client)
        except OSError:
            return 0


def _exchange(path: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT_SECONDS)
        client.connect(path)
        # Any user may create a socket where the agent would have its own before it starts: its answers would be forged.
        if uid := peer_uid(client):
            message = f"a process of uid {uid} listens on {path}, not the agent"
            raise ControlError(message)
        reply = b""
        # An agent that refuses a connection replies and closes without reading the request.
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
        # The agent closes the connection after its reply.
        with suppress(ConnectionResetError):
            while chunk := client.recv(_CHUNK_BYTES):
                reply += chunk
        return reply
