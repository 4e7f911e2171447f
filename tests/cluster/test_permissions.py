"""The role of the manifests with one permission less, against a real API server with RBAC: each permission is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import yaml

from pyproxy.kubeapi.access import AccessSettings
from pyproxy.kubeapi.api import ApiSource, Store, Watched
from pyproxy.kubeapi.load_access import load_access
from pyproxy.model.change import Kind

from .controlplane import ControlPlane
from .objects import NODE

RBAC = Path(__file__).parents[2] / "manifests" / "base" / "rbac.yaml"
[ROLE] = [each for each in yaml.safe_load_all(RBAC.read_text()) if each["kind"] == "ClusterRole"]
KINDS = {
    "services": Kind.SERVICE,
    "endpointslices": Kind.ENDPOINT_SLICE,
    "nodes": Kind.NODE,
    "servicecidrs": Kind.SERVICE_CIDR,
}
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def guarded(peers: None) -> Iterator[tuple[ControlPlane, str]]:  # noqa: ARG001 - fails without the programs
    """Provide a control plane with RBAC that does not stream lists, so that a list needs its own permission, and its URL."""
    with (
        ControlPlane(authorization="RBAC", flags=["--feature-gates=WatchList=false"]) as started,
        started.exposed_in(None) as url,
    ):
        yield started, url


def account(guarded: tuple[ControlPlane, str], name: str, resource: str = "", verb: str = "") -> AccessSettings:
    """Create an account with the role without one permission, and return how an agent uses it."""
    control_plane, url = guarded
    rules = [
        {**rule, "verbs": [each for each in rule["verbs"] if (rule["resources"], each) != ([resource], verb)]}
        for rule in ROLE["rules"]
    ]
    metadata = {"name": name}
    binding = {
        "apiVersion": ROLE["apiVersion"],
        "kind": "ClusterRoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
    }
    token = control_plane.create_token(name)
    control_plane.apply("\n---\n".join(map(json.dumps, ({**ROLE, "metadata": metadata, "rules": rules}, binding))))
    return AccessSettings(kubeconfig=str(control_plane.kubeconfig_for({"token": token}, url)))


async def refusals(settings: AccessSettings, expected: set[Kind]) -> dict[Kind, str]:
    """Follow the cluster until exactly these kinds are refused and all other kinds are watched; return the refusals."""
    states: dict[Kind, str] = {}
    wanted = asyncio.get_running_loop().create_future()
    wanted.set_result(True)
    watched = Watched(node_name=NODE, service_cidrs=wanted)
    store = Store(deliver=lambda _: None, watched=states.__setitem__)
    task = asyncio.create_task(ApiSource(partial(load_access, settings), watched, store, random=float).run())

    def refused() -> dict[Kind, str]:
        return {kind: reason for kind, reason in states.items() if reason}

    try:
        # A new role applies after some milliseconds.
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while states.keys() != set(KINDS.values()) or refused().keys() != expected:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        return refused()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_whole_role(guarded: tuple[ControlPlane, str]) -> None:
    """With the role of the manifests everything is watched."""
    assert {} == asyncio.run(refusals(account(guarded, "whole"), set()))


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize("resource", ["services", "endpointslices", "nodes"])
def test_a_role_without_a_permission(guarded: tuple[ControlPlane, str], resource: str, verb: str) -> None:
    """Without permission to list or to watch a kind, the refusal names the permission, and all other kinds are watched."""
    kind = KINDS[resource]
    refused = asyncio.run(refusals(account(guarded, f"without-{verb}-{resource}", resource, verb), {kind}))

    assert [kind] == list(refused)
    assert f'resources: ["{resource}"], verbs: ["list", "watch"]' in refused[kind]
