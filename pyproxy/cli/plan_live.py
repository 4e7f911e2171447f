"""What the next sync would change in the kernel of this node. Only reads."""

from pyproxy.backends.registry import backend_class, choose_mode, open_dumper
from pyproxy.cli.control import is_agent_here
from pyproxy.cli.live_objects import known_objects
from pyproxy.cli.plan_report import Leftover, PlanDocument, compared, plan_document
from pyproxy.config.config import Config, Takeover
from pyproxy.linux.addresses import local_addresses
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.model.address import Family
from pyproxy.node.context import NodeContext
from pyproxy.plan.planner import final_plans
from pyproxy.plan.service_values import FAMILIES
from pyproxy.takeover.running_proxy import detect_running_proxy
from pyproxy.takeover.stale_rules import find_stale_rules, kube_proxy_nft_tables


async def plan_of_kernel(config: Config, *, with_leftovers: bool = True) -> PlanDocument:
    """Return what a full sync of an agent with this configuration would change now.

    Args:
        config: of the agent.
        with_leftovers: whether to look for rules of another proxy or mode, which the agent removes.

    Raises:
        ApplyError: the kernel cannot be read.
        ConfigError: this node does not support the configuration, or it leads to no API server.
        RightsError: this process may not read the kernel's rules.
        SourceError: the objects cannot be read.
    """
    # As an agent starts, in the same order: the mode, the objects, the entries in the kernel, and then the difference.
    require_capabilities("plan")
    config = await choose_mode(config)
    dumper = open_dumper(config)
    tracker, node = await known_objects(config)
    context = NodeContext(node=node, local_ips=local_addresses(), service_cidrs=tracker.take_service_cidrs())
    # The program gets the present entries, as in a full sync: a few values depend on them, such as names that can be kept.
    comparisons = [
        compared(dumper, family, present, dumper.program(family, context, present), final_plans(tracker, node, family))
        for family, present in (await dumper.read()).items()
    ]
    found = plan_document(node.name, config.proxy_mode.value, "kernel", dumper, comparisons)
    if with_leftovers and config.takeover is Takeover.AUTO and not config.service_proxy_name:
        found.leftovers = await _leftovers(config)
        # The agent of this node has the same kind of server as kube-proxy.
        if not (config.control_socket and is_agent_here(config.control_socket)):
            found.running_proxy = await detect_running_proxy(config)
    return found


async def _leftovers(config: Config) -> list[Leftover]:
    # What the agent removes when its own rules are complete: rules of kube-proxy, and of other modes.
    from pyproxy.backends.ipvs.cleanup import kube_proxy_state  # noqa: PLC0415  # most nodes never had this mode

    backend = backend_class(config.proxy_mode)
    found: list[Leftover] = []
    for saved in await find_stale_rules(await backend.choose_iptables_variant(config), backend.owns_chain):
        if chains := sum(map(len, saved.left.values())):
            where = f"iptables-{saved.variant.value}"
            found.append(Leftover(FAMILIES[saved.family], where, f"{chains} chain{'' if chains == 1 else 's'}"))
    for family, text in (await kube_proxy_nft_tables()).items():
        chains = text.count("\n\tchain ")
        found.append(Leftover(FAMILIES[family], "nftables", f"table kube-proxy with {chains} chains"))
    for family in Family:
        if left := kube_proxy_state(family):
            what = f"{len(left.virtuals)} virtual servers, {len(left.ips)} addresses and {len(left.names)} sets"
            found.append(Leftover(FAMILIES[family], "IPVS", what))
    return found
