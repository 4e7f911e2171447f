"""What goes once the rules of the iptables or the nftables mode are complete: what was left by all that ran before.

The IPVS mode keeps its own virtual servers, and so has a removal of its own.
"""

from pyproxy.apply.iptables import Variant
from pyproxy.compile.chain_names import is_ours
from pyproxy.config import Config
from pyproxy.flags.takeover import Takeover
from pyproxy.modes.leftovers import retire, retire_trial


async def retire_others(config: Config, used: Variant | None) -> None:
    """Remove what is left of other modes and variants, and of a trial; on trial what is left of one, and nothing else.

    Args:
        config: says whether this is a trial, and whether what kube-proxy left goes as well.
        used: the variant that this mode uses; None: nftables.

    Raises:
        ApplyError: something could not be removed.
    """
    if config.service_proxy_name:
        await retire_trial(used)
        return
    its_too = config.takeover is Takeover.AUTO
    await retire(used, is_ours, its_too=its_too)
    from pyproxy.modes.ipvs_cleanup import retire_ipvs  # noqa: PLC0415  # most nodes never had this mode

    await retire_ipvs(used, its_too=its_too)
