"""The Services that pyproxy serves with and without --service-proxy-name."""

import json
from pathlib import Path

import pytest

from pyproxy.kubeapi.resource import services
from pyproxy.manifests.files import read_objects

LABEL = "service.kubernetes.io/service-proxy-name"
LABELS = {"plain": {}, "empty": {LABEL: ""}, "ours": {LABEL: "lab"}, "upper-case": {LABEL: "Lab"}}
"""Labels of Services, by the names of the Services."""


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Give a file with Services of several proxies."""
    items = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {"clusterIP": f"10.96.0.{number}", "ports": [{"port": 80}]},
        }
        for number, (name, labels) in enumerate(LABELS.items(), start=1)
    ]
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return path


@pytest.mark.parametrize(("proxy_name", "expected"), [("", ["plain"]), ("lab", ["ours"]), ("unused", [])])
def test_services_of_files(objects: Path, proxy_name: str, expected: list[str]) -> None:
    """Without a name the label must be absent, whatever its value; with a name its value must be that name."""
    found = read_objects(objects, proxy_name)

    assert (expected, ()) == ([service.name.name for service in found.services], found.problems)


@pytest.mark.parametrize(("proxy_name", "expected"), [("", f"!{LABEL}"), ("lab", f"{LABEL}=lab")])
def test_what_the_api_server_is_asked_for(proxy_name: str, expected: str) -> None:
    """The request to the API server selects only the Services that pyproxy serves."""
    assert expected == services(proxy_name).selectors["labelSelector"]


@pytest.mark.parametrize(("proxy_name", "expected"), [("", ["plain"]), ("lab", ["ours"])])
def test_services_of_the_api_server(objects: Path, proxy_name: str, expected: list[str]) -> None:
    """Other Services in the answer of a server are not used."""
    page = services(proxy_name).decode_page(objects.read_bytes())

    assert expected == [item.name.name for item in page.items if item.object is not None]
