"""``pyproxy support``: what the archive has, that it has no credentials, and that nothing can make the command fail or hang."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pyproxy.cli import support as support_command
from pyproxy.cli import support_bundle
from pyproxy.cli.support_bundle import INDEX, Bundle, Item, output
from tests.fakes.apiserver import NODES, SERVICES, SLICES, ApiServer, Json, listed, refused, service

from .test_rights import PYPROXY, WITHOUT_CAPABILITIES

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up capabilities of its own")
EXAMPLES = Path(__file__).parents[2] / "examples"
TOKEN = "planted-token-8b1f"  # noqa: S105 - planted
SECRETS = {
    "password": "planted-password-77c2",
    "annotation": "planted-annotation-11d9",
    "key": "planted-key-5e5e",
    "environment": "planted-environment-0a4b",
    "object": "planted-object-3c21",
    "label": "planted-label-9f00",
    "log": "planted-log-6d6d",
    "user": "planted-user-4242",
}
JSON_WEB_TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.cGxhbnRlZC1zaWduYXR1cmU"  # noqa: S105 - planted
LOG = f"""\
2026-11-30T10:00:00 node1 pyproxy[1]: I1130 synced
2026-11-30T10:00:01 node1 pyproxy[1]: Authorization: Bearer {SECRETS["log"]}
2026-11-30T10:00:02 node1 pyproxy[1]: GET https://admin:{SECRETS["user"]}@10.0.0.1:6443/api
2026-11-30T10:00:03 node1 pyproxy[1]: -----BEGIN RSA PRIVATE KEY-----
{SECRETS["key"]}
-----END RSA PRIVATE KEY-----
2026-11-30T10:00:04 node1 pyproxy[1]: plugin printed {TOKEN} and {{"password": "{SECRETS["password"]}"}}
"""


def support(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command without the addresses of this machine's own agent."""
    flags = ("--metrics-bind-address=127.0.0.1:1", "--healthz-bind-address=127.0.0.1:1", "--control-socket=")
    return subprocess.run(
        [*prefix, PYPROXY, "support", "--node=node1", *flags, *words],
        env=os.environ | environment,
        capture_output=True,
        check=False,
        timeout=110,
    )


def files(archive: Path) -> dict[str, str]:
    """Return the files of an archive, by path below its only directory."""
    with tarfile.open(archive) as opened:
        members = {entry.name.partition("/"): opened.extractfile(entry) for entry in opened}
        assert 1 == len({folder for folder, *_ in members})
        return {path: file.read().decode() for (_, _, path), file in members.items() if file}


def program(folder: Path, name: str, text: str) -> str:
    """Create a shell script; return a PATH on which it is the first program of its name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_files_offline(tmp_path: Path) -> None:
    """The archive has what is there, its index has the rest with a reason, and its objects give the same Services again."""
    archive = tmp_path / "made.tar.gz"

    path = program(tmp_path / "bin", "journalctl", "exit 3")
    done = support(f"--manifests={EXAMPLES}", "-o", str(archive), PATH=path)

    assert (0, b"") == (done.returncode, done.stdout)
    assert 0o600 == stat.S_IMODE(archive.stat().st_mode)
    found = files(archive)
    expected = {"versions.txt", "services.txt", "doctor.txt", "configuration/effective.yaml", "objects/manifests.json"}
    assert expected <= found.keys()
    assert [] == [path for path in found if path not in found[INDEX] and path != INDEX]
    assert f"wrote {archive} ({archive.stat().st_size} bytes): {len(found)} files" in done.stderr.decode()
    _, _, missing = found[INDEX].partition("Not available:\n")
    reasons = {line.split()[0]: " ".join(line.split()[1:]) for line in missing.splitlines()}
    assert "exit status 3, no output" == reasons["log/journal.txt"]
    assert "http://127.0.0.1:1/metrics: Connection refused" == reasons["agent/metrics.txt"]
    assert not reasons.keys() & found.keys()
    (tmp_path / "objects.json").write_text(found["objects/manifests.json"])
    again = subprocess.run(
        [PYPROXY, "services", "-o", "wide", "--node=node1", f"--manifests={tmp_path / 'objects.json'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout == found["services.txt"].partition("\n-- standard error")[0]


@needs_root
def test_missing_rights() -> None:
    """Without capabilities there is no traceback, and what needs no rights is there; `-o -` writes to standard output."""
    done = support(f"--manifests={EXAMPLES}", "-o", "-", prefix=WITHOUT_CAPABILITIES)

    assert 0 == done.returncode, done.stderr
    text = gzip.decompress(done.stdout).decode(errors="replace")
    assert "/services.txt" in text
    assert "needs CAP_NET_ADMIN" in text
    assert "Traceback" not in text + done.stderr.decode()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-o", "/nowhere/made.tar.gz"], 1, "Error: /nowhere/made.tar.gz cannot be written: No such file or directory"),
        (["--manifests=-"], 2, "Error: --manifests=- is not supported here"),
    ],
)
def test_errors(words: list[str], code: int, message: str) -> None:
    """A file that cannot be written, and standard input as a source, are errors with one line."""
    done = support(*words)

    assert (code, True) == (done.returncode, message in done.stderr.decode())
    assert "Traceback" not in done.stderr.decode()


def test_settings_that_cannot_be_used(tmp_path: Path) -> None:
    """With a broken configuration the archive says what is wrong, and has the rest."""
    config = tmp_path / "config.yaml"
    config.write_text("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: warp\n")

    support(f"--config={config}", f"--manifests={EXAMPLES}", "-o", str(tmp_path / "made.tar.gz"))

    found = files(tmp_path / "made.tar.gz")
    assert "they have errors, so defaults were used: " in found[INDEX]
    assert "warp" in found[INDEX]
    assert "versions.txt" in found


# -- credentials


@pytest.fixture
def metrics_address() -> Iterator[str]:
    """Provide the address of a server whose pages have a token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"page {self.path} {JSON_WEB_TOKEN}\n".encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def planted(item: Json) -> Json:
    """Return an object with credentials where users leave them."""
    metadata = {
        **item["metadata"],
        "labels": {"app": "web", "auth": f"token={SECRETS['label']}"},
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": f'{{"x": "{SECRETS["annotation"]}"}}',
            "service.kubernetes.io/topology-mode": "Auto",
        },
        "managedFields": [{"manager": SECRETS["annotation"]}],
    }
    return {**item, "metadata": metadata}


def kubeconfig(folder: Path, server: str) -> Path:
    """Write a kubeconfig with credentials of each kind; return its path."""
    (folder / "token").write_text(f"{TOKEN}\n")
    secret = base64.b64encode(SECRETS["key"].encode()).decode()
    user = {
        "tokenFile": "token",
        "token": SECRETS["password"],
        "client-key-data": secret,
        "exec": {"command": "/nowhere", "env": [{"name": "KEY", "value": SECRETS["environment"]}]},
    }
    values = {
        "current-context": "main",
        "clusters": [{"name": "main", "cluster": {"server": server}}],
        "contexts": [{"name": "main", "context": {"cluster": "main", "user": "main"}}],
        "users": [{"name": "main", "user": {"tokenFile": "token"}}, {"name": "other", "user": user}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(values))
    return path


@needs_root
def test_no_credentials_of_an_api_server(tmp_path: Path, metrics_address: str) -> None:
    """No credential of kubeconfig, objects, log or pages is in the archive; their harmless parts are."""
    archive = tmp_path / "made.tar.gz"
    path = program(tmp_path / "bin", "journalctl", f"cat <<'END'\n{LOG}END")
    node = {"metadata": {"name": "node1"}, "status": {"images": [SECRETS["object"]], "addresses": []}}

    async def run() -> subprocess.CompletedProcess[bytes]:
        async with ApiServer() as server:
            server.say(SERVICES, listed("1", planted(service("web")), more="next"), listed("1", planted(service("db"))))
            server.say(SLICES, refused(403, f"token {TOKEN} is not allowed"))
            server.say(NODES, listed("1", planted(node)))
            flags = (f"--kubeconfig={kubeconfig(tmp_path, server.url)}", f"--metrics-bind-address={metrics_address}")
            # With its rights, `plan` would get some of these answers.
            words = (*flags, "-o", str(archive))
            return await asyncio.to_thread(support, *words, prefix=WITHOUT_CAPABILITIES, PATH=path)

    done = asyncio.run(run())

    assert 0 == done.returncode
    for secret in (TOKEN, JSON_WEB_TOKEN, *SECRETS.values()):
        for form in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"=")):
            assert form not in gzip.decompress(archive.read_bytes()), secret
            assert form not in done.stderr, secret
    found = files(archive)
    assert "I1130 synced" in found["log/journal.txt"]
    assert "page /metrics REDACTED\n" == found["agent/metrics.txt"]
    assert "tokenFile: token\n" in found["configuration/kubeconfig.yaml"]
    [web, *_] = json.loads(found["objects/services.json"])["items"]
    assert {"service.kubernetes.io/topology-mode": "Auto"} == web["metadata"]["annotations"]
    assert "web" == web["metadata"]["labels"]["app"]


def test_no_credentials_of_files(tmp_path: Path) -> None:
    """Of files, Secrets and foreign Nodes are left out, and so are annotations."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"x": SECRETS["object"]}}
    other = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}, "spec": {"podCIDR": "10.244.7.0/24"}}
    web = {"apiVersion": "v1", "kind": "Service", **planted(service("web"))}
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "list.json").write_text(json.dumps({"kind": "List", "items": [secret, other, web]}))
    (manifests / "broken.yaml").write_text(f"token: {SECRETS['password']}\n  kind: [\n")

    support(f"--manifests={manifests}", "-o", str(tmp_path / "made.tar.gz"))

    whole = gzip.decompress((tmp_path / "made.tar.gz").read_bytes()).decode(errors="replace")
    assert [] == [name for name, secret in SECRETS.items() if secret in whole]
    items = json.loads(files(tmp_path / "made.tar.gz")["objects/manifests.json"])["items"]
    assert [("Service", "web")] == [(item["kind"], item["metadata"]["name"]) for item in items]


# -- limits


def collected(tmp_path: Path, item: Item) -> dict[str, str]:
    """Return the files of an archive with one item."""
    with (tmp_path / "made.tar.gz").open("wb") as target:
        asyncio.run(Bundle(target, "bundle", 0.0, ()).collect([item], "head"))
    return files(tmp_path / "made.tar.gz")


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end in time is killed with its children, and is missing."""
    monkeypatch.setattr(support_bundle, "ITEM_SECONDS", 0.5)
    pids = tmp_path / "pids"

    found = collected(tmp_path, Item("a.txt", "", lambda: output(["sh", "-c", f"sleep 600 & echo $! >{pids}; wait"])))

    assert "a.txt      not complete after 0.5 s" in found[INDEX]
    child = Path("/proc") / pids.read_text().strip()
    # The child has another parent now, which may not have read its exit status yet.
    assert not child.exists() or "Z (zombie)" in (child / "status").read_text()


def test_output_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large output the archive has the first part, and the index says so."""
    monkeypatch.setattr(support_bundle, "MOST_BYTES", 1 << 20)

    found = collected(tmp_path, Item("a.txt", "zeros", lambda: output(["head", "-c", "5000000", "/dev/zero"])))

    assert 1 << 20 == len(found["a.txt"])
    assert "zeros (cut after 1 MiB)" in found[INDEX]


def test_an_unexpected_error(tmp_path: Path) -> None:
    """An error of any type ends only its item."""

    async def fails() -> str:
        raise KeyError("x")  # noqa: EM101 - any error

    assert "a.txt      KeyError: 'x'" in collected(tmp_path, Item("a.txt", "", fails))[INDEX]


def test_files_of_the_environment_leave_the_flags_of_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """If only the environment names a file, as in the agent's container, the flags of the agent are used, too."""
    monkeypatch.setattr(support_command, "agent_pid", lambda _: 1)
    monkeypatch.setattr(support_command, "agent_values", lambda *_: {"hostname_override": "the-agents"})
    given = {"pyproxy_config": "/nowhere/config.yaml"}
    monkeypatch.setenv("PYPROXY_CONFIG", "/nowhere/config.yaml")

    assert "flags of the agent" in support_command.found_settings(support_command.command, given).origin
    monkeypatch.delenv("PYPROXY_CONFIG")
    assert "flags of this command" in support_command.found_settings(support_command.command, given).origin
