"""One file of Kubernetes objects, in YAML or JSON, to a `Manifest`.

It is a pure function of the bytes, and never raises. Each part that cannot be used is a problem that names its place.
`file_objects` finds problems that involve several files, such as the same object in two files. JSON has a fast path that
decodes valid objects only; an object with any irregularity takes the slow path, which is the same for JSON and YAML.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import msgspec

from pyproxy.decode import wire
from pyproxy.decode.fields import shown
from pyproxy.decode.objects import (
    CLUSTER_WIDE,
    DEFAULT_NAMESPACE,
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
from pyproxy.manifests.pods import Pod, pods_of
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService
from pyproxy.yaml_documents import YamlDocument, yaml_documents

T = TypeVar("T")
WireObject = wire.Service | wire.EndpointSlice | wire.Endpoints | wire.Node | wire.ServiceCIDR

API_VERSIONS: Mapping[str, str] = {
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Endpoints": "v1",
    "Node": "v1",
    "ServiceCIDR": "networking.k8s.io/v1",
}
"""The kinds that are read. A kind of the same name in another API group (Knative has a Service) is skipped."""

_WIRE_TYPES: Mapping[str, type[WireObject]] = {
    "Service": wire.Service,
    "EndpointSlice": wire.EndpointSlice,
    "Endpoints": wire.Endpoints,
    "Node": wire.Node,
    "ServiceCIDR": wire.ServiceCIDR,
}
# Python's parser accepts the escape of half a character, which cannot be written to any output; msgspec refuses it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Kinds of lists, with the kind of items that have none.
_LISTS = {"List": "", **{f"{kind}List": kind for kind in API_VERSIONS}}
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# The label managed-by of the slices that kube-controller-manager makes: from Pods, and from Endpoints.
_CONTROLLERS = frozenset({"endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"})


class _Document(msgspec.Struct, frozen=True, gc=False):
    kind: str | None = None
    items: list[msgspec.Raw] | None = None


_DOCUMENT = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A part of a file that cannot be used, or not completely."""

    file: str
    place: str
    """``line 14``, or ``items[3]`` if lines are not known; empty for the whole file."""
    error: DecodeError

    @property
    def where(self) -> str:
        """Return the file, and the place in it."""
        return f"{self.file}, {self.place}" if self.place else self.file

    def __str__(self) -> str:
        return f"{self.where}: {self.error}"


class Place(NamedTuple):
    """The place of an object in a file."""

    document: YamlDocument | None = None
    """The document of the object in YAML, which knows the line of each field."""
    line: int = 0
    """Line of the document in a series of JSON documents."""
    item: int | None = None
    """Index in a list of objects."""

    # Only YAML knows the line of each field. JSON has the line of a document, or the index in a list, which is usually the
    # whole file on one line.
    def of(self, path: str) -> str:
        """Return the place of a field of the object: ``line 14``, or ``items[3]`` if lines are not known."""
        if self.document is not None:
            line = self.document.line(path if self.item is None else f"items[{self.item}].{path}")
            return f"line {line}"
        if self.line:
            return f"line {self.line}"
        return "" if self.item is None else f"items[{self.item}]"


class LocatedObject(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A usable object and its place."""

    object: T
    file: str
    place: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}" if self.place else self.file


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of one file, in the order of the file."""

    services: tuple[LocatedObject[Service], ...]
    slices: tuple[LocatedObject[EndpointSlice], ...]
    endpoints: tuple[LocatedObject[tuple[EndpointSlice, ...]], ...]
    """core/v1 Endpoints, as slices."""
    nodes: tuple[LocatedObject[Node], ...]
    service_cidrs: tuple[LocatedObject[ServiceCidr], ...]
    unserved: tuple[LocatedObject[UnservedService], ...]
    """Services that have no rules."""
    controlled: frozenset[NamespacedName]
    """Services that have a slice of a controller, so that their core/v1 Endpoints have nothing new."""
    selecting: frozenset[NamespacedName]
    """Services with a selector: a cluster makes their slices from Pods, not from core/v1 Endpoints."""
    problems: tuple[FileProblem, ...]
    skipped: Counter[str]
    """Number of objects of each kind that is not read."""
    is_whole: bool
    """False if a syntax error hides objects."""
    pods: tuple[Pod, ...] = ()
    """Empty unless pods were requested."""


def read_manifest(file: str, data: bytes, proxy_name: str = "", *, with_pods: bool = False) -> Manifest:
    """Read all objects of a file; messages name it `file`, and `proxy_name` is that of `decode_service`."""
    reading = _Reading(file, proxy_name, [] if with_pods else None)
    data = data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
    # A file that begins with a brace is JSON, as for kubectl (k8s.io/apimachinery/pkg/util/yaml, NewYAMLOrJSONDecoder).
    if data.lstrip().startswith((b"{", b"[")):
        reading.read_json(data)
    else:
        reading.read_yaml(data)
    return reading.manifest()


class _Reading:
    """The state of reading a file."""

    def __init__(self, file: str, proxy_name: str, pods: list[Pod] | None) -> None:
        self._pods = pods  # None: they were not requested
        self._file = file
        self._proxy_name = proxy_name
        self._services: list[LocatedObject[Service]] = []
        self._slices: list[LocatedObject[EndpointSlice]] = []
        self._endpoints: list[LocatedObject[tuple[EndpointSlice, ...]]] = []
        self._nodes: list[LocatedObject[Node]] = []
        self._service_cidrs: list[LocatedObject[ServiceCidr]] = []
        self._unserved: list[LocatedObject[UnservedService]] = []
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
            tuple(self._pods or ()),
        )

    def read_json(self, data: bytes) -> None:
        try:
            document = _DOCUMENT.decode(data)
        except _UNDECODABLE:
            document = None
        if document is None:
            # Several documents, or a syntax error: msgspec decodes one document only and does not know lines.
            text = data.decode(errors="replace").rstrip()
            position = 0
            while position < len(text):
                position = next(index for index in range(position, len(text)) if not text[index].isspace())
                line = text.count("\n", 0, position) + 1
                try:
                    tree, end = json.JSONDecoder().raw_decode(text, position)
                    if _SURROGATE.search(text, position, end):
                        msgspec.json.decode(text[position:end])
                    position = end
                except json.JSONDecodeError as error:
                    self._break_off("JSON", error.msg, error.lineno)
                    return
                except (ValueError, RecursionError, msgspec.DecodeError) as error:
                    self._break_off("JSON", str(error), line)
                    return
                self._read_document(tree, Place(line=line))
            return
        # Items of a list are `Raw`: each is decoded on its own, so that an invalid one costs only itself.
        if document.kind not in _LISTS:
            self._read_json_object(data, "", Place())
            return
        for index, item in enumerate(document.items or ()):
            self._read_json_object(item, _LISTS[document.kind], Place(item=index))

    def _read_json_object(self, data: bytes | msgspec.Raw, kind: str, place: Place) -> None:
        try:
            # These types have no Pod, and do not decode the pods of endpoints.
            known = KNOWN_OBJECT.decode(data) if self._pods is None else None
        except _UNDECODABLE:
            known = None
        if known is not None:
            self._add(known, place)
            return
        try:
            tree = msgspec.json.decode(data)
        except _UNDECODABLE as error:
            # msgspec finds it only when it builds the value: text that is not UTF-8, or a number out of range.
            self._report("document", "", str(error), place)
        else:
            self._read_tree(tree, kind, place)

    def read_yaml(self, data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            self._break_off("YAML", "not UTF-8", data.count(b"\n", 0, error.start) + 1)
            return
        for document in yaml_documents(text):
            if isinstance(document, YamlDocument):
                self._read_document(document.tree, Place(document=document))
            else:
                self._break_off("YAML", document.reason, document.line)

    def _break_off(self, language: str, reason: str, line: int) -> None:
        self._is_whole = False
        error = DecodeError(language, "", reason)
        self._problems.append(FileProblem(self._file, f"line {line}" if line else "", error))

    def _read_document(self, tree: object, place: Place) -> None:
        kind = tree.get("kind") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(kind, str) or kind not in _LISTS:
            self._read_tree(tree, "", place)
            return
        items = tree.get("items") or ()
        if not isinstance(items, list):
            self._report(kind, "items", "not a list of objects", place)
            return
        for index, item in enumerate(items):
            self._read_tree(item, _LISTS[kind], place._replace(item=index))

    def _read_tree(self, tree: object, implied_kind: str, place: Place) -> None:
        if tree is None:
            return
        kind = (tree.get("kind") or implied_kind) if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(kind, str) or not kind:
            self._report("document", "kind", "missing; this is not a Kubernetes object", place)
        elif kind in _LISTS:
            self._report(kind, "kind", "lists within a list are not read", place)
        elif self._pods is not None and kind == "Pod":
            self._pods += pods_of(kind, tree)
        elif kind not in API_VERSIONS:
            self._skipped[shown(kind)] += 1
        else:
            if self._pods is not None:
                self._pods += pods_of(kind, tree)
            self._read_object(kind, tree, implied_kind, place)

    def _read_object(self, kind: str, tree: dict[object, object], implied_kind: str, place: Place) -> None:
        metadata = tree.get("metadata")
        known = metadata if isinstance(metadata, dict) else {}
        namespace = "" if kind in CLUSTER_WIDE else str(known.get("namespace") or DEFAULT_NAMESPACE)
        name = NamespacedName(namespace, str(known.get("name") or ""))
        what = subject(kind, name)
        wanted = API_VERSIONS[kind]
        api_version = tree.get("apiVersion") or (wanted if implied_kind else "")
        if not api_version:
            self._report(what, "apiVersion", f"missing; read as {wanted}", place)
        elif api_version != wanted:
            # v1beta1 of our group is a mistake to report; another group's kind of the same name is not for us.
            if _group(api_version) == _group(wanted):
                reason = f"{shown(str(api_version))} is not supported, only {wanted}"
                self._report(what, "apiVersion", reason, place)
            else:
                self._skipped[f"{kind} of {shown(str(api_version))}"] += 1
            return
        # Unknown fields are reported, and the object is used without them: a newer API may have more fields.
        for path, reason in unknown_fields(kind, tree):
            self._report(what, path, reason, place)
        try:
            self._add(msgspec.convert(tree, _WIRE_TYPES[kind]), place)
        except msgspec.ValidationError as error:
            # A wrong JSON type costs the object: msgspec stops at the first one, and gives no partial result.
            problem = wrong_type(what, error)
            self._problems.append(FileProblem(self._file, place.of(problem.field), problem))
            if kind == "Service":
                self._keep_unserved(UnservedService(name, problem=problem.complaint), place)

    def _report(self, what: str, field: str, reason: str, place: Place) -> None:
        self._problems.append(FileProblem(self._file, place.of(field), DecodeError(what, field, reason)))

    def _add(self, known: WireObject, place: Place) -> None:
        match known:
            case wire.Service():
                decoded_service = decode_service(known, self._proxy_name)
                self._keep(self._services, decoded_service, place)
                if decoded_service.unserved:
                    self._keep_unserved(decoded_service.unserved, place)
                if decoded_service.object and known.spec and known.spec.selector:
                    self._selecting.add(decoded_service.object.name)
            case wire.EndpointSlice():
                decoded = decode_endpoint_slice(known)
                self._keep(self._slices, decoded, place)
                labels = (known.metadata or wire.NO_METADATA).labels
                if decoded.object and labels and labels.managed_by in _CONTROLLERS:
                    self._controlled.add(decoded.object.service)
            case wire.Endpoints():
                self._keep(self._endpoints, decode_endpoints(known), place)
            case wire.Node():
                self._keep(self._nodes, decode_node(known), place)
            case wire.ServiceCIDR():
                self._keep(self._service_cidrs, decode_service_cidr(known), place)

    def _keep_unserved(self, service: UnservedService, place: Place) -> None:
        self._unserved.append(LocatedObject(service, self._file, place.of("")))

    def _keep(self, found: list[LocatedObject[T]], decoded: Decoded[T], place: Place) -> None:
        for error in decoded.problems:
            self._problems.append(FileProblem(self._file, place.of(error.field), error))
        if decoded.object is not None:
            found.append(LocatedObject(decoded.object, self._file, place.of("")))


def _group(api_version: object) -> str:
    return str(api_version).rpartition("/")[0]
