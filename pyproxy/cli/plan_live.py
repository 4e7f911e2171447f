"""What the next sync would change in the kernel of this node. Only reads."""

from pyproxy.backends.registry import choose_mode, open_dumper
from pyproxy.cli.live_objects import known_objects
from pyproxy.cli.plan_report import PlanDocument, compared, plan_document
from pyproxy.config.config import Config
from pyproxy.linux.addresses import local_addresses
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.node.context import NodeContext
from pyproxy.plan.planner import final_plans


async def plan_of_kernel(config: Config) -> PlanDocument:
    """Return what a full sync of an agent with this configuration would change now.

    Raises:
        ApplyError: the kernel cannot be read.
        ConfigError: this node does not support the configuration, or it leads to no API server.
        RightsError: this process may not read the kernel's rules.
        SourceError: the objects cannot be read.
    """
    require_capabilities("plan")
    config = await choose_mode(config)
    dumper = open_dumper(config)
    tracker, node = await known_objects(config)
    context = NodeContext(node=node, local_ips=await local_addresses(), service_cidrs=tracker.take_service_cidrs())
    comparisons = [
        compared(dumper, family, present, dumper.program(family, context, present), final_plans(tracker, node, family))
        for family, present in (await dumper.read()).items()
    ]
    return plan_document(node.name, config.proxy_mode.value, "kernel", dumper, comparisons)
