"""The objects that offline commands read from files, what they say about them, and the name of one of them."""

import re
import sys
from dataclasses import dataclass
from typing import TextIO

import click

from pyproxy.config.config import Config
from pyproxy.manifests.files import FileObjects, read_objects
from pyproxy.model.change import Kind, Replaced
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.model.unserved import UnservedService
from pyproxy.node.node_name import own_node, own_node_name


@dataclass(frozen=True, slots=True)
class OfflineCluster:
    """What files say about a cluster, as seen from one node."""

    tracker: Tracker
    """Has Services, EndpointSlices and ServiceCIDRs."""
    node: Node
    """The node of ``--node`` or ``--hostname-override``, or one made from flags if no file has it."""
    nodes: tuple[Node, ...]
    unserved: tuple[UnservedService, ...]
    """Services without rules."""
    problems: int
    """How many problems the files have; each was printed."""


def read_cluster(config: Config) -> OfflineCluster:
    """Read the files of ``--manifests``, and print their problems to standard error.

    Raises:
        ConfigError: the input cannot be read.
    """
    objects = read_objects(config.manifests, config.service_proxy_name, config.own_ports)
    return offline_cluster(objects, config, own_node_name(config))


def offline_cluster(objects: FileObjects, config: Config, name: str) -> OfflineCluster:
    """Return the objects of files as seen from the node of a name, and print their problems to standard error."""
    # To standard error: standard output has only the result, which a program may read.
    problems = report(objects, sys.stderr)
    node = own_node(config, next((node for node in objects.nodes if node.name == name), None), name)
    return OfflineCluster(tracked(objects), node, tuple(objects.nodes), objects.unserved, problems)


def report(objects: FileObjects, stream: TextIO) -> int:
    """Print the problems of the input and what was skipped; return the number of problems."""
    for problem in objects.problems:
        print(problem, file=stream)
    if objects.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(objects.skipped.items()))
        print(f"skipped: {kinds}", file=stream)
    return len(objects.problems)


def tracked(objects: FileObjects) -> Tracker:
    """Return a tracker with the objects of files, except Nodes."""
    # The Node is not tracked: it is chosen by its name, and flags override its values (`own_node`).
    tracker = Tracker()
    tracker.apply(Replaced(Kind.SERVICE, objects.services))
    tracker.apply(Replaced(Kind.ENDPOINT_SLICE, objects.slices))
    tracker.apply(Replaced(Kind.SERVICE_CIDR, objects.service_cidrs))
    return tracker


def service_name(text: str) -> NamespacedName:
    """Read ``NAMESPACE/NAME``, as the value of a flag or an argument; raise BadParameter for any other text."""
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", text):
        message = f"{text!r} is not NAMESPACE/NAME"
        raise click.BadParameter(message)  # click replaces the text of a ValueError by its own
    return NamespacedName(*text.split("/"))
