"""Checks of the proxy that runs on this node, by what its servers answer."""

import asyncio
import json
import re
from contextlib import suppress
from pathlib import Path

from pyproxy.config.config import Config
from pyproxy.decode.fields import shown
from pyproxy.doctor.finding import Finding, NotCheckedError, fail, info, require_objects, warn
from pyproxy.doctor.inputs import KUBE_PROXY, PYPROXY, AgentAnswers, Inputs
from pyproxy.errors import SourceError
from pyproxy.model.address import LOOPBACK_IPS, Family, ListenAddress, ip_text
from pyproxy.serve.local_page import get_page, reachable
from pyproxy.takeover.running_proxy import detect_running_proxy

_TIMEOUT_SECONDS = 5
_MOST_BYTES = 16 << 20
_MOST_AT_ONCE = 64  # connections, of which each needs a file descriptor
# A line of the text format: name with labels, and value. Labels of the samples that are read have no spaces.
_SAMPLE = re.compile(r"^([a-zA-Z_:][^#\s]*) (NaN|[+-]?(?:Inf|[0-9][0-9.e+-]*))$", re.MULTILINE)
_MARKER = "pyproxy_build_info"
_WATCH = re.compile(r'pyproxy_watch_up\{kind="(.*)"\}')
# The link reads "net:[4026531840]": equal for processes in the same namespace.
_SAME_NETWORK = "/proc/self/ns/net"


async def ask_agent(config: Config) -> AgentAnswers:
    """Return what the servers at the configured addresses answer."""
    metrics, health = config.metrics_bind_address, config.healthz_bind_address
    if not isinstance(metrics, ListenAddress):
        metrics = None
    # The metrics decide whose servers they are: both proxies have /proxyMode and /healthz.
    text = await _get(metrics, "/metrics")
    samples: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        with suppress(ValueError):  # the port may be another program's, and its text anything
            samples[name] = float(value)
    mode = await _get(metrics, "/proxyMode") if text else ""
    is_ours = any(name.startswith(_MARKER) for name in samples)
    is_proxy = is_ours or any(name.startswith("kubeproxy_") for name in samples)
    return AgentAnswers(
        proxy=PYPROXY if is_ours else KUBE_PROXY if is_proxy else "",
        mode=mode if is_proxy else "",
        metrics_url=f"http://{reachable(metrics)}" if metrics else "",
        health_url=f"http://{reachable(health)}" if health else "",
        metrics=samples,
        healthz=_json(await _get(health, "/healthz")),
        readyz=_json(await _get(health, "/readyz")) if is_ours else {},
    )


async def _get(address: ListenAddress | None, path: str) -> str:
    if address is None:
        return ""
    try:
        return (await get_page(reachable(address), path, _MOST_BYTES, _TIMEOUT_SECONDS)).strip()
    except OSError:
        return ""


def _json(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


async def check_running(inputs: Inputs) -> list[Finding]:
    """Rules without an agent keep working, but changes of Services do not arrive."""
    agent = inputs.agent
    if agent.proxy == PYPROXY:
        return []
    if not agent.metrics_url:
        message = "--metrics-bind-address is not one address"
        raise NotCheckedError(message)
    if any(each.owner == PYPROXY for each in inputs.rules.found):
        return [
            fail(
                f"pyproxy's rules are in the kernel, but no pyproxy answers on {agent.metrics_url}: changes of Services do"
                " not arrive",
                f"curl {agent.metrics_url}/metrics",
                "start pyproxy, or pyproxy cleanup; if it uses another address, --metrics-bind-address",
            )
        ]
    text = f"no pyproxy answers on {agent.metrics_url}"
    if not inputs.rules.error:
        text += ", and the kernel has no rules of pyproxy"
    return [info(text, f"curl {agent.metrics_url}/metrics", "start pyproxy")]


async def check_last_sync(inputs: Inputs) -> list[Finding]:
    """The health server knows for how long changes of each family have been pending."""
    agent = _require_agent(inputs)
    evidence = f"curl {agent.health_url}/healthz"
    # As kube-proxy, by family: changes that are not in the kernel after a time limit make a family unhealthy.
    families = agent.healthz.get("status")
    found = [
        fail(
            f"{family}: changes are pending for too long; last sync {state.get('lastUpdated')}",
            evidence,
            "look for the reason in the log of pyproxy, and on /statusz",
        )
        for family, state in (families.items() if isinstance(families, dict) else ())
        if not state.get("healthy")
    ]
    if not found and agent.readyz.get("firstSyncDone") is False:
        return [fail("the first sync is not complete", f"curl {agent.health_url}/readyz", "look at the log of pyproxy")]
    if not found and agent.readyz.get("lastSyncGood") is False:
        return [fail("the last sync failed", f"curl {agent.health_url}/readyz", "look at the log of pyproxy")]
    return found


async def check_health_ports(inputs: Inputs) -> list[Finding]:
    """Load balancers avoid a node whose health check node port does not answer."""
    _require_agent(inputs)
    names: dict[int, str] = {}
    for service in require_objects(inputs).services:
        if service.health_check_node_port:
            names.setdefault(service.health_check_node_port, f"{shown(service.namespace)}/{shown(service.name)}")
    ip = next(iter(inputs.node.ips), LOOPBACK_IPS[Family.IPV4])
    limit = asyncio.Semaphore(_MOST_AT_ONCE)

    async def get(number: int) -> str:
        async with limit:
            return await _get(ListenAddress(ip, number), "/")

    # At the same time: behind a rule that drops them, each would take its whole time limit.
    answers = await asyncio.gather(*map(get, names))
    return [
        warn(
            f"health check node port {number} of {name} is {'used by another program' if answer else 'not served'}",
            f"curl {ip_text(ip)}:{number}; ss -ltnp",
            "stop the program that uses the port",
        )
        for (number, name), answer in zip(names.items(), answers, strict=True)
        if _json(answer).get("service") is None
    ]


async def check_watches(inputs: Inputs) -> list[Finding]:
    """While a watch is lost, Services keep working but changes do not arrive."""
    agent = _require_agent(inputs)
    lost = [match[1] for name, up in agent.metrics.items() if not up and (match := _WATCH.fullmatch(name))]
    if not lost:
        return []
    seconds = agent.readyz.get("watchesLostSeconds", 0)
    return [
        warn(
            f"the watch of {', '.join(lost)} is lost, for {seconds:.0f} s: changes do not arrive"
            if isinstance(seconds, int | float)
            else f"the watch of {', '.join(lost)} is lost: changes do not arrive",
            f"curl {agent.metrics_url}/metrics (pyproxy_watch_up)",
            "check the connection to the API server and the credentials; the log has the reason",
        )
    ]


async def check_quarantine(inputs: Inputs) -> list[Finding]:
    """A Service port that the kernel refused has its last good rules, or none."""
    agent = _require_agent(inputs)
    count = sum(value for name, value in agent.metrics.items() if name.startswith("pyproxy_quarantined_service_ports"))
    if not count:
        return []
    return [
        fail(
            f"the kernel refused the rules of {count:.0f} Service port{'s' if count > 1 else ''}, now quarantined",
            f"curl {agent.metrics_url}/statusz",
            "/statusz has the Service ports and the kernel's error",
        )
    ]


async def check_other_proxy(inputs: Inputs) -> list[Finding]:
    """Two proxies undo each other's changes."""
    # Side-by-side a running kube-proxy is what the user wants.
    if inputs.config.service_proxy_name:
        return []
    proxy = inputs.agent.proxy
    evidence = "ps; curl 127.0.0.1:10249/proxyMode"
    text = await asyncio.to_thread(_kube_proxy_process)
    if not text and proxy != PYPROXY:
        text = await detect_running_proxy(inputs.config)
    if not text:
        return []
    if proxy == PYPROXY or any(each.owner == PYPROXY for each in inputs.rules.found):
        return [fail(f"another proxy is running on this node: {text}", evidence, "stop one of the two")]
    return [info(f"another proxy is running on this node: {text}", evidence)]


def _kube_proxy_process() -> str:
    # A kube-proxy in another network namespace, such as that of a node made of a container, is not a rival. One in another PID
    # namespace cannot be seen here, but its servers can.
    here = Path(_SAME_NETWORK).readlink()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip() == "kube-proxy" and (folder / "ns/net").readlink() == here:
                program = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                # pyproxy under the name kube-proxy is a Python script.
                if "python" not in program:
                    return f"process {folder.name}, {program}"
        except PermissionError as error:
            message = f"process {folder.name} is a kube-proxy, but its network namespace cannot be read"
            raise SourceError(message) from error
        except OSError:
            continue  # The process exited.
    return ""


def _require_agent(inputs: Inputs) -> AgentAnswers:
    if inputs.agent.proxy != PYPROXY:
        message = "no pyproxy answers"
        raise NotCheckedError(message)
    return inputs.agent
