"""Objects in the control plane of the session, for the duration of a test."""

from contextlib import ExitStack

from tests.packets.objects import endpoint_slice

from .api import JsonObject
from .controlplane import ControlPlane

NODE = "node-1"
SERVICES = "/api/v1/namespaces/default/services"
SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


class Cluster:
    """Creates objects, and removes them after the test."""

    def __init__(self, control_plane: ControlPlane, at_exit: ExitStack) -> None:
        self._control_plane = control_plane
        self._at_exit = at_exit

    def create_service(self, name: str, **spec: object) -> None:
        """Create a Service with one port."""
        body = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]} | spec}
        self._control_plane.request("POST", SERVICES, body)
        self._at_exit.callback(self.delete_service, name)

    def create_slice(self, service: str, address: str) -> None:
        """Create an EndpointSlice with one endpoint, on port 8080."""
        self._control_plane.request("POST", SLICES, endpoint_slice(service, "IPv4", [address], [{"port": 8080}]))
        self._at_exit.callback(self._control_plane.kubectl, "delete", "endpointslice", f"{service}-1")

    def create_service_cidr(self, name: str, *cidrs: str) -> None:
        """Create a ServiceCIDR."""
        self._control_plane.request("POST", SERVICE_CIDRS, {"metadata": {"name": name}, "spec": {"cidrs": cidrs}})
        self._at_exit.callback(self.delete_service_cidr, name)

    def delete_service_cidr(self, name: str) -> None:
        """Delete a ServiceCIDR, if it exists."""
        self._control_plane.kubectl("delete", "servicecidr", name, "--ignore-not-found")

    def set_endpoint(self, service: str, address: str) -> None:
        """Replace the endpoint that `create_slice` created."""
        self._control_plane.request("PATCH", f"{SLICES}/{service}-1", {"endpoints": [{"addresses": [address]}]})

    def create_node(self) -> None:
        """Create the Node that the source watches."""
        self._control_plane.create_node(NODE, ["192.0.2.11"], pod_cidrs=["10.244.0.0/24"], zone="a")
        self._at_exit.callback(self._control_plane.kubectl, "delete", "node", NODE)

    def set_port(self, name: str, port: int) -> None:
        """Change the port of a Service."""
        self._control_plane.request("PATCH", f"{SERVICES}/{name}", {"spec": {"ports": [{"port": port}]}})

    def give_to(self, name: str, proxy: str | None) -> None:
        """Set the service proxy name of a Service, or remove it."""
        labels = {"service.kubernetes.io/service-proxy-name": proxy}
        self._control_plane.request("PATCH", f"{SERVICES}/{name}", {"metadata": {"labels": labels}})

    def delete_service(self, name: str) -> None:
        """Delete a Service, if it exists."""
        self._control_plane.kubectl("delete", "service", name, "--ignore-not-found")

    def smuggle(self, *items: JsonObject) -> None:
        """Write Services and EndpointSlices to etcd directly: without validation, and a thousand per second."""
        for item in items:
            metadata = item["metadata"]
            folder = {"Service": "services/specs", "EndpointSlice": "endpointslices"}[item["kind"]]
            key = f"{folder}/{metadata['namespace']}/{metadata['name']}"
            self._control_plane.store(key, item)
            self._at_exit.callback(self._control_plane.store, key, None)
