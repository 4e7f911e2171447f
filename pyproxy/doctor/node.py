"""Checks of the node's own name, addresses and routes."""

from pyproxy.decode.fields import shown
from pyproxy.doctor.finding import Finding, NotCheckedError, fail, info, require_objects, warn
from pyproxy.doctor.inputs import Inputs
from pyproxy.linux.addresses import local_addresses
from pyproxy.linux.devices import bridges
from pyproxy.linux.routes import route_error, routes
from pyproxy.model.address import Family, family_of, ip_text, is_loopback, parse_ip
from pyproxy.model.node import DetectLocalMode, Node
from pyproxy.model.suggestion import suggestion
from pyproxy.node.own_node import ADDRESS_FIX, VIRTUALBOX_NAT
from pyproxy.plan.service_table import FrontendType
from pyproxy.plan.service_values import ServiceValues

_NOT_GIVEN = "give --manifests PATH with the Node object, and --node NAME"


async def check_node_ip(inputs: Inputs) -> list[Finding]:
    """The first address of each family serves node ports, and is the source of masqueraded traffic from IPVS mode."""
    listed = [node for node in inputs.objects.nodes if node.name == inputs.node.name] if inputs.objects else []
    ips = dict.fromkeys(ip for node in (*listed, inputs.node) for ip in node.ips)
    if any(inputs.config.bind_address):
        ips |= {inputs.config.bind_address: None}
    if not ips:
        if listed or (inputs.objects and inputs.objects.has_own_node):
            return [fail(f"node {inputs.node.name} has no address", "status.addresses of the Node", ADDRESS_FIX)]
        raise NotCheckedError(_NOT_GIVEN)
    # An address of the Node need not be on an interface: with 1:1 NAT of a cloud it is not, which is worth a warning only.
    local = local_addresses()
    found = []
    for ip in ips:
        evidence = f"status.addresses of Node {inputs.node.name}, or --bind-address"
        if is_loopback(ip):
            found.append(fail(f"node address {ip_text(ip)} is a loopback address", evidence, ADDRESS_FIX))
        elif ip == VIRTUALBOX_NAT:
            text = f"node address {ip_text(ip)} is what VirtualBox gives to every machine; other nodes cannot reach it"
            found.append(warn(text, evidence, ADDRESS_FIX))
        elif ip not in local:
            text = f"node address {ip_text(ip)} is on no interface of this machine"
            found.append(warn(text, f"{evidence}; ip address", ADDRESS_FIX))
    return found


async def check_node_name(inputs: Inputs) -> list[Finding]:
    """With a wrong name the agent does not find its Node, and considers no endpoint to be on this node."""
    objects, name = require_objects(inputs), inputs.node.name
    nodes = [node.name for node in objects.nodes]
    if not nodes and objects.has_own_node is None:
        raise NotCheckedError(_NOT_GIVEN)
    if name in nodes or objects.has_own_node:
        return []
    # Without a Service that needs the Node, as in standalone use, it may be missing.
    severity = fail if any(each.traffic_policy == "Local" for each in objects.services) else info
    return [
        severity(
            f"there is no Node {name}{suggestion(name, nodes)}: traffic policy Local drops everything on this node",
            "kubectl get nodes",
            "let --hostname-override be the name of the Node",
        )
    ]


async def check_pod_detection(inputs: Inputs) -> list[Finding]:
    """Traffic of pods must be recognized as such: all other traffic to cluster IPs is masqueraded."""
    if inputs.config.detect_local_mode is not DetectLocalMode.CLUSTER_CIDR:
        return []
    found = []
    names = await bridges()
    texts = {text for each in (inputs.objects.services if inputs.objects else ()) for text in each.endpoints.addresses}
    endpoints = [parse_ip(text.rpartition(":")[0].strip("[]")) for text in texts]
    for block in inputs.config.cluster_cidr:
        on_bridges = [each.network for each in routes(block.family) if each.is_direct and each.device in names]
        # A bridge without endpoints of Services is not one of pods: Docker's has none.
        used = [network for network in on_bridges if any(ip in network for ip in endpoints)]
        pods = [each for each in (*inputs.node.pod_cidrs, *used) if each.family is block.family]
        outside = [each for each in dict.fromkeys(pods) if each.ip not in block]
        fix = "let --cluster-cidr be the range of all pods"
        if outside:
            text = f"--cluster-cidr {block} does not contain the pods {outside[0]} of this node: their traffic is masqueraded"
            found.append(warn(text, "podCIDRs of the Node; ip route", fix))
        own = [ip for ip in inputs.node.ips if ip in block]
        if own:
            text = (
                f"--cluster-cidr {block} contains the address {ip_text(own[0])} of this node: traffic from its network to"
                " cluster IPs is not masqueraded"
            )
            found.append(warn(text, "status.addresses of the Node", fix))
    return found


async def check_routes(inputs: Inputs) -> list[Finding]:
    """The node needs a route to each endpoint, and for its own programs to cluster IPs: their route is looked up first."""
    lost: dict[str, tuple[str, str]] = {}
    cluster_ips: dict[Family, str] = {}
    for service in require_objects(inputs).services:
        for text in service.endpoints.addresses:
            address = text.rpartition(":")[0].strip("[]")
            if address not in lost and (
                error := route_error(address) or _default_route(parse_ip(address), inputs.node)
            ):
                lost[address] = error, _name(service)
        if service.frontend and service.frontend.type is FrontendType.CLUSTER_IP:
            ip = service.frontend.address
            cluster_ips.setdefault(family_of(parse_ip(ip)), ip)
    by_error: dict[str, list[str]] = {}
    for address, (error, _) in lost.items():
        by_error.setdefault(error, []).append(address)
    found = [
        fail(
            f"no route to endpoint {addresses[0]} of {lost[addresses[0]][1]}"
            f"{f' and {len(addresses) - 1} more' if len(addresses) > 1 else ''}: {error}",
            f"ip route get {addresses[0]}",
            "check the network plugin, and the routes to the pods of other nodes",
        )
        for error, addresses in by_error.items()
    ]
    for ip in cluster_ips.values():
        if error := route_error(ip):
            text = f"no route to cluster IP {ip}: {error}; programs of this node cannot connect to Services"
            found.append(
                warn(text, f"ip route get {ip}", "add a default route, or a route for the range of cluster IPs")
            )
    return found


def _default_route(ip: bytes, node: Node) -> str:
    """Return that a pod of this node would be looked for by the default route, as after the loss of its interface."""
    if not any(ip in block for block in node.pod_cidrs):
        return ""
    has_own = any(route.network.prefix and ip in route.network for route in routes(family_of(ip)))
    return "" if has_own else "it is a pod of this node, and only the default route leads to it"


async def check_external_ips(inputs: Inputs) -> list[Finding]:
    """A Service whose external IP is an address of a node takes over this port of the node."""
    # Every node sends packets for an external IP to the endpoints, also those for a server of the node that has the address.
    objects = require_objects(inputs)
    owners = {ip_text(ip): f"node {node.name}" for node in objects.nodes for ip in node.ips}
    if not objects.nodes:
        owners = {ip_text(ip): "this node" for ip in local_addresses()}
    found = []
    for service in objects.services:
        frontend = service.frontend
        if frontend and frontend.type in (FrontendType.EXTERNAL_IP, FrontendType.LOAD_BALANCER_IP):
            owner = owners.get(frontend.address)
            if owner is not None:
                found.append(
                    info(
                        f"{_name(service)}: {frontend.type.value} {frontend.address} is an"
                        f" address of {owner}: port {frontend.port} of it leads to the Service on every node",
                        "spec.externalIPs, status.loadBalancer",
                    )
                )
    return found


def _name(service: ServiceValues) -> str:
    return f"{shown(service.namespace)}/{shown(service.name)}"
