"""Objects from files: what is read, and which problems are reported.

The files in tests/inputs are like those that people write and kubectl prints; the tests write all other files.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import SourceError
from pyproxy.manifests.files import FileObjects, read_objects
from pyproxy.manifests.manifest import read_manifest
from pyproxy.model.address import parse_ip
from pyproxy.model.endpoint import SliceEndpoint
from pyproxy.model.names import NamespacedName
from pyproxy.yaml_documents import YamlDocument, YamlError, yaml_documents

INPUTS = Path(__file__).parents[2] / "inputs"
BOMB = b"".join(
    b"%c: &%c [%s]\n" % (name, name, b", ".join([inner] * 10))
    for name, inner in zip(b"bcdefghij", (b"x", b"*b", b"*c", b"*d", b"*e", b"*f", b"*g", b"*h", b"*i"), strict=True)
)
"""A few lines that expand to a thousand million texts."""
MERGED_BOMB = BOMB.replace(b"[", b"{<<: [").replace(b"]", b"]}").replace(b"x", b"{y: 1}")


def service(name: str, ip: str = "10.96.0.1", **spec: object) -> dict[str, Any]:
    """Return a Service with one port, as JSON."""
    spec = {"clusterIP": ip, "ports": [{"port": 80}]} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def endpoints(name: str, *ips: str) -> dict[str, Any]:
    """Return core Endpoints, as JSON."""
    subset = {"addresses": [{"ip": ip} for ip in ips], "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}, "subsets": [subset]}


def endpoint_slice(name: str, *ips: str, managed_by: str = "staff") -> dict[str, Any]:
    """Return a slice of the Service web, as JSON."""
    labels = {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": managed_by}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip]} for ip in ips],
        "ports": [{"port": 80}],
    }


def service_cidr(name: str, *cidrs: str, **fields: object) -> dict[str, Any]:
    """Return a ServiceCIDR, as JSON."""
    head = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}}
    return head | {"spec": {"cidrs": cidrs}} | fields


def write(path: Path, *objects: dict[str, Any]) -> None:
    """Replace a file atomically, as `mv` does."""
    beside = path.with_suffix(".new")
    beside.write_text("\n".join(map(json.dumps, objects)))
    beside.replace(path)


def texts(objects: FileObjects, folder: Path = INPUTS) -> list[str]:
    """Return the problems, with paths relative to a folder."""
    return [str(problem).replace(f"{folder}/", "") for problem in objects.problems]


def names(objects: FileObjects) -> list[str]:
    """Return the names of the Services."""
    return [each.name.name for each in objects.services]


def test_half_a_character() -> None:
    """JSON with the escape of half a character is refused: such a text cannot be written to a log or a reply."""
    text = json.dumps(service("a")).replace("10.96.0.1", "\\ud800")

    manifest = read_manifest("a.json", text.encode() + text.encode())

    assert not manifest.is_whole
    assert ["line 1"] == [problem.place for problem in manifest.problems]


def test_tutorial_deployment() -> None:
    """Kinds that are not read are counted; fields that an API server would have filled in are reported with their line."""
    objects = read_objects(INPUTS / "tutorial-deployment.yaml")

    assert ["hello"] == names(objects)
    assert Counter(Deployment=1, Pod=1) == objects.skipped
    assert [
        "tutorial-deployment.yaml, line 39: Service default/hello: spec.clusterIP",
        "tutorial-deployment.yaml, line 43: Service default/hello: spec.ports[0].nodePort",
    ] == [text.partition(": missing")[0] for text in texts(objects)]


def test_tutorial_endpoints() -> None:
    """Endpoints of a Service without a selector become its slices."""
    objects = read_objects(INPUTS / "tutorial-endpoints.yaml")

    assert () == objects.problems
    assert {NamespacedName("default", "database")} == {each.service for each in objects.slices}
    assert [
        (parse_ip("172.18.0.200"), True),
        (parse_ip("172.18.0.201"), False),
        (parse_ip("fd00:18::200"), True),
    ] == [(endpoint.ip, endpoint.ready) for each in objects.slices for endpoint in each.endpoints]


def test_kubectl_list() -> None:
    """The output of kubectl is read without a problem, and Endpoints that have a slice add nothing."""
    objects = read_objects(INPUTS / "kubectl-list.yaml")

    assert [] == texts(objects)
    assert [NamespacedName("shop", "web")] == [each.name for each in objects.services]
    assert [NamespacedName("shop", "web-x7q2v")] == [each.name for each in objects.slices]
    assert ["node-a"] == [node.name for node in objects.nodes]
    assert Counter(ConfigMap=1) == objects.skipped


def test_bad_fields() -> None:
    """Each mistake is reported once with file, line, object and field, and costs only the part that it concerns."""
    objects = read_objects(INPUTS / "bad-fields.yaml")

    assert [
        "line 6: Service default/no-cluster-ip: spec.clusterIP",
        "line 13: Service default/misspelt-field: spec.externalIps",
        "line 21: Service default/unknown-type: spec.type",
        "line 22: Service default/unknown-type: spec.externalIPs[1]",
        "line 32: Service default/port-70000: spec.ports[1].port",
        "line 36: Service default/'web; reboot': metadata.name",
        "line 48: Service default/metacharacters: spec.ports[1].name",
        "line 55: Service default/port-as-text: spec.ports[0].port",
        "line 65: EndpointSlice default/web-1: endpoints[1].addresses[0]",
        "line 72: Service default/misspelt-ip: spec.clusterIp",
        "line 72: Service default/misspelt-ip: spec.clusterIP",
    ] == [f"{problem.place}: {problem.error.subject}: {problem.error.field}" for problem in objects.problems]
    assert "did you mean externalIPs?" in texts(objects)[1]
    assert [
        *("no-cluster-ip", "misspelt-field", "unknown-type", "port-70000", "metacharacters"),
        *("misspelt-ip", "all-good"),
    ] == names(objects)
    assert [(SliceEndpoint(parse_ip("10.244.1.1")),)] == [each.endpoints for each in objects.slices]


def test_syntax_error() -> None:
    """A syntax error is reported with its line, and the documents before it are used."""
    objects = read_objects(INPUTS / "syntax-error.yaml")

    assert ["first", "second"] == names(objects)
    assert ["syntax-error.yaml, line 15: YAML: did not find expected ',' or '}' while parsing a flow mapping"] == texts(
        objects
    )


def test_two_claims() -> None:
    """A Service that loses a node port or a frontend gets a problem that names the winner; both Services are kept."""
    objects = read_objects(INPUTS / "two-claims.yaml")

    winner = (
        "belongs to Service default/older (two-claims.yaml, line 11): a cluster IP wins, then the older Service, then the"
        " first name"
    )
    assert ["younger", "older"] == names(objects)
    assert [
        f"two-claims.yaml, line 2: Service default/younger: spec.externalIPs: 192.0.2.1:80/TCP {winner}",
        f"two-claims.yaml, line 2: Service default/younger: spec.ports: node port 30080/TCP {winner}",
    ] == texts(objects)


def test_directory(tmp_path: Path) -> None:
    """The manifests of a directory are read in the order of their names; the first object of a name is used."""
    write(tmp_path / "b.json", service("web", "10.96.0.2"), service("other", "10.96.0.3"))
    (tmp_path / "a.yml").write_text(json.dumps(service("web")))
    (tmp_path / ".hidden.yaml").write_text("not read: [")
    (tmp_path / "notes.txt").write_text("not read: [")
    (tmp_path / "nowhere.yaml").symlink_to("gone.yaml")
    (tmp_path / "sub.yaml").mkdir()

    objects = read_objects(tmp_path)

    assert [("web", parse_ip("10.96.0.1")), ("other", parse_ip("10.96.0.3"))] == [
        (each.name.name, *each.cluster_ips) for each in objects.services
    ]
    assert ["b.json, line 1: Service default/web: metadata.name: already defined in a.yml, which is used"] == texts(
        objects, tmp_path
    )


def test_nothing_there(tmp_path: Path) -> None:
    """A path that does not exist is an error that names it."""
    with pytest.raises(SourceError, match="gone: No such file or directory"):
        read_objects(tmp_path / "gone")


def test_standard_input() -> None:
    """The path ``-`` is standard input."""
    script = "from pyproxy.manifests.files import read_objects; print(*(s.name for s in read_objects('-').services))"

    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(service("web")), capture_output=True, text=True, check=True
    )

    assert "default/web\n" == done.stdout


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"kind": "Service",\n "apiVersion" "v1"}', "f, line 2: JSON: Expecting ':' delimiter"),
        (b"kind: Service\nkind: Service", "f, line 2: YAML: duplicate key kind"),
        (b"a: b: c", "f, line 1: YAML: mapping values are not allowed in this context"),
        (b"a: 1\nb: \xff", "f, line 2: YAML: not UTF-8"),
        (b"a: \xc3\xa9\nb: \x07", "f, line 2: YAML: control characters are not allowed"),
        (
            b"a: !!python/object/apply:os.system [reboot]",
            "f, line 1: YAML: could not determine a constructor for the tag",
        ),
        (b"a: !!int x", "f, line 1: YAML: a value that does not match its tag"),
        (b"[" * 30000, "f, line 1: JSON: maximum recursion depth exceeded"),
        (b"a: " + b"[" * 30000, "f: YAML: nested too deeply"),
        (b"just text", "f, line 1: document: kind: missing; this is not a Kubernetes object"),
        (
            b"kind: List\napiVersion: v1\nitems: [{kind: List}]",
            "f, line 3: List: kind: lists within a list are not read",
        ),
        (b"kind: List\nitems: 5", "f, line 2: List: items: not a list of objects"),
        (b"&a\nkind: List\nitems: [*a]", "f, line 1: YAML: an alias for a node that contains it"),
        (b"kind: Service\nspec: &a {<<: *a}", "f, line 2: YAML: an alias for a node that contains it"),
        (b"a:\n  b: 0x" + b"f" * 5000, "f, line 2: YAML: a number of more than 100 digits"),
        (b"a:\n  b: 1" + b"0" * 5000, "f, line 2: YAML: a number of more than 100 digits"),
        (BOMB, "f, line 1: YAML: aliases that expand to too many nodes"),
        (MERGED_BOMB, "f, line 1: YAML: aliases that expand to too many nodes"),
        (b'{"kind": "List", "items": [{"kind": "\xff"}]}', "f, items[0]: document: 'utf-8' codec"),
        (b"{kind: Service}", "f, line 1: JSON: Expecting property name"),
        (
            b"kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\nmetadata: {name: web-1}",
            "f, line 2: EndpointSlice default/web-1: apiVersion: discovery.k8s.io/v1beta1 is not supported",
        ),
    ],
)
def test_what_is_no_object(data: bytes, message: str) -> None:
    """A document that is not an object is one problem with its place."""
    manifest = read_manifest("f", data)

    assert [message] == [str(problem)[: len(message)] for problem in manifest.problems]
    assert ((), ()) == (manifest.services, manifest.slices)


def test_service_cidrs(tmp_path: Path) -> None:
    """ServiceCIDRs are read from files; mistakes are reported, and the rest is used."""
    default = service_cidr("kubernetes", "10.96.0.0/16", "fd00:10:96::/112", status={"conditions": []})
    write(tmp_path / "a.json", default)
    write(tmp_path / "b.json", service_cidr("more", "10.112.0.0"), service_cidr("kubernetes", "10.1.0.0/16"))
    write(tmp_path / "c.json", service_cidr("misspelt") | {"spec": {"cidr": "10.1.0.0/16"}})

    objects = read_objects(tmp_path)

    found = {each.name.name: [str(cidr) for cidr in each.cidrs] for each in objects.service_cidrs}
    assert {"kubernetes": ["10.96.0.0/16", "fd00:10:96::/112"], "more": [], "misspelt": []} == found
    assert [
        "b.json, line 1: ServiceCIDR more: spec.cidrs[0]: 10.112.0.0 is not a valid CIDR block such as 10.0.0.0/8",
        "c.json: ServiceCIDR misspelt: spec.cidr: unknown field, ignored (did you mean cidrs?)",
        "b.json, line 2: ServiceCIDR kubernetes: metadata.name: already defined in a.json, which is used",
    ] == [text.replace(f"{tmp_path}/", "") for text in texts(objects)]


def test_kinds_of_other_groups() -> None:
    """A kind of another API group with the same name is skipped."""
    manifest = read_manifest("f", b"kind: Service\napiVersion: serving.knative.dev/v1\nmetadata: {name: web}")

    assert ((), ()) == (manifest.services, manifest.problems)
    assert Counter({"Service of serving.knative.dev/v1": 1}) == manifest.skipped


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(service("web")),
        json.dumps({"kind": "List", "apiVersion": "v1", "items": [None, service("web")]}),
        json.dumps(
            {"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "web"}} | service("web")]}
        ),
        json.dumps(
            {
                "kind": "ServiceList",
                "apiVersion": "v1",
                "items": [{"metadata": {"name": "web"}, "spec": service("web")["spec"]}],
            }
        ),
        "\ufeff" + json.dumps(service("web")),
        json.dumps(service("web"), indent=2) + "\n" + json.dumps({"kind": "Pod"}),
        "---\n---\n# nothing\n---\n" + json.dumps(service("web")) + "\n---\n",
        """
        kind: Service
        apiVersion: v1
        metadata: {<<: &other {name: other}, name: web}
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
        """,
    ],
)
def test_forms_of_a_file(data: str) -> None:
    """A single object, lists with and without kinds of items, several documents and a byte order mark give the same objects."""
    manifest = read_manifest("f", data.encode())

    assert () == manifest.problems
    assert [read_manifest("f", json.dumps(service("web")).encode()).services[0].object] == [
        found.object for found in manifest.services
    ]


def test_json_and_yaml_are_the_same() -> None:
    """Kubectl's YAML and JSON output give the same objects, on the fast path and on the slow path."""
    [document] = yaml_documents((INPUTS / "kubectl-list.yaml").read_text())
    assert isinstance(document, YamlDocument)
    fast = read_manifest("f", json.dumps(document.tree).encode())
    slow = read_manifest("f", (json.dumps(document.tree) + '{"kind":"ConfigMap"}').encode())
    yaml = read_manifest("f", (INPUTS / "kubectl-list.yaml").read_bytes())

    def objects(manifest: Any) -> list[Any]:  # noqa: ANN401 its fields are what matters
        found = (*manifest.services, *manifest.slices, *manifest.endpoints, *manifest.nodes)
        return [each.object for each in found]

    assert objects(yaml) == objects(fast)
    assert objects(yaml) == objects(slow)


def test_yaml_is_what_kubectl_reads() -> None:
    """As in sigs.k8s.io/yaml, keys, dates, times and fractions are text, yes is true, and 0x10 is 16."""
    text = "80: 1\non: yes\nday: 2026-03-01T10:00:00Z\ntime: 22:30\nhalf: 0.5\nnone:\nhex: 0x10\nequal: ="

    [document] = yaml_documents(text)

    assert isinstance(document, YamlDocument)
    assert {
        "80": 1,
        "on": True,
        "day": "2026-03-01T10:00:00Z",
        "time": "22:30",
        "half": "0.5",
        "none": None,
        "hex": 16,
        "equal": "=",
    } == document.tree


@pytest.mark.parametrize("text", ["b: !reboot x", "b: {c: !!int y}\nd: !reboot x"])
def test_documents_after_a_bad_tag(text: str) -> None:
    """A document that cannot be built is one error; the documents after it are read."""
    good, bad, other = yaml_documents(f"a: 1\n---\n{text}\n---\nc: 3")

    assert isinstance(bad, YamlError)
    assert 2 + len(text.splitlines()) == bad.line
    assert isinstance(good, YamlDocument)
    assert isinstance(other, YamlDocument)
    assert ({"a": 1}, {"c": 3}) == (good.tree, other.tree)


@given(st.data())
def test_nothing_in_a_file_raises(data: st.DataObject) -> None:
    """Any change of a good file still gives a manifest."""
    whole = data.draw(st.sampled_from(sorted(INPUTS.glob("*.yaml")))).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    marks = (
        b"[",
        b"{",
        b"- ",
        b": ",
        b"&a ",
        b"*a",
        b'"',
        b"!!int ",
        b"\n",
        b"\xff",
        b"0x",
        b"---\n",
        b"null",
        b"<<: ",
    )

    manifest = read_manifest("f", whole[:start] + data.draw(st.sampled_from(marks)) + whole[end:])

    assert manifest.problems is not None


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([], 1),
        ([endpoint_slice("web-1", "10.0.0.9", managed_by="endpointslicemirroring-controller.k8s.io")], 1),
        ([endpoint_slice("web-1", "10.0.0.9", managed_by="endpointslice-controller.k8s.io")], 1),
        ([endpoint_slice("web-1", "10.0.0.1"), endpoint_slice("web-2", "10.0.0.2")], 2),
        ([endpoint_slice("web-1", "10.0.0.1")], 2),
    ],
)
def test_endpoints_beside_slices(tmp_path: Path, slices: list[dict[str, Any]], expected: int) -> None:
    """Endpoints add nothing to slices of a controller, or to slices that have their addresses."""
    write(tmp_path / "a.json", endpoints("web", "10.0.0.1", "10.0.0.2"), *slices)

    assert expected == len(read_objects(tmp_path).slices)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}, 0),
        ({"labels": {"endpointslice.kubernetes.io/skip-mirror": "True"}}, 1),
        ({"labels": {"endpointslice.kubernetes.io/skip-mirror": None}}, 1),
        ({"annotations": {"control-plane.alpha.kubernetes.io/leader": '{"holderIdentity":"a"}'}}, 0),
        ({"annotations": {"control-plane.alpha.kubernetes.io/leader": ""}}, 0),
        ({"annotations": None, "labels": None}, 1),
    ],
)
@pytest.mark.parametrize("write_as", [json.dumps, yaml.safe_dump])
def test_endpoints_that_no_cluster_mirrors(
    tmp_path: Path, metadata: dict[str, Any], expected: int, write_as: Callable[[object], str]
) -> None:
    """Endpoints with the label skip-mirror and locks of leader elections give no endpoints and no problem."""
    tree = endpoints("web", "10.0.0.1")
    tree["metadata"].update(metadata)
    (tmp_path / "a.yaml").write_text(write_as(tree))
    objects = read_objects(tmp_path)

    assert (expected, ()) == (len(objects.slices), objects.problems)


@pytest.mark.parametrize(
    ("selector", "slices", "expected", "messages"),
    [
        ({"app": "web"}, [], 0, 1),
        ({"app": "web"}, [endpoint_slice("web-1", "10.0.0.1")], 1, 0),
        ({}, [], 1, 0),
        (None, [], 1, 0),
    ],
)
def test_endpoints_of_a_service_with_a_selector(
    tmp_path: Path, selector: object, slices: list[dict[str, Any]], expected: int, messages: int
) -> None:
    """Endpoints of a Service with a selector are not used, and reported unless a slice has their addresses."""
    write(tmp_path / "a.json", endpoints("web", "10.0.0.1"), *slices)
    write(tmp_path / "b.json", service("web", selector=selector))
    objects = read_objects(tmp_path)
    texts = [str(problem) for problem in objects.problems]

    assert (expected, messages) == (len(objects.slices), len(texts))
    assert all("Endpoints default/web: subsets: not used: its Service has a selector" in text for text in texts)


def test_most_mirrored_addresses(tmp_path: Path) -> None:
    """Of the Endpoints with one port 1000 addresses are used, ready ones first; the number of the rest is reported."""
    tree = endpoints("web", *(f"10.0.{number // 250}.{number % 250 + 1}" for number in range(900)))
    more = [{"ip": f"10.1.0.{number}"} for number in range(1, 201)]
    tree["subsets"].append({"addresses": more[:150], "notReadyAddresses": more[150:], "ports": [{"port": 80}]})
    tree["subsets"].append({"addresses": more, "ports": [{"port": 81, "name": "b"}]})
    write(tmp_path / "a.json", tree)
    objects = read_objects(tmp_path)

    assert [900, 100, 200] == [len(each.endpoints) for each in objects.slices]
    assert ["only 1000 addresses of a port are used, as in a cluster; 100 are not"] == [
        problem.error.reason for problem in objects.problems
    ]
