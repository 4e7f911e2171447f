"""Names, addresses and ports of pods: from Pod objects, and from the ``targetRef`` of endpoints.

Only commands that explain traffic need them. What cannot be read is left out: a Pod in a file is never a problem.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pyproxy.model.address import parse_ip
from pyproxy.model.names import NamespacedName

# Names of objects, and numbers and protocols of ports.
_PRINTED = re.compile(r"[-./A-Za-z0-9]{1,253}")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as far as packets depend on it."""

    name: NamespacedName
    ips: tuple[bytes, ...]
    node_name: str
    """Empty: not known."""
    ports: tuple[str, ...] = ()
    """The ports that its containers declare, such as ``8080/TCP``; empty if none is known."""


def pods_of(kind: str, tree: object) -> Iterator[Pod]:
    """Yield the pods that an object names: a Pod itself, or those of an EndpointSlice."""
    metadata = _mapping(_mapping(tree).get("metadata"))
    namespace = _text(metadata.get("namespace")) or "default"
    if kind == "Pod":
        status, spec = _mapping(_mapping(tree).get("status")), _mapping(_mapping(tree).get("spec"))
        # The kubelet keeps podIP equal to podIPs[0]; both are empty until the pod has a sandbox.
        texts = [_mapping(item).get("ip") for item in _items(status.get("podIPs"))] or [status.get("podIP")]
        name = _text(metadata.get("name"))
        if name and (ips := _ips(texts)):
            ports = tuple(
                f"{port.get('containerPort')}/{_text(port.get('protocol')) or 'TCP'}"
                for container in map(_mapping, _items(spec.get("containers")))
                for port in map(_mapping, _items(container.get("ports")))
            )
            yield from _valid(Pod(NamespacedName(namespace, name), ips, _text(spec.get("nodeName")), ports))
    elif kind == "EndpointSlice":
        # A slice has the names of its pods as well, so that files without Pods still have names.
        for item in _items(_mapping(tree).get("endpoints")):
            endpoint = _mapping(item)
            target = _mapping(endpoint.get("targetRef"))
            name = _text(target.get("name"))
            if name and target.get("kind") == "Pod" and (ips := _ips(_items(endpoint.get("addresses"))[:1])):
                at = NamespacedName(_text(target.get("namespace")) or namespace, name)
                yield from _valid(Pod(at, ips, _text(endpoint.get("nodeName"))))


def _valid(pod: Pod) -> Iterator[Pod]:
    # An API server does not validate the target of an endpoint, whose text could control the terminal of a reader.
    texts = (pod.name.namespace, pod.name.name, pod.node_name or "unknown", *pod.ports)
    if all(_PRINTED.fullmatch(text) for text in texts):
        yield pod


def merged_pods(pods: Iterator[Pod]) -> tuple[Pod, ...]:
    """Return each pod once, with the addresses of both families."""
    found: dict[NamespacedName, Pod] = {}
    for pod in pods:
        before = found.get(pod.name, pod)
        ips = tuple(dict.fromkeys((*before.ips, *pod.ips)))
        found[pod.name] = Pod(pod.name, ips, before.node_name or pod.node_name, before.ports or pod.ports)
    return tuple(found.values())


def _mapping(value: object) -> dict[object, object]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _ips(texts: list[object]) -> tuple[bytes, ...]:
    found = []
    for text in texts:
        try:
            found.append(parse_ip(_text(text)))
        except ValueError:
            continue
    return tuple(found)
