"""One file of Kubernetes objects, YAML or JSON, to what is in it.

Law of this file: a pure function from bytes to a `Manifest`; nothing in the bytes can make it raise. Whatever cannot be
used is a problem that names its place. What one file cannot know (the same object elsewhere) is `file_objects`' part.
Plain JSON takes a fast path that knows good objects only; whatever is odd in an object shows on the slow path, where
JSON and YAML are the same.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import msgspec

from pyproxy.decode import wire
from pyproxy.decode.fields import shown
from pyproxy.decode.objects import (
    CLUSTER_WIDE,
    Decoded,
    decode_endpoint_slice,
    decode_endpoints,
    decode_node,
    decode_service,
    decode_service_cidr,
    subject,
    wrong_type,
)
from pyproxy.errors import DecodeError
from pyproxy.manifests.known_fields import KNOWN_OBJECT, unknown_fields
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService
from pyproxy.yaml_documents import YamlDocument, yaml_documents

T = TypeVar("T")
WireObject = wire.Service | wire.EndpointSlice | wire.Endpoints | wire.Node | wire.ServiceCIDR
Locate = Callable[[str], str]
"""From the path of a field within an object to the place in the file."""

API_VERSIONS: Mapping[str, str] = {
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Endpoints": "v1",
    "Node": "v1",
    "ServiceCIDR": "networking.k8s.io/v1",
}
"""The kinds that are read; a kind of that name in another group (Knative has a Service) is none of ours."""

_WIRE_TYPES: Mapping[str, type[WireObject]] = {
    "Service": wire.Service,
    "EndpointSlice": wire.EndpointSlice,
    "Endpoints": wire.Endpoints,
    "Node": wire.Node,
    "ServiceCIDR": wire.ServiceCIDR,
}
_LISTS = {"List": "", **{f"{kind}List": kind for kind in API_VERSIONS}}
"""Kinds of lists, with the kind that their items need not say."""
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)
_CONTROLLERS = frozenset({"endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"})


class _Document(msgspec.Struct, frozen=True, gc=False):
    kind: str | None = None
    items: list[msgspec.Raw] | None = None


_DOCUMENT = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Something in a file that cannot be used, or not as it is."""

    file: str
    place: str
    """``line 14``, or ``items[3]`` where lines are not known; empty for the whole file."""
    error: DecodeError

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.error}" if self.place else f"{self.file}: {self.error}"


class LocatedObject(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A usable object and where it stands."""

    object: T
    file: str
    place: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}" if self.place else self.file


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in one file, in its order."""

    services: tuple[LocatedObject[Service], ...]
    slices: tuple[LocatedObject[EndpointSlice], ...]
    endpoints: tuple[LocatedObject[tuple[EndpointSlice, ...]], ...]
    """core/v1 Endpoints, as slices."""
    nodes: tuple[LocatedObject[Node], ...]
    service_cidrs: tuple[LocatedObject[ServiceCidr], ...]
    unserved: tuple[UnservedService, ...]
    """Services that have no rules."""
    controlled: frozenset[NamespacedName]
    """Services that have a slice made by a controller, so that their core/v1 Endpoints say nothing new."""
    selecting: frozenset[NamespacedName]
    """Services with a selector: a cluster makes their slices from Pods, never from core/v1 Endpoints."""
    problems: tuple[FileProblem, ...]
    skipped: Counter[str]
    """How many objects there are of each kind that is none of ours."""
    is_whole: bool
    """False where a syntax error hides objects."""


def read_manifest(file: str, data: bytes, proxy_name: str = "") -> Manifest:
    """Read all objects of a file; `file` is how messages call it, and `proxy_name` is as in `decode_service`."""
    reading = _Reading(file, proxy_name)
    data = data.removeprefix(b"\xef\xbb\xbf")
    # A brace makes it JSON, as for kubectl (k8s.io/apimachinery/pkg/util/yaml, NewYAMLOrJSONDecoder).
    if data.lstrip().startswith((b"{", b"[")):
        reading.read_json(data)
    else:
        reading.read_yaml(data)
    return reading.manifest()


class _Reading:
    """A file that is being read."""

    def __init__(self, file: str, proxy_name: str) -> None:
        self._file = file
        self._proxy_name = proxy_name
        self._services: list[LocatedObject[Service]] = []
        self._slices: list[LocatedObject[EndpointSlice]] = []
        self._endpoints: list[LocatedObject[tuple[EndpointSlice, ...]]] = []
        self._nodes: list[LocatedObject[Node]] = []
        self._service_cidrs: list[LocatedObject[ServiceCidr]] = []
        self._unserved: list[UnservedService] = []
        self._controlled: set[NamespacedName] = set()
        self._selecting: set[NamespacedName] = set()
        self._problems: list[FileProblem] = []
        self._skipped: Counter[str] = Counter()
        self._is_whole = True

    def manifest(self) -> Manifest:
        return Manifest(
            tuple(self._services),
            tuple(self._slices),
            tuple(self._endpoints),
            tuple(self._nodes),
            tuple(self._service_cidrs),
            tuple(self._unserved),
            frozenset(self._controlled),
            frozenset(self._selecting),
            tuple(self._problems),
            self._skipped,
            self._is_whole,
        )

    def read_json(self, data: bytes) -> None:
        try:
            document = _DOCUMENT.decode(data)
        except (*_UNDECODABLE, RecursionError):
            self._read_json_stream(data)
            return
        if document.kind not in _LISTS:
            self._read_json_object(data, "", _nowhere)
            return
        for index, item in enumerate(document.items or ()):
            self._read_json_object(item, _LISTS[document.kind], partial(_at_item, index))

    def _read_json_object(self, data: bytes | msgspec.Raw, kind: str, locate: Locate) -> None:
        try:
            known = KNOWN_OBJECT.decode(data)
        except _UNDECODABLE:
            self._read_odd_json_object(data, kind, locate)
        else:
            self._take(known, locate)

    def _read_odd_json_object(self, data: bytes | msgspec.Raw, kind: str, locate: Locate) -> None:
        try:
            tree = msgspec.json.decode(data)
        except _UNDECODABLE as error:
            # Only the value itself shows it: text that is no UTF-8, a number beyond all measure.
            self._say("document", "", str(error), locate)
        else:
            self._read_tree(tree, kind, locate)

    def _read_json_stream(self, data: bytes) -> None:
        """Read JSON documents one after another, with the line of whatever is no JSON."""
        text = data.decode(errors="replace").rstrip()
        position = 0
        while position < len(text):
            position = next(index for index in range(position, len(text)) if not text[index].isspace())
            line = text.count("\n", 0, position) + 1
            try:
                tree, position = json.JSONDecoder().raw_decode(text, position)
            except json.JSONDecodeError as error:
                self._break_off("JSON", error.msg, error.lineno)
                return
            except (ValueError, RecursionError) as error:
                self._break_off("JSON", str(error), line)
                return
            self._read_document(tree, partial(_at_line, line))

    def read_yaml(self, data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            self._break_off("YAML", "no UTF-8 text", data.count(b"\n", 0, error.start) + 1)
            return
        for document in yaml_documents(text):
            if isinstance(document, YamlDocument):
                self._read_document(document.tree, partial(_at_field, document))
            else:
                self._break_off("YAML", document.reason, document.line)

    def _break_off(self, language: str, reason: str, line: int) -> None:
        self._is_whole = False
        error = DecodeError(language, "", reason)
        self._problems.append(FileProblem(self._file, f"line {line}" if line else "", error))

    def _read_document(self, tree: object, locate: Locate) -> None:
        """Read an object, or a list of objects in which there is no further list."""
        kind = tree.get("kind") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(kind, str) or kind not in _LISTS:
            self._read_tree(tree, "", locate)
            return
        items = tree.get("items") or ()
        if not isinstance(items, list):
            self._say(kind, "items", "no list of objects", locate)
            return
        for index, item in enumerate(items):
            self._read_tree(item, _LISTS[kind], partial(_within_item, locate, index))

    def _read_tree(self, tree: object, implied_kind: str, locate: Locate) -> None:
        if tree is None:
            return
        kind = (tree.get("kind") or implied_kind) if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(kind, str) or not kind:
            self._say("document", "kind", "missing; this is no Kubernetes object", locate)
        elif kind in _LISTS:
            self._say(kind, "kind", "a list within a list is not read", locate)
        elif kind not in API_VERSIONS:
            self._skipped[shown(kind)] += 1
        else:
            self._read_object(kind, tree, implied_kind, locate)

    def _read_object(self, kind: str, tree: dict[object, object], implied_kind: str, locate: Locate) -> None:
        what = subject(kind, _name_in_tree(kind, tree))
        if not self._is_ours(
            kind, tree.get("apiVersion") or (API_VERSIONS[kind] if implied_kind else ""), what, locate
        ):
            return
        for path, reason in unknown_fields(kind, tree):
            self._say(what, path, reason, locate)
        try:
            self._take(msgspec.convert(tree, _WIRE_TYPES[kind]), locate)
        except msgspec.ValidationError as error:
            problem = wrong_type(what, error)
            self._problems.append(FileProblem(self._file, locate(problem.field), problem))
            if kind == "Service":
                name = _name_in_tree(kind, tree)
                self._unserved.append(UnservedService(name, problem=problem.complaint))

    def _is_ours(self, kind: str, api_version: object, what: str, locate: Locate) -> bool:
        wanted = API_VERSIONS[kind]
        if api_version == wanted:
            return True
        if not api_version:
            self._say(what, "apiVersion", f"missing; taken for {wanted}", locate)
            return True
        if _group(api_version) == _group(wanted):
            self._say(what, "apiVersion", f"{shown(str(api_version))} is not read, only {wanted}", locate)
        else:
            self._skipped[f"{kind} of {shown(str(api_version))}"] += 1
        return False

    def _say(self, what: str, field: str, reason: str, locate: Locate) -> None:
        self._problems.append(FileProblem(self._file, locate(field), DecodeError(what, field, reason)))

    def _take(self, known: WireObject, locate: Locate) -> None:
        match known:
            case wire.Service():
                decoded_service = decode_service(known, self._proxy_name)
                self._keep(self._services, decoded_service, locate)
                if decoded_service.unserved:
                    self._unserved.append(decoded_service.unserved)
                if decoded_service.object and known.spec and known.spec.selector:
                    self._selecting.add(decoded_service.object.name)
            case wire.EndpointSlice():
                decoded = decode_endpoint_slice(known)
                self._keep(self._slices, decoded, locate)
                labels = (known.metadata or wire.NO_METADATA).labels
                if decoded.object and labels and labels.managed_by in _CONTROLLERS:
                    self._controlled.add(decoded.object.service)
            case wire.Endpoints():
                self._keep(self._endpoints, decode_endpoints(known), locate)
            case wire.Node():
                self._keep(self._nodes, decode_node(known), locate)
            case wire.ServiceCIDR():
                self._keep(self._service_cidrs, decode_service_cidr(known), locate)

    def _keep(self, found: list[LocatedObject[T]], decoded: Decoded[T], locate: Locate) -> None:
        for error in decoded.problems:
            self._problems.append(FileProblem(self._file, locate(error.field), error))
        if decoded.object is not None:
            found.append(LocatedObject(decoded.object, self._file, locate("")))


def _nowhere(_: str) -> str:
    return ""


def _at_item(index: int, _: str) -> str:
    return f"items[{index}]"


def _at_line(line: int, _: str) -> str:
    return f"line {line}"


def _at_field(document: YamlDocument, path: str) -> str:
    return f"line {document.line(path)}"


def _within_item(locate: Locate, index: int, path: str) -> str:
    return locate(f"items[{index}].{path}")


def _group(api_version: object) -> str:
    return str(api_version).rpartition("/")[0]


def _name_in_tree(kind: str, tree: dict[object, object]) -> NamespacedName:
    metadata = tree.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    name = str(known.get("name") or "")
    return NamespacedName("" if kind in CLUSTER_WIDE else str(known.get("namespace") or "default"), name)
