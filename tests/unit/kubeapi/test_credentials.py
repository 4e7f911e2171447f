"""Kubeconfig, exec plugins and the service account: real files and plugins, and the child process for these.

Whatever can be read from files is read twice here: by our own code, as the agent does it, and through the package.
"""

import asyncio
import json
import os
import select
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi import credentials
from pyproxy.kubeapi import load_access as module
from pyproxy.kubeapi.access import Access, AccessSettings, Pem, Server
from pyproxy.kubeapi.kubeconfig import read_settings
from pyproxy.kubeapi.load_access import load_access
from tests.fakes.apiserver import PATIENCE_SECONDS, Json

URL = "https://10.0.0.1:6443"
CA = b"-----BEGIN CERTIFICATE-----\n"
EXPIRY = "2031-05-06T07:08:09Z"
EXPIRY_SECONDS = 1935817689.0


class Kubeconfig:
    """A kubeconfig in a directory with the files that it names; a test changes it before it is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster: Json = {"server": URL, "certificate-authority": "ca.crt"}
        self.user: Json = {"tokenFile": "token"}
        self.whole: Json = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "default",
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
            "clusters": [{"name": "default", "cluster": self.cluster}],
            "users": [{"name": "default", "user": self.user}],
        }
        self.file("ca.crt", CA)
        self.file("token", b"secret\n")

    def file(self, name: str, content: bytes, mode: int = 0o600) -> Path:
        """Put a file into the folder."""
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def plugin(self, script: str) -> None:
        """Let the user authenticate by a shell script."""
        self.user.clear()
        command = str(self.file("plugin", f"#!/bin/sh\n{script}\n".encode(), 0o700))
        self.user["exec"] = {"apiVersion": "client.authentication.k8s.io/v1", "command": command}

    def settings(self, master: str = "") -> AccessSettings:
        """Write the kubeconfig, and return settings that name it."""
        path = self.file("kubeconfig", yaml.safe_dump(self.whole).encode())
        return AccessSettings(kubeconfig=str(path), master=master)


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubeconfig:
    """Give a kubeconfig like kubeadm's for kube-proxy, and no proxy in the environment."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return Kubeconfig(tmp_path)


def read_access(settings: AccessSettings) -> Access:
    """Return what the agent finds in files, which the child process finds as well."""
    found = read_settings(settings)

    assert not found.needs_package
    assert found.access == credentials.read_access(settings)
    return found.access


def credential(**status: str) -> str:
    """Return the shell command of an exec plugin that prints credentials."""
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"echo '{json.dumps(answer)}'"


def test_json(kubeconfig: Kubeconfig) -> None:
    """A kubeconfig may be written as JSON, which is YAML."""
    in_yaml = read_settings(kubeconfig.settings())
    path = kubeconfig.file("kubeconfig", json.dumps(kubeconfig.whole).encode())

    assert in_yaml == read_settings(AccessSettings(kubeconfig=str(path)))


def test_kubeadm(kubeconfig: Kubeconfig) -> None:
    """The kubeconfig of kubeadm names files; their paths are kept, and their contents are read each time."""
    access = read_access(kubeconfig.settings())

    ca, token = str(kubeconfig.folder / "ca.crt"), str(kubeconfig.folder / "token")
    assert ((Server(URL),), Pem(ca), token) == (access.servers, access.ca, access.token_file)
    assert "Bearer secret" == access.read_authorization()
    kubeconfig.file("token", b"rotated")
    kubeconfig.file("ca.crt", b"rotated")
    assert ("Bearer rotated", b"rotated") == (access.read_authorization(), access.read_certificates().ca)


def test_inline(kubeconfig: Kubeconfig) -> None:
    """Certificates and keys may be inline in the kubeconfig, where they override files."""
    kubeconfig.cluster["certificate-authority-data"] = b64encode(CA).decode()
    kubeconfig.user.clear()
    kubeconfig.user.update(
        {"client-certificate-data": b64encode(b"cert").decode(), "client-key-data": b64encode(b"key").decode()}
    )
    access = read_access(kubeconfig.settings())

    assert (Pem(content=CA), Pem(content=b"cert"), Pem(content=b"key")) == (access.ca, access.certificate, access.key)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"token": "abc"}, "Bearer abc"),
        ({"token": "abc", "tokenFile": "token"}, "Bearer secret"),
        ({"username": "me", "password": "you"}, "Basic bWU6eW91"),
        ({}, ""),
    ],
)
def test_authorization(kubeconfig: Kubeconfig, user: Json, expected: str) -> None:
    """Users have a token, a token file (which wins, as in client-go), a password, or nothing."""
    kubeconfig.user.clear()
    kubeconfig.user.update(user)

    assert expected == read_access(kubeconfig.settings()).read_authorization()


def test_options_of_a_cluster(kubeconfig: Kubeconfig) -> None:
    """Proxy, server name, verification and compression are read from the kubeconfig."""
    kubeconfig.cluster.update({"proxy-url": "http://proxy:3128", "tls-server-name": "api"})
    usual = read_access(kubeconfig.settings())
    kubeconfig.cluster.update({"insecure-skip-tls-verify": True, "disable-compression": True})
    other = read_access(kubeconfig.settings())

    assert ((Server(URL, "http://proxy:3128"),), "api") == (usual.servers, usual.tls_server_name)
    assert [(True, True), (False, False)] == [(access.verify, access.compress) for access in (usual, other)]


@pytest.mark.parametrize(
    ("master", "expected"),
    [
        ("https://a:1/", ("https://a:1",)),
        ("https://a:1, https://b/path/", ("https://a:1", "https://b/path")),
        ("10.0.0.9:6443", ("https://10.0.0.9:6443",)),
    ],
)
def test_master_overrides(kubeconfig: Kubeconfig, master: str, expected: tuple[str, ...]) -> None:
    """--master replaces the server in the kubeconfig, and may name several."""
    access = read_access(kubeconfig.settings(master))

    assert expected == tuple(server.url for server in access.servers)
    assert "Bearer secret" == access.read_authorization()


def test_master_alone() -> None:
    """--master without a kubeconfig is a server without credentials, by HTTP unless the URL has another scheme."""
    assert Access(servers=(Server("http://[::1]:8080"),)) == read_access(AccessSettings(master="[::1]:8080"))


def test_api_servers_override(kubeconfig: Kubeconfig) -> None:
    """--api-servers replaces the server in the kubeconfig; credentials and authority are kept."""
    settings = replace(kubeconfig.settings(), api_servers=("10.0.0.8:6443", "https://10.0.0.9:6443"))
    access = read_access(settings)

    assert ["https://10.0.0.8:6443", "https://10.0.0.9:6443"] == [server.url for server in access.servers]
    assert ("Bearer secret", CA) == (access.read_authorization(), access.read_certificates().ca)


def test_api_servers_with_a_service_account(kubeconfig: Kubeconfig, tmp_path: Path) -> None:
    """Without a kubeconfig --api-servers are used with the service account's token, if there is one."""
    servers = ("https://10.0.0.8:6443",)
    in_pod = read_access(AccessSettings(api_servers=servers, service_account=str(kubeconfig.folder)))
    elsewhere = read_access(AccessSettings(api_servers=servers, service_account=str(tmp_path / "none")))

    assert ("Bearer secret", "") == (in_pod.read_authorization(), elsewhere.read_authorization())
    assert in_pod.servers == elsewhere.servers == (Server("https://10.0.0.8:6443"),)


def test_a_bad_url_of_api_servers_names_the_flag(kubeconfig: Kubeconfig) -> None:
    """The message names the wrong URL."""
    with pytest.raises(ConfigError, match="--api-servers: 'https://:1' is not a valid URL"):
        read_settings(replace(kubeconfig.settings(), api_servers=("https://a", "https://:1")))


def test_proxy_of_the_environment(kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS_PROXY applies to all servers except those in NO_PROXY."""
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    servers = asyncio.run(load_access(kubeconfig.settings("https://10.0.0.1:6443,https://192.0.2.1:6443"))).servers

    assert ("", "http://proxy:3128") == (servers[0].proxy, servers[1].proxy)


def test_service_account(kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod the service account's files are followed like those of a kubeconfig."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    access = read_access(AccessSettings(service_account=str(kubeconfig.folder)))
    first = access.read_authorization()
    kubeconfig.file("token", b"rotated")

    assert ((Server("https://[fd00::1]:443"),), CA) == (access.servers, access.read_certificates().ca)
    assert ("Bearer secret", "Bearer rotated") == (first, access.read_authorization())


def test_no_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting the message names the settings that are possible."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="neither --kubeconfig nor --master is given"):
        read_access(AccessSettings(service_account=str(tmp_path)))


MISTAKES: dict[str, tuple[Callable[[Kubeconfig], object], str]] = {
    "no server": (lambda k: k.cluster.pop("server"), r"clusters\[\]\.cluster\.server is missing"),
    "bad server": (
        lambda k: k.cluster.update(server="10.0.0.1:port"),
        "cluster.server: 'https://10.0.0.1:port' is not a valid URL",
    ),
    "server of a wrong type": (lambda k: k.cluster.update(server=1), r"\$\.clusters\[0\]\.cluster\.server"),
    "bad proxy": (
        lambda k: k.cluster.update({"proxy-url": "socks5://p"}),
        "proxy-url: 'socks5://p' is not a valid URL",
    ),
    "no CA file": (
        lambda k: k.cluster.update({"certificate-authority": "x"}),
        "certificate-authority: /[^ ]*/x: No such file or directory$",
    ),
    "bad CA data": (lambda k: k.cluster.update({"certificate-authority-data": "x"}), "certificate-authority-data: "),
    "no token file": (lambda k: k.user.update(tokenFile="x"), "tokenFile: /[^ ]*/x: No such file or directory$"),
    "no key file": (lambda k: k.user.update({"client-key": "x"}), "client-key: /[^ ]*/x: No such file or directory$"),
    "no context": (lambda k: k.whole.update({"current-context": "x"}), "contexts: no entry has the name 'x'"),
    "no current context": (lambda k: k.whole.pop("current-context"), "it names no cluster, and neither is --master"),
    "no contexts": (lambda k: k.whole.update(contexts=None), "contexts: no entry has the name 'default'"),
    "no cluster": (lambda k: k.whole.update(clusters=[]), "clusters: no entry has the name 'default'"),
    "null cluster": (lambda k: k.whole["clusters"][0].update(cluster=None), "cluster.server is missing"),
    "null command": (lambda k: k.user.update(exec={"command": None}), r"users\[\]\.user\.exec\.command is missing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(kubeconfig: Kubeconfig, mistake: str) -> None:
    """A kubeconfig that cannot work is an error that names the wrong field."""
    make, expected = MISTAKES[mistake]
    make(kubeconfig)
    with pytest.raises(ConfigError, match=f"kubeconfig .*/kubeconfig: .*{expected}"):
        read_access(kubeconfig.settings())


KUBECTL_WRITES_OF_NOTHING = b"""apiVersion: v1
clusters: null
contexts: null
current-context: ""
kind: Config
users: null
"""
"""Output of ``kubectl config view`` (1.37) without a configuration."""
CLUSTER_FIELDS = (
    *("server", "certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name"),
    *("proxy-url", "disable-compression", "extensions"),
)
USER_FIELDS = (
    *("client-certificate", "client-certificate-data", "client-key", "client-key-data", "token", "tokenFile"),
    *("username", "password", "exec", "auth-provider", "as", "as-uid", "as-groups", "as-user-extra", "extensions"),
)
NULLS: dict[str, Callable[[Json], object]] = {
    "no user in the context": lambda k: k["contexts"][0]["context"].update(user=None),
    "null user": lambda k: k["users"][0].update(user=None),
    "users": lambda k: k.update(users=None),
    "user without a name": lambda k: k["users"][0].update(name=None),
    "each field of the user": lambda k: k["users"][0].update(user=dict.fromkeys(USER_FIELDS)),
    "each field of the cluster": lambda k: k["clusters"][0].update(cluster=dict.fromkeys(CLUSTER_FIELDS)),
    "cluster": lambda k: k["clusters"][0].update(cluster=None),
    "clusters": lambda k: k.update(clusters=None),
    "no cluster in the context": lambda k: k["contexts"][0]["context"].update(cluster=None),
    "context": lambda k: k["contexts"][0].update(context=None),
    "entries": lambda k: [k[each].insert(0, None) for each in ("clusters", "contexts", "users")],
    "other fields": lambda k: k.update(dict.fromkeys(("kind", "apiVersion", "preferences", "extensions"))),
    "contexts": lambda k: k.update({"contexts": None, "current-context": None}),
}


@pytest.mark.parametrize("nulls", NULLS)
@pytest.mark.parametrize("write", [lambda tree: yaml.safe_dump(tree).encode(), lambda tree: json.dumps(tree).encode()])
def test_null_is_an_absent_value(kubeconfig: Kubeconfig, nulls: str, write: Callable[[Json], bytes]) -> None:
    """With --master each part of a kubeconfig may be null, as for client-go: the flag gives the server."""
    NULLS[nulls](kubeconfig.whole)
    path = kubeconfig.file("kubeconfig", write(kubeconfig.whole))
    access = read_access(AccessSettings(kubeconfig=str(path), master=URL))

    assert (Server(URL),) == access.servers


@pytest.mark.parametrize("content", [b"", b"null", b"{}", KUBECTL_WRITES_OF_NOTHING])
def test_empty_kubeconfig(kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """An empty kubeconfig leaves the server to --master, else to the pod's service account, as in client-go."""
    path = str(kubeconfig.file("kubeconfig", content))
    with_master = read_access(AccessSettings(kubeconfig=path, master=URL))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.3")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    in_pod = read_access(AccessSettings(kubeconfig=path, service_account=str(kubeconfig.folder)))

    assert ((Server(URL),), "") == (with_master.servers, with_master.read_authorization())
    assert ((Server("https://10.0.0.3:443"),), "Bearer secret") == (in_pod.servers, in_pod.read_authorization())


def test_a_missing_user_is_logged(kubeconfig: Kubeconfig, caplog: pytest.LogCaptureFixture) -> None:
    """A context whose user has no entry gives requests without credentials, as in client-go, and a warning."""
    kubeconfig.whole.update(users=None)
    access = read_settings(kubeconfig.settings()).access

    assert not access.read_authorization()
    assert 'users: no entry has the name "default"; requests have no credentials' in caplog.text


@pytest.mark.parametrize("content", [b"- a", b"{", b"\xff\x00"])
def test_no_kubeconfig(kubeconfig: Kubeconfig, content: bytes) -> None:
    """A file that is not a kubeconfig is an error that names it."""
    path = kubeconfig.folder / "other"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"kubeconfig {path}: "):
        read_access(AccessSettings(kubeconfig=str(path)))


def test_missing_kubeconfig(tmp_path: Path) -> None:
    """A missing file is an error that names it once."""
    path = tmp_path / "other"
    with pytest.raises(ConfigError, match=f"^kubeconfig {path}: No such file or directory$"):
        read_access(AccessSettings(kubeconfig=str(path)))


def test_plugin_with_a_token(kubeconfig: Kubeconfig) -> None:
    """An exec plugin gives a token and its expiry."""
    kubeconfig.plugin(credential(token="from-plugin", expirationTimestamp=EXPIRY))  # noqa: S106 - no password
    access = asyncio.run(load_access(kubeconfig.settings()))

    assert ("Bearer from-plugin", EXPIRY_SECONDS) == (access.read_authorization(), access.expires_at)


def test_plugin_beside_nulls(kubeconfig: Kubeconfig) -> None:
    """An exec plugin runs although the kubeconfig has nulls, which the package does not accept."""
    kubeconfig.plugin(credential(token="from-plugin"))  # noqa: S106 - no password
    kubeconfig.user["exec"].update(args=None, env=None)
    kubeconfig.whole["contexts"].insert(0, None)
    kubeconfig.whole["contexts"][1]["context"]["cluster"] = None
    kubeconfig.whole["clusters"] = None
    access = asyncio.run(load_access(kubeconfig.settings(URL)))

    assert ((Server(URL),), "Bearer from-plugin") == (access.servers, access.read_authorization())


def test_nulls_beside_a_proxy_of_the_environment(kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child process that applies the rules of proxies accepts nulls too."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    path = str(kubeconfig.file("kubeconfig", KUBECTL_WRITES_OF_NOTHING))
    access = asyncio.run(load_access(AccessSettings(kubeconfig=path, master=URL)))

    assert (Server(URL, "http://proxy:3128"),) == access.servers


def test_plugin_with_a_certificate(kubeconfig: Kubeconfig) -> None:
    """A client certificate of an exec plugin is kept after the package has removed its files."""
    kubeconfig.plugin(credential(clientCertificateData="cert", clientKeyData="key"))
    access = asyncio.run(load_access(kubeconfig.settings()))

    assert (Pem(content=b"cert"), Pem(content=b"key")) == (access.certificate, access.key)


def test_identity_provider(kubeconfig: Kubeconfig) -> None:
    """The package requests the token of an OIDC provider."""
    token = ".".join(b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, {"exp": 1 << 33}, {}))
    kubeconfig.user.clear()
    kubeconfig.user["auth-provider"] = {"name": "oidc", "config": {"id-token": token}}
    access = asyncio.run(load_access(kubeconfig.settings()))

    assert f"Bearer {token}" == access.read_authorization()


def test_child_process(kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of the child process is complete: files, inline data, and unset fields."""
    settings = kubeconfig.settings()
    kubeconfig.cluster["certificate-authority-data"] = b64encode(CA).decode()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    access = asyncio.run(load_access(settings))

    assert credentials.read_access(settings) == access
    assert ((Server(URL, "http://proxy:3128"),), None) == (access.servers, access.expires_at)


def test_child_process_with_a_mistake(kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ConfigError passes from the child process to its parent."""
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy")
    with pytest.raises(ConfigError, match=r"^proxy of the environment: 'ftp://proxy' is not a valid URL"):
        asyncio.run(load_access(kubeconfig.settings()))


def test_plugin_that_fails(kubeconfig: Kubeconfig) -> None:
    """A plugin that fails is not an error of the configuration; its message is passed on."""
    kubeconfig.plugin("echo the clock is wrong >&2; exit 1")
    with pytest.raises(SourceError, match=r"plugin gave no credentials; .*the clock is wrong"):
        asyncio.run(load_access(kubeconfig.settings()))


def test_plugin_that_hangs(kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that takes too long is stopped, and the error suggests the cause."""
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.05)
    kubeconfig.plugin("exec sleep 600")
    with pytest.raises(SourceError, match="does the exec plugin hang"):
        asyncio.run(load_access(kubeconfig.settings()))


def test_plugin_ends_with_who_asked_for_it(kubeconfig: Kubeconfig) -> None:
    """A plugin that takes too long is killed, although it is a child of the child process."""
    alive = kubeconfig.folder / "alive"
    os.mkfifo(alive)
    kubeconfig.plugin(f"exec 3> {alive}; echo started >&3; exec sleep 600")
    with os.fdopen(os.open(alive, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        asyncio.run(_load_until_readable(kubeconfig.settings(), reader.fileno()))

        assert b"started\n" == reader.read(100)
        # The end of the pipe is there once its only writer is gone.
        assert [reader] == select.select([reader], [], [], PATIENCE_SECONDS)[0]
        assert b"" == reader.read(1)


async def _load_until_readable(settings: AccessSettings, descriptor: int) -> None:
    """Load credentials, and cancel that once a file has content; not after a time, which may be too short."""
    readable = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, readable.set)
    loading = asyncio.create_task(load_access(settings))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await readable.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading


def test_the_package_stays_outside() -> None:
    """The agent's process never imports `kubernetes`, which would be a quarter of its memory."""
    program = "import pyproxy.kubeapi.api, pyproxy.kubeapi.load_access, sys; print([name for name in sys.modules if name.startswith('kubernetes')])"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert "[]" == result.stdout.strip()
