"""Reports drift that was repaired: a line in the log for each Service port, which is also an Event."""

import asyncio
import logging
from dataclasses import replace

from pyproxy.backends.drift import Drift, ServiceDrift, SharedDrift, by_service
from pyproxy.backends.interface import Dumper
from pyproxy.backends.registry import open_dumper
from pyproxy.config.config import Config, ProxyMode
from pyproxy.model.address import Family
from pyproxy.model.event import event_extra
from pyproxy.model.names import NamespacedName

logger = logging.getLogger(__name__)

_MOST_LINES = 10
"""Lines for one repair: if another program deletes a whole table, thousands of Service ports differ."""


class DriftLog:
    """Finds the Services of drift in a thread, because that takes seconds if a large table was flushed.

    Args:
        config: the configuration of the agent.
        mode: the proxy mode.
        node_name: of this node, the object of Events about rules that all Services need.
    """

    def __init__(self, config: Config, mode: ProxyMode, node_name: str) -> None:
        self._config = replace(config, proxy_mode=mode)
        self._node = NamespacedName("", node_name)
        self._tasks: dict[Family, asyncio.Task[None]] = {}

    @property
    def dumper(self) -> Dumper:
        """Return the dumper of the mode, whose modules are imported when they are first needed."""
        return open_dumper(self._config)

    def note(self, family: Family, drift: Drift | None) -> None:
        """Log drift that was repaired; only counts, if the drift before it is still being examined."""
        if drift is None:
            return
        running = self._tasks.get(family)
        if running is not None and not running.done():
            logger.warning(
                "%s: %d more entries were changed by another program, and repaired", family, len(drift.changed)
            )
            return
        self._tasks[family] = asyncio.create_task(self._log(family, drift))

    async def _log(self, family: Family, drift: Drift) -> None:
        found = await asyncio.to_thread(lambda: list(by_service(self.dumper, family, drift)))
        for item in found[:_MOST_LINES]:
            if isinstance(item, ServiceDrift):
                service = NamespacedName(item.namespace, item.name)
                name = f"{service}{':' if item.port_name else ''}{item.port_name} {item.protocol}"
                about = event_extra("Service", service, "RulesRepaired", "ProgramRules")
            else:
                name = f"rules of {_few(item.used_by)}" if item.used_by else "rules that all Services need"
                about = event_extra("Node", self._node, "RulesRepaired", "ProgramRules")
            logger.warning("%s: %s: changed by another program, repaired: %s", family, name, _text(item), extra=about)
        if len(found) > _MOST_LINES:
            about = event_extra("Node", self._node, "RulesRepaired", "ProgramRules")
            rest = len(found) - _MOST_LINES
            logger.warning(
                "%s: the rules of %d more Service ports were changed by another program, and repaired",
                family,
                rest,
                extra=about,
            )


def _text(item: ServiceDrift | SharedDrift) -> str:
    """Return the first rule of each kind, and how many more there are."""
    parts = [
        f"{what} {rules[0]}" + (f" and {len(rules) - 1} more" if len(rules) > 1 else "")
        for what, rules in (("missing", item.missing), ("unexpected", item.unexpected))
        if rules
    ]
    return "; ".join(parts) or "rules in another order"


def _few(names: list[str]) -> str:
    return ", ".join([*names[:3], *([f"{len(names) - 3} more Service ports"] if len(names) > 3 else [])])  # noqa: PLR2004
