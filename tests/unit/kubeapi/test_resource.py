"""Bytes of lists and objects to items: an invalid object does not affect other objects."""

import json
from typing import Any

import pytest
from msgspec import Raw

from pyproxy.errors import SourceError
from pyproxy.kubeapi.resource import ObjectPage, Resource, endpoint_slices, node, service_cidrs, services
from pyproxy.model.names import NamespacedName
from tests.fakes.apiserver import service

GOOD = json.dumps(service("good", "7")).encode()
NAME = b'"metadata": {"name": "bad", "namespace": "default", "resourceVersion": "3"}'


def page(*items: bytes) -> ObjectPage:
    """Decode a page of Services."""
    return services().decode_page(b'{"metadata": {"resourceVersion": "9"}, "items": [' + b", ".join(items) + b"]}")


@pytest.mark.parametrize(
    ("resource", "group", "plural"),
    [
        (services(), "", "services"),
        (endpoint_slices(), "discovery.k8s.io", "endpointslices"),
        (node("n"), "", "nodes"),
        (service_cidrs(), "networking.k8s.io", "servicecidrs"),
    ],
)
def test_permission(resource: Resource[Any], group: str, plural: str) -> None:
    """The rule that a role needs has the notation of manifests."""
    assert f'apiGroups: ["{group}"], resources: ["{plural}"], verbs: ["list", "watch"]' == resource.permission


@pytest.mark.parametrize(
    ("bad", "name", "field"),
    [
        (b"{" + NAME + b', "spec": 5}', "bad", "spec"),
        (b"{" + NAME + b', "spec": {"ports": [{"port": "x"}]}}', "bad", "spec.ports[0].port"),
        (b"{" + NAME + b', "spec": {"clusterIP": "\xff"}}', "bad", ""),
        (b'{"metadata": {"name": "\xff"}}', "", ""),
        (b'{"metadata": "x"}', "", "metadata"),
        (b"5", "", ""),
        (b"null", "", ""),
    ],
)
def test_bad_object(bad: bytes, name: str, field: str) -> None:
    """An object of an unexpected structure is reported by its name if it has one, and its neighbours are used."""
    items = page(bad, GOOD).items

    assert NamespacedName("default", name) == items[0].name
    assert (True, [field]) == (items[0].is_undecodable, [problem.field for problem in items[0].problems])
    assert items[1].object is not None


@pytest.mark.parametrize("levels", [1100, 10_000])
def test_deep_object(levels: int) -> None:
    """An object that is nested as deeply as an API server accepts is used, and so are its neighbours."""
    deep = GOOD.replace(b'"spec"', b'"managedFields": %s, "spec"' % (b"[" * levels + b"]" * levels))

    assert [item.object for item in page(GOOD, GOOD).items] == [item.object for item in page(deep, GOOD).items]
    assert page(GOOD).items[0].object == services().decode_object(Raw(deep)).object


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"items": [5, x]}', b"[]", b'{"items": 5}', b'{"metadata": {"continue": 5}}']
)
def test_no_list(body: bytes) -> None:
    """A response that is not a list is an error of the source."""
    with pytest.raises(SourceError, match="/api/v1/services: the response is not "):
        services().decode_page(body)


@pytest.mark.parametrize("body", [b"{}", b'{"metadata": null, "items": null}'])
def test_empty_list(body: bytes) -> None:
    """Null and absent items are an empty list, as everywhere in the API."""
    assert ObjectPage("", "", []) == services().decode_page(body)


@pytest.mark.parametrize("resource", [node("n"), service_cidrs()], ids=["Node", "ServiceCIDR"])
def test_no_namespace(resource: Resource[Any]) -> None:
    """A Node and a ServiceCIDR have no namespace."""
    assert (NamespacedName("", "n"), "4") == resource.identify(
        Raw(b'{"metadata": {"name": "n", "resourceVersion": "4"}}')
    )
