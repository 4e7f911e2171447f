"""Checks of the node's own address."""

from pyproxy.decode.fields import shown
from pyproxy.doctor.finding import Finding, NotCheckedError, fail, info, require_objects, warn
from pyproxy.doctor.inputs import Inputs
from pyproxy.linux.addresses import local_addresses
from pyproxy.model.address import ip_text, is_loopback
from pyproxy.node.own_node import ADDRESS_FIX, VIRTUALBOX_NAT
from pyproxy.plan.service_table import FrontendType

_NOT_GIVEN = "give --manifests PATH with the Node object, and --node NAME"


async def check_node_ip(inputs: Inputs) -> list[Finding]:
    """The first address of each family serves node ports, and is the source of masqueraded traffic from IPVS mode."""
    listed = [node for node in inputs.objects.nodes if node.name == inputs.node.name] if inputs.objects else []
    ips = dict.fromkeys(ip for node in (*listed, inputs.node) for ip in node.ips)
    if any(inputs.config.bind_address):
        ips |= {inputs.config.bind_address: None}
    if not ips:
        if listed:
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
                        f"{shown(service.namespace)}/{shown(service.name)}: {frontend.type.value} {frontend.address} is an"
                        f" address of {owner}: port {frontend.port} of it leads to the Service on every node",
                        "spec.externalIPs, status.loadBalancer",
                    )
                )
    return found
