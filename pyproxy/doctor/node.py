"""Checks of the node's own address."""

from pyproxy.decode.fields import shown
from pyproxy.doctor.finding import Finding, NotCheckedError, fail, info, require_objects, warn
from pyproxy.doctor.inputs import Inputs
from pyproxy.linux.addresses import local_addresses
from pyproxy.model.address import ip_text, is_loopback, parse_ip
from pyproxy.plan.service_table import FrontendType

_FIX = "set --node-ip of the kubelet, or --bind-address of pyproxy, to the address at which other nodes reach this one"
# VirtualBox's NAT, the first interface of a Vagrant machine, gives this address to every machine.
_VIRTUALBOX_NAT = parse_ip("10.0.2.15")
_NOT_GIVEN = "give --manifests PATH with the Node object, and --node NAME"


async def check_node_ip(inputs: Inputs) -> list[Finding]:
    """The first address of each family serves node ports, and is the source of masqueraded traffic from IPVS mode."""
    listed = [node for node in inputs.objects.nodes if node.name == inputs.node.name] if inputs.objects else []
    ips = dict.fromkeys(ip for node in (*listed, inputs.node) for ip in node.ips)
    if any(inputs.config.bind_address):
        ips |= {inputs.config.bind_address: None}
    if not ips:
        if listed:
            return [fail(f"node {inputs.node.name} has no address", "status.addresses of the Node", _FIX)]
        raise NotCheckedError(_NOT_GIVEN)
    local = await local_addresses()
    found = []
    for ip in ips:
        evidence = f"status.addresses of Node {inputs.node.name}, or --bind-address"
        if is_loopback(ip):
            found.append(fail(f"node address {ip_text(ip)} is a loopback address", evidence, _FIX))
        elif ip == _VIRTUALBOX_NAT:
            text = f"node address {ip_text(ip)} is what VirtualBox gives to every machine; other nodes cannot reach it"
            found.append(warn(text, evidence, _FIX))
        elif ip not in local:
            text = f"node address {ip_text(ip)} is on no interface of this machine"
            found.append(warn(text, f"{evidence}; ip address", _FIX))
    return found


async def check_external_ips(inputs: Inputs) -> list[Finding]:
    """A Service whose external IP is an address of a node takes over this port of the node."""
    objects = require_objects(inputs)
    owners = {ip_text(ip): f"node {node.name}" for node in objects.nodes for ip in node.ips}
    if not objects.nodes:
        owners = {ip_text(ip): "this node" for ip in await local_addresses()}
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
