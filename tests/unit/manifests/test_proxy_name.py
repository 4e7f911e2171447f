"""Which Services count for a pyproxy that serves those of one name, and for one that serves all others."""

import json
from pathlib import Path

import pytest

from pyproxy.kubeapi.resource import services
from pyproxy.manifests.files import read_objects

LABEL = "service.kubernetes.io/service-proxy-name"
LABELS = {"plain": {}, "empty": {LABEL: ""}, "ours": {LABEL: "trial"}, "others": {LABEL: "Trial"}}
"""Labels of Services, by their names."""


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


@pytest.mark.parametrize(("proxy_name", "expected"), [("", ["plain"]), ("trial", ["ours"]), ("nobody", [])])
def test_services_of_files(objects: Path, proxy_name: str, expected: list[str]) -> None:
    """Without a name the label must be absent, whatever its value; with one its value must be the name."""
    found = read_objects(objects, proxy_name)

    assert (expected, ()) == ([service.name.name for service in found.services], found.problems)


@pytest.mark.parametrize(("proxy_name", "expected"), [("", f"!{LABEL}"), ("trial", f"{LABEL}=trial")])
def test_what_the_api_server_is_asked_for(proxy_name: str, expected: str) -> None:
    """The API server is asked for no others."""
    assert expected == services(proxy_name).selectors["labelSelector"]


@pytest.mark.parametrize(("proxy_name", "expected"), [("", ["plain"]), ("trial", ["ours"])])
def test_services_of_the_api_server(objects: Path, proxy_name: str, expected: list[str]) -> None:
    """Of what a server gives all the same, only those count."""
    page = services(proxy_name).decode_page(objects.read_bytes())

    assert expected == [item.name.name for item in page.items if item.object is not None]
