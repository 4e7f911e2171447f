"""The flags that say how pyproxy stands to a kube-proxy on the same node: in its place after it, or beside it on trial."""

import re
from dataclasses import dataclass
from enum import Enum

from pyproxy.config.grammar import TEXT, one_of
from pyproxy.config.ignored_flags import IgnoredFlags
from pyproxy.config.option import option

# A label value of Kubernetes (apimachinery, `IsValidLabelValue`).
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


class Takeover(Enum):
    """What becomes of a kube-proxy's work; values as ``--takeover`` takes them."""

    AUTO = "auto"
    """A live one is waited for, and what a dead one left goes once our own rules are complete."""
    NEVER = "never"
    """Neither."""


def _label_value(value: str) -> None:
    if not _LABEL_VALUE.fullmatch(value):
        message = (
            "is no label value: at most 63 letters, digits, '-', '_' and '.', of which the first and last are none"
        )
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverFlags(IgnoredFlags):
    """The fields of Config that say how pyproxy stands to a kube-proxy on the node."""

    takeover: Takeover = option(
        Takeover.AUTO,
        one_of(Takeover),
        "What to do about kube-proxy. auto: wait until it is gone, then remove what it left, once pyproxy's own rules are"
        " complete; never: neither.",
        own=True,
    )
    service_proxy_name: str = option(
        "",
        TEXT,
        "Serve only Services whose label service.kubernetes.io/service-proxy-name has this value, beside a kube-proxy"
        " that serves all others; its rules are not touched. For nftables and iptables mode.",
        check=_label_value,
        own=True,
    )
