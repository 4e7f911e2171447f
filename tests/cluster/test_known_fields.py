"""The known fields of objects, used to find misspelt fields in files, equal those of the real API server."""

from typing import Any

import pytest

from pyproxy.manifests.known_fields import _Shape, _shape_of_kind

from .api import JsonObject
from .controlplane import ControlPlane

KINDS = {
    "Service": ("api/v1", "io.k8s.api.core.v1"),
    "Endpoints": ("api/v1", "io.k8s.api.core.v1"),
    "Node": ("api/v1", "io.k8s.api.core.v1"),
    "EndpointSlice": ("apis/discovery.k8s.io/v1", "io.k8s.api.discovery.v1"),
    "ServiceCIDR": ("apis/networking.k8s.io/v1", "io.k8s.api.networking.v1"),
}


def differences(schemas: JsonObject, schema: JsonObject, shape: _Shape, path: str) -> list[str]:
    """Return the fields below a schema that only one side has; fields whose content is not checked end the recursion."""
    properties: JsonObject = schema.get("properties", {})
    found = [f"{path}.{name}" for name in sorted(properties.keys() ^ shape.keys())]
    for name, inner in shape.items():
        if inner is not None and name in properties:
            found += differences(schemas, resolved(schemas, properties[name]), inner, f"{path}.{name}")
    return found


def resolved(schemas: JsonObject, schema: JsonObject) -> JsonObject:
    """Return the schema of an object, or of the items of a list, with references resolved."""
    inner: Any = schema.get("items", schema)
    [reference] = [part for part in (inner, *inner.get("allOf", ())) if "$ref" in part]
    found: JsonObject = schemas[reference["$ref"].rpartition("/")[2]]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_known_fields(control_plane: ControlPlane, kind: str) -> None:
    """No field is missing, which would be reported as unknown in a valid file, and none is superfluous."""
    path, package = KINDS[kind]
    schemas: JsonObject = control_plane.request("GET", f"/openapi/v3/{path}")["components"]["schemas"]

    assert [] == differences(schemas, schemas[f"{package}.{kind}"], _shape_of_kind(kind), kind)
