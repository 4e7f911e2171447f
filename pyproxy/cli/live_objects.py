"""The objects that commands on a live node use: those of files, or those that the API server lists once."""

import asyncio
import sys

from pyproxy.backends.registry import backend_class
from pyproxy.cli.objects import report, tracked
from pyproxy.config.config import Config
from pyproxy.errors import SourceError
from pyproxy.model.change import Kind
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.node.node_name import own_node, own_node_name

_LIST_SECONDS = 30.0
_NEEDED = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)


async def known_objects(config: Config) -> tuple[Tracker, Node]:
    """Return the objects of the files or of the API server, and this node; problems of files go to standard error.

    Args:
        config: with a mode other than ``auto``.

    Raises:
        ConfigError: the configuration leads to no API server.
        SourceError: the files cannot be read, or the API server did not answer in time.
    """
    name = own_node_name(config)
    if config.manifests:
        from pyproxy.manifests.files import read_objects  # noqa: PLC0415  # YAML

        objects = await asyncio.to_thread(read_objects, config.manifests)
        report(objects, sys.stderr)
        found = next((node for node in objects.nodes if node.name == name), None)
        return tracked(objects), own_node(config, found, name)
    tracker = await _listed_objects(config, name)
    return tracker, own_node(config, tracker.node, name)


async def _listed_objects(config: Config, node_name: str) -> Tracker:
    # The agent's own source, stopped as soon as its lists are complete: the same objects, selectors and retries.
    from pyproxy.kubeapi import access, api  # noqa: PLC0415  # HTTP: objects may come from files
    from pyproxy.kubeapi.load_access import load_access  # noqa: PLC0415  # as above

    settings = access.AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)
    tracker = Tracker()
    wants_service_cidrs: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    wants_service_cidrs.set_result(backend_class(config.proxy_mode).follows_service_cidrs)
    watched = api.Watched(node_name=node_name, service_cidrs=wants_service_cidrs)
    source = api.ApiSource(lambda: load_access(settings), watched, api.Store(deliver=tracker.apply))
    following = asyncio.create_task(source.run())
    try:
        # The source retries for ever, as an agent should; a command gives up.
        async with asyncio.timeout(_LIST_SECONDS):
            while not tracker.knows(*_NEEDED):
                await asyncio.wait([following], timeout=0.05)
                if following.done():
                    # The source ends only by an error that a retry does not correct; this raises it.
                    following.result()
    except TimeoutError:
        message = (
            f"the API server did not list Services, EndpointSlices and the Node {node_name} in {_LIST_SECONDS:g} s"
        )
        raise SourceError(message) from None
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return tracker
