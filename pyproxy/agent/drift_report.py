"""Reports drift: in the log and as Events when it was repaired, and as a document for ``pyproxy drift``."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pyproxy.agent.reconcile import Reconciler
from pyproxy.backends.drift import Drift, DriftDocument, ServiceDrift, SharedDrift, by_service, few
from pyproxy.backends.registry import open_dumper
from pyproxy.config.config import Config, ProxyMode
from pyproxy.model.address import Family
from pyproxy.model.event import event_extra
from pyproxy.model.names import NamespacedName
from pyproxy.plan.service_values import API_VERSION

logger = logging.getLogger(__name__)

# Of one repair: if another program deletes a whole table, thousands of Service ports differ.
_MOST_LINES = 10


class DriftReporter:
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

    async def document(self, reconcilers: Iterable[Reconciler[Any, Any]]) -> DriftDocument:
        """Return what differs at the moment between the kernel and what was written.

        Raises:
            ApplyError: the kernel cannot be read.
        """
        services: list[ServiceDrift] = []
        shared: list[SharedDrift] = []
        for reconciler in reconcilers:
            if (drift := await reconciler.find_drift()) is not None:
                for item in await self._by_service(reconciler.family, drift):
                    if isinstance(item, ServiceDrift):
                        services.append(item)
                    else:
                        shared.append(item)
        noun = (await asyncio.to_thread(open_dumper, self._config)).rule_noun
        mode = self._config.proxy_mode.value
        services.sort(key=lambda item: (item.namespace, item.name, item.port_name, item.protocol, item.family))
        return DriftDocument(API_VERSION, "Drift", self._node.name, mode, "agent", noun, services, shared)

    async def _by_service(self, family: Family, drift: Drift) -> list[ServiceDrift | SharedDrift]:
        # The modules of the dumper are imported when they are first needed.
        return await asyncio.to_thread(lambda: list(by_service(open_dumper(self._config), family, drift)))

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
        try:
            found = await self._by_service(family, drift)
        except Exception as error:  # nothing awaits this task, and an upgrade may have removed a module
            count = len(drift.changed)
            text = "%s: %d entries were changed by another program, and repaired; their Services cannot be listed: %s"
            logger.warning(text, family, count, error)
            logger.debug("drift that cannot be listed", exc_info=True)
            return
        for item in found[:_MOST_LINES]:
            if isinstance(item, ServiceDrift):
                service = NamespacedName(item.namespace, item.name)
                name = f"{service}{':' if item.port_name else ''}{item.port_name} {item.protocol}"
                about = event_extra("Service", service, "RulesRepaired", "ProgramRules")
            else:
                name = f"rules of {few(item.used_by)}" if item.used_by else "rules that all Services need"
                about = event_extra("Node", self._node, "RulesRepaired", "ProgramRules")
            # The first rule of each kind shows what the other program did; all rules of a flushed table would fill the log.
            parts = [
                f"{what} {rules[0]}" + (f" and {len(rules) - 1} more" if len(rules) > 1 else "")
                for what, rules in (("missing", item.missing), ("unexpected", item.unexpected))
                if rules
            ]
            text = "; ".join(parts) or "rules in another order"
            logger.warning("%s: %s: changed by another program, repaired: %s", family, name, text, extra=about)
        if len(found) > _MOST_LINES:
            about = event_extra("Node", self._node, "RulesRepaired", "ProgramRules")
            rest = len(found) - _MOST_LINES
            logger.warning(
                "%s: the rules of %d more Service ports were changed by another program, and repaired",
                family,
                rest,
                extra=about,
            )
