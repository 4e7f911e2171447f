"""What the IPVS mode needs of the kernel, each with an error of its own that names the module.

On a node where the mode was before nothing is tried, and so nothing written.
"""

from contextlib import closing
from typing import NoReturn

from pyproxy.backends.iptables.capabilities import chain_rules, why_refused
from pyproxy.backends.iptables.chain_names import POSTROUTING
from pyproxy.backends.iptables.rules import source_is_destination
from pyproxy.backends.iptables.ruleset import NAT, ChainKey
from pyproxy.backends.ipvs.entries import Scheduling, VirtualServer
from pyproxy.backends.ipvs.ipset import IpSets, IpsetType
from pyproxy.backends.ipvs.vips import Vips
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.errors import ApplyError, ConfigError
from pyproxy.linux.command import CommandError, run
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family, parse_ip

_INSTEAD = "load it, or use --proxy-mode=nftables or --proxy-mode=iptables"
_TRIAL = VirtualServer(parse_ip("198.51.100.0"), 6, 20000)
"""An address for documentation: nobody talks to it."""
_TRIAL_SETS = "PYPROXY-PROBE-"


async def require_ipvs() -> None:
    """See that the kernel has IPVS, and load the module if need be.

    Raises:
        ConfigError: it has not.
    """
    reason = _why_not()
    if reason:
        try:
            reason = (await run(["modprobe", "ip_vs"])).stderr.strip() or reason
        except CommandError as error:
            reason = str(error)
        if _why_not():
            _refuse("ip_vs", reason)


def require_scheduler(scheduler: str) -> None:
    """See that the kernel has a scheduler; where one of its virtual servers says so, nothing is written.

    Raises:
        ConfigError: it has not.
    """
    servers = IpvsConnection()
    try:
        if any(how.scheduler == scheduler for family in Family for _, how in servers.services(family)):
            return
        servers.perform([servers.add(_TRIAL, Scheduling(scheduler))])
        servers.perform_deletes([servers.delete(_TRIAL)])
    except ApplyError as error:
        message = f"--ipvs-scheduler: {scheduler}: the kernel has no module ip_vs_{scheduler} ({error})"
        raise ConfigError(message) from error
    finally:
        servers.close()


async def require_rules(family: Family, variant: Variant) -> None:
    """See that the kernel has what the rules beside IPVS need: tables, sets, matches and a device.

    Raises:
        ConfigError: it has not.
    """
    if "-m ipvs" in await chain_rules(family, variant, ChainKey(NAT, POSTROUTING)):
        return
    reason = await why_refused(family, variant, "-j RETURN")
    if reason:
        other = next(each for each in Variant if each is not variant)
        message = (
            f"--proxy-mode: ipvs needs rules in iptables-{variant.value}, which this kernel does not take"
            f" ({_in_one_line(reason)}); use --iptables-variant={other.value}, --proxy-mode=nftables or --proxy-mode=iptables"
        )
        raise ConfigError(message)
    sets = _TrialSets(family)
    try:
        sets.create()
        for module, rule in (
            ("xt_set", f"-m set --match-set {sets.any_name} dst"),
            ("xt_ipvs", "-m ipvs --ipvs"),
            ("xt_bpf", source_is_destination(family)),
        ):
            reason = await why_refused(family, variant, f"{rule} -j RETURN")
            if reason:
                _refuse(module, _in_one_line(reason))
    finally:
        sets.destroy()
    try:
        with closing(Vips(family)) as vips:
            vips.ensure_device()
    except ApplyError as error:
        _refuse("dummy", str(error))


class _TrialSets:
    """A set of each type that is used, without members."""

    def __init__(self, family: Family) -> None:
        self._types = {kind.name: kind for kind in IpsetType}
        self.any_name = _TRIAL_SETS + IpsetType.IP.name
        try:
            self._sets = IpSets(family, _TRIAL_SETS)
        except OSError as error:
            _refuse("ip_set", str(error.strerror))

    def create(self) -> None:
        try:
            self._sets.create(self._types, self._types)
        except ApplyError as error:
            _refuse("ip_set, ip_set_hash_ip, ip_set_hash_ipport or ip_set_hash_ipportnet", str(error))

    def destroy(self) -> None:
        self._sets.destroy(self._types)
        self._sets.close()


def _why_not() -> str:
    try:
        IpvsConnection().close()
    except OSError as error:
        return str(error.strerror)
    return ""


def _in_one_line(reason: str) -> str:
    # What the program said; behind it stands the input.
    return " ".join(reason.splitlines()[:2])


def _refuse(module: str, reason: str) -> NoReturn:
    message = f"--proxy-mode: ipvs needs the kernel module {module}, which is not there ({reason}); {_INSTEAD}"
    raise ConfigError(message)
