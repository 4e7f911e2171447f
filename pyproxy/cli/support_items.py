"""The files of a support bundle, and how each is collected."""

import asyncio
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pyproxy import __version__
from pyproxy.cli.redaction import kubeconfig_secrets, shared_kubeconfig, shared_object
from pyproxy.cli.support_bundle import MOST_BYTES, Item, MissingError, output
from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.effective_config import effective_configuration
from pyproxy.errors import PyproxyError
from pyproxy.kubeapi.access import SERVICE_ACCOUNT, AccessSettings
from pyproxy.kubeapi.load_access import load_access
from pyproxy.kubeapi.transport import Timing, Transport
from pyproxy.manifests.files import SUFFIXES
from pyproxy.model.address import ListenAddress
from pyproxy.serve.build_info import build_info
from pyproxy.serve.local_page import get_page, reachable

_HTTP_SECONDS = 10
_LOG_LINES = 5000
# The layout of the kubelet: /var/log/pods/NAMESPACE_POD_UID/CONTAINER/N.log.
_POD_LOGS = ("*_kube-proxy-*", "*_pyproxy-*")
_POD_LOG_BYTES = 2 << 20
_SYSCTLS = (
    *("net/ipv4/ip_forward", "net/ipv4/conf/*/rp_filter", "net/ipv4/conf/*/route_localnet", "net/ipv4/vs/*"),
    *("net/ipv4/ip_local_port_range", "net/ipv4/ip_local_reserved_ports", "net/ipv6/conf/all/forwarding"),
    *("net/bridge/*", "net/netfilter/nf_conntrack*", "net/ipv4/conf/*/arp_*"),
)
# File to the path, API version and kind of a collection of the API server.
_COLLECTIONS: Mapping[str, tuple[str, str, str]] = {
    "services": ("/api/v1/services", "v1", "Service"),
    "endpointslices": ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    "node": ("/api/v1/nodes", "v1", "Node"),
    "servicecidrs": ("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
}
# The page size of kubectl: the API server then never builds an answer with all objects of a large cluster.
_PAGE = "500"
_RULES = {
    "nft.txt": ("nft", "list", "ruleset"),
    **{
        f"{family}tables-{variant}.txt": (f"{family}tables-{variant}-save", "-c")
        for family in ("ip", "ip6")
        for variant in ("legacy", "nft")
    },
}


def items(config: Config, node: str, words: Mapping[str, list[str]], agent_pid: int) -> Iterator[Item]:
    """Yield the items.

    Args:
        config: the effective configuration.
        node: name of this node.
        words: by command, its flags.
        agent_pid: the process of the agent; 0 if it is not visible.
    """
    yield Item("versions.txt", "versions of pyproxy, Python, the kernel and programs", _versions)
    yield Item("configuration/effective.yaml", "the configuration, defaults included", partial(_effective, config))
    # With the module path of this process (a checkout, a virtual environment or a zip file), and because of -P without
    # the working directory, which may be writable for other users.
    program = f"import sys; sys.path[:] = {sys.path!r}; from pyproxy.cli import main; main()"
    for path, name, more, about in (
        ("configuration/check-config.txt", "check-config", [], "where each setting comes from, and problems"),
        ("services.txt", "services", ["-o", "wide"], "each Service on this node, and why it does not work"),
        ("doctor.txt", "doctor", ["-v"], "checks of this node"),
        ("plan.txt", "plan", ["-o", "wide"], "what a sync would change now"),
        ("rules/pyproxy.txt", "dump-rules", ["--live"], "pyproxy's rules, by Service"),
    ):
        command = partial(output, (sys.executable, "-P", "-c", program, name, *more, *words[name]))
        yield Item(path, f"pyproxy {' '.join((name, *more))}: {about}", command)
    yield Item("agent/command-line.txt", "command line of the agent", partial(_command_line, agent_pid))
    yield Item(
        "configuration/kubeconfig.yaml", "kubeconfig without credentials", partial(_kubeconfig, config.kubeconfig)
    )
    for address, flag, names in (
        (config.metrics_bind_address, "--metrics-bind-address", ("metrics", "configz", "proxyMode", "statusz")),
        (config.healthz_bind_address, "--healthz-bind-address", ("healthz", "livez", "readyz")),
    ):
        for name in names:
            yield Item(f"agent/{name}.txt", f"/{name} of the agent", partial(_page, address, f"/{name}", flag))
    yield from _objects(config, node)
    for path, argv in _RULES.items():
        yield Item(f"rules/{path}", " ".join(argv), partial(output, argv))
    yield Item("rules/ipvs.txt", "/proc/net/ip_vs", partial(asyncio.to_thread, _text, "/proc/net/ip_vs"))
    yield Item("kernel/modules.txt", "/proc/modules", partial(asyncio.to_thread, _text, "/proc/modules"))
    yield Item("kernel/sysctls.txt", "settings that matter for Services", partial(asyncio.to_thread, _sysctls))
    yield Item("log/journal.txt", f"the last {_LOG_LINES} lines of the journal", _journal)
    yield Item("log/pod.txt", "the end of the log of each pod of the proxy", partial(asyncio.to_thread, _pod_logs))


def known_secrets(config: Config) -> set[str]:
    """Return the credentials that this node uses for the API server, as far as they can be read."""
    found: set[str] = set()
    paths = [Path(SERVICE_ACCOUNT, "token")]
    if config.kubeconfig:
        try:
            values = yaml.safe_load(_text(config.kubeconfig))
        except (OSError, yaml.YAMLError, MissingError):
            values = None
        found |= {*kubeconfig_secrets(values)}
        users = values.get("users") if isinstance(values, dict) else None
        for entry in users if isinstance(users, list) else ():
            user = entry.get("user") if isinstance(entry, dict) else None
            if isinstance(user, dict) and user.get("tokenFile"):
                # As in client-go, a path in a kubeconfig is relative to its directory.
                paths.append(Path(config.kubeconfig).parent / str(user["tokenFile"]))
    for path in paths:
        try:
            found.add(path.read_text().strip())
        except (OSError, UnicodeError):
            continue
    return found


async def _versions() -> str:
    async def of(*argv: str) -> str:
        try:
            return (await output(argv)).strip()
        except MissingError as error:
            return f"not available: {error}"

    system = platform.uname()
    release = await asyncio.to_thread(_text, "/etc/os-release")
    programs = ["iptables", "iptables-legacy", "iptables-nft", "ip6tables", "nft"]
    found = await asyncio.gather(*(of(name, "--version") for name in programs))
    packages = sorted(f"{each.name} {each.version}" for each in metadata.distributions())
    return "\n".join(
        (
            f"pyproxy {__version__} {' '.join(build_info())}".rstrip(),
            f"Python {sys.version}",
            f"kernel {system.system} {system.release} {system.version} {system.machine}",
            *(f"{name}: {text}" for name, text in zip(programs, found, strict=True)),
            *("", "-- Python packages", *packages),
            *("", "-- /etc/os-release", release),
        )
    )


async def _effective(config: Config) -> str:
    defaults = Config()
    own = {
        f"--{about.flag}": about.grammar.write(value)
        for about in OPTIONS.values()
        if about.own and (value := about.value(config)) != about.value(defaults) and value is not None
    }
    # A second document, because options of pyproxy are not fields of a KubeProxyConfiguration.
    documents = [effective_configuration(config), *([own] if own else [])]
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True)


async def _command_line(pid: int) -> str:
    if not pid:
        message = "no agent answers on the control socket, or it is not visible for this user"
        raise MissingError(message)
    return (await asyncio.to_thread(_text, f"/proc/{pid}/cmdline")).replace("\0", "\n")


async def _kubeconfig(path: str) -> str:
    if not path:
        message = "no --kubeconfig is given"
        raise MissingError(message)
    try:
        values = yaml.safe_load(await asyncio.to_thread(_text, path))
    except yaml.YAMLError as error:
        # The message has an excerpt of the file.
        message = f"{path} is not valid YAML"
        raise MissingError(message) from error
    return yaml.safe_dump(shared_kubeconfig(values), sort_keys=False, allow_unicode=True)


async def _page(address: object, path: str, flag: str) -> str:
    if not isinstance(address, ListenAddress):
        message = f"{flag} is not one address"
        raise MissingError(message)
    where = reachable(address)
    try:
        return await get_page(where, path, MOST_BYTES + 1, _HTTP_SECONDS)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else f"no complete answer in {_HTTP_SECONDS} s"
        message = f"http://{where}{path}: {reason}"
        raise MissingError(message) from error


def _objects(config: Config, node: str) -> Iterator[Item]:
    if config.manifests:
        about = f"objects of {config.manifests} that pyproxy reads"
        yield Item(
            "objects/manifests.json", about, partial(asyncio.to_thread, _objects_of_files, config.manifests, node)
        )
        return
    for name, (path, version, kind) in _COLLECTIONS.items():
        query = {"fieldSelector": f"metadata.name={node}"} if kind == "Node" else {}
        text = partial(_objects_of_api, config, node, (path, version, kind), query)
        yield Item(f"objects/{name}.json", f"{kind} objects of the API server", text)


def _objects_of_files(path: str, node: str) -> str:
    top = Path(path)
    files = sorted(each for each in top.iterdir() if each.suffix in SUFFIXES) if top.is_dir() else [top]
    found: list[Any] = []
    for file in files:
        try:
            documents = [*yaml.load_all(_text(file), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
        except yaml.YAMLError:
            # The message has an excerpt of the file. check-config.txt has the place of the error.
            continue
        for document in documents:
            if isinstance(document, dict):
                items = document.get("items")
                found += items if isinstance(items, list) else [document]
    return _listed((item for item in found if isinstance(item, dict)), node)


async def _objects_of_api(config: Config, node: str, collection: tuple[str, str, str], query: Mapping[str, str]) -> str:
    path, version, kind = collection
    settings = AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)
    found: list[dict[str, Any]] = []
    size, token = 0, ""
    try:
        async with Transport(lambda: load_access(settings), Timing(connect=5.0, answer=_HTTP_SECONDS)) as api:
            while size < MOST_BYTES:
                body = await api.body(path, {"limit": _PAGE, **query, **({"continue": token} if token else {})})
                page = msgspec.json.decode(body)
                found += [{"apiVersion": version, "kind": kind, **item} for item in page["items"] or ()]
                size += len(body)
                token = page["metadata"].get("continue", "")
                if not token:
                    break
    except (PyproxyError, msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, RecursionError) as error:
        raise MissingError(str(error)) from error
    return _listed(found, node)


def _listed(found: Iterable[Mapping[str, Any]], node: str) -> str:
    """Return objects as a List that `--manifests` reads, as many as fit into a file."""
    lines: list[str] = []
    size = 0
    for item in found:
        if (shared := shared_object(item, node)) is not None:
            line = json.dumps(shared, default=str)
            size += len(line) + 2
            if size > MOST_BYTES - 100:
                break
            lines.append(line)
    return '{"apiVersion": "v1", "kind": "List", "items": [\n' + ",\n".join(lines) + "\n]}\n"


def _text(path: str | Path) -> str:
    """Return the first part of a file.

    Raises:
        MissingError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(MOST_BYTES + 1).decode(errors="replace")
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise MissingError(message) from error


def _sysctls() -> str:
    lines = []
    for pattern in _SYSCTLS:
        for path in sorted(Path("/proc/sys").glob(pattern)):
            if path.is_file():
                try:
                    # Values with several numbers are separated by tabs, as ip_local_port_range.
                    value = " ".join(path.read_text().split())
                except OSError as error:
                    value = f"not available: {error.strerror}"
                lines.append(f"{path.relative_to('/proc/sys')} = {value}")
    return "\n".join(lines) + "\n"


async def _journal() -> str:
    units = ("--unit=pyproxy.service", "--unit=kube-proxy.service")
    text = await output(["journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={_LOG_LINES}", *units])
    # Without entries or without rights journalctl only says so on standard error, often with exit status 0.
    first, _, complaint = text.partition("\n-- standard error\n")
    if not first.strip():
        raise MissingError(complaint.strip() or "the journal has no entries of these units")
    return text


def _pod_logs() -> str:
    paths = [path for pattern in _POD_LOGS for path in sorted(Path("/var/log/pods").glob(f"{pattern}/*/*.log"))]
    if not paths:
        message = "/var/log/pods has no log of the proxy; use: kubectl --namespace kube-system logs POD"
        raise MissingError(message)
    parts = []
    for path in paths:
        try:
            with path.open("rb") as file:
                # The end of a log has the latest errors.
                file.seek(max(0, os.fstat(file.fileno()).st_size - _POD_LOG_BYTES))
                parts.append(f"-- {path}\n{file.read().decode(errors='replace')}")
        except OSError as error:
            parts.append(f"-- {path}: {error.strerror}\n")
    return "\n".join(parts)
