"""Incremental reading of changed files gives the same objects and problems as reading all files."""

from collections.abc import Iterable, Mapping, Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from pyproxy.manifests.file_changes import FileIndex
from pyproxy.manifests.file_objects import FileObjects, combine
from pyproxy.manifests.manifest import Manifest, read_manifest
from pyproxy.model.change import Kind, Object, ObjectChange, Put, Removed, Unserved
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService

Known = dict[tuple[Kind, str], Object | UnservedService]
"""Objects by kind and name."""
KINDS = {
    Service: Kind.SERVICE,
    EndpointSlice: Kind.ENDPOINT_SLICE,
    Node: Kind.NODE,
    ServiceCidr: Kind.SERVICE_CIDR,
}
NAMES = ("a", "b", "c")
IPS = ("10.96.0.1", "10.96.0.2", "10.96.0.3")
CONTROLLER = "endpointslice-controller.k8s.io"
PATHS = ("1.yaml", "2.yaml", "3.yaml", "4.yaml")


def service(
    name: str, cluster_ip: str, external_ips: list[str], ports: tuple[int, int] = (30001, 30003), selector: str = "{}"
) -> str:
    """Return a Service with addresses and ports that other Services may also claim."""
    return f"""
kind: Service
apiVersion: v1
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: {ports[1]}
  clusterIP: {cluster_ip}
  selector: {selector}
  externalIPs: {external_ips}
  ports: [{{port: 80, nodePort: {ports[0]}}}]
"""


def endpoint_slice(name: str, owner: str, ip: str, manager: str) -> str:
    """Return a slice."""
    return f"""
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {owner}, endpointslice.kubernetes.io/managed-by: {manager}}}}}
addressType: IPv4
ports: [{{port: 80}}]
endpoints: [{{addresses: [{ip}]}}]
"""


def endpoints(name: str, ip: str) -> str:
    """Return core Endpoints, which are used if no slice replaces them."""
    return f"""
kind: Endpoints
apiVersion: v1
metadata: {{name: {name}}}
subsets: [{{addresses: [{{ip: {ip}}}], ports: [{{port: 80}}]}}]
"""


def node(name: str, ip: str) -> str:
    """Return a Node."""
    address = f"{{type: InternalIP, address: {ip}}}"
    return f"kind: Node\napiVersion: v1\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{address}]}}\n"


def unserved(name: str, spec: str) -> str:
    """Return a Service without rules."""
    return f"kind: Service\napiVersion: v1\nmetadata: {{name: {name}}}\nspec: {spec}\n"


names, ips = st.sampled_from(NAMES), st.sampled_from(IPS)
texts = st.one_of(
    st.builds(
        service,
        names,
        ips,
        st.lists(ips, max_size=1),
        st.tuples(st.sampled_from((30001, 30002)), st.sampled_from((30002, 30003, 30004))),
        st.sampled_from(("{}", "{app: web}")),
    ),
    st.builds(endpoint_slice, names, names, ips, st.sampled_from((CONTROLLER, "staff"))),
    st.builds(endpoints, names, ips),
    st.builds(node, names, ips),
    st.just("kind: Service\napiVersion: v1\nmetadata: {name: Bad}\nspec: {ports: [{port: 80}]}\n"),
    st.builds(unserved, names, st.sampled_from(("{clusterIP: None}", "{type: ExternalName}", "{ports: 1}"))),
)
versions = st.lists(texts, max_size=4).map("---".join)
steps = st.dictionaries(st.sampled_from(PATHS), st.none() | versions, min_size=1, max_size=3)
"""New versions of some files; None for a deleted file."""


def objects_of(objects: FileObjects) -> Known:
    """Return the objects of a set by kind and name."""
    lists: dict[Kind, Sequence[Object]] = {
        Kind.SERVICE: objects.services,
        Kind.ENDPOINT_SLICE: objects.slices,
        Kind.NODE: objects.nodes,
        Kind.SERVICE_CIDR: objects.service_cidrs,
    }
    known: Known = {(kind, str(each.name)): each for kind, every in lists.items() for each in every}
    return {**{(Kind.SERVICE, str(each.name)): each for each in objects.unserved}, **known}


def folded(known: Known, changes: Iterable[ObjectChange]) -> Known:
    """Return the objects that a follower knows after changes; no change may be redundant."""
    after = dict(known)
    for change in changes:
        match change:
            case Put(object=item):
                assert after.get((KINDS[type(item)], str(item.name))) != item
                after[KINDS[type(item)], str(item.name)] = item
            case Removed(kind=kind, name=name):
                del after[kind, str(name)]
            case Unserved(service=service):
                assert after.get((Kind.SERVICE, str(service.name))) != service
                after[Kind.SERVICE, str(service.name)] = service
    return after


@given(st.dictionaries(st.sampled_from(PATHS), versions, min_size=3), st.lists(steps, min_size=1, max_size=4))
@example(
    {
        "1.yaml": node("a", IPS[0]) + "---" + service("a", IPS[0], []),
        "2.yaml": service("a", IPS[1], []),
        "3.yaml": service("b", IPS[1], [], (30002, 30003)),
    },
    [{"1.yaml": None}],
)
@example(
    {"1.yaml": endpoint_slice("a", "a", IPS[0], "staff"), "2.yaml": endpoints("a", IPS[1]), "3.yaml": ""},
    [{"1.yaml": endpoint_slice("a", "a", IPS[0], CONTROLLER)}],
)
@example(
    {"1.yaml": service("a", IPS[0], [], selector="{app: web}"), "2.yaml": endpoints("a", IPS[1]), "3.yaml": ""},
    [{"2.yaml": endpoints("a", IPS[2])}, {"1.yaml": service("a", IPS[0], [])}],
)
def test_changes_and_problems_equal_those_of_a_full_read(
    first: Mapping[str, str], walk: list[Mapping[str, str | None]]
) -> None:
    """A follower of the changes has the objects of all files, and gets all problems."""
    index = FileIndex()
    before: dict[str, Manifest] = {path: read_manifest(path, first[path].encode()) for path in sorted(first)}
    known, problems = objects_of(combine(before.values())), set(map(str, combine(before.values()).problems))
    for step in walk:
        after = before | {path: read_manifest(path, text.encode()) for path, text in step.items() if text is not None}
        after = {path: after[path] for path in sorted(after) if step.get(path, "") is not None}
        news = index.changes(before, after)
        known = folded(known, news.changes)
        problems = problems - set(map(str, news.problems_before)) | set(map(str, news.problems))
        everything = combine(after.values())

        assert objects_of(everything) == known
        assert set(map(str, everything.problems)) == problems
        before = after
