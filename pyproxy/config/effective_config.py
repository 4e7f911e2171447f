"""A Config as a complete KubeProxyConfiguration: what ``--write-config-to`` writes, and ``/configz`` shows."""

import logging
from pathlib import Path
from typing import Any

import msgspec

from pyproxy.config.config import OPTIONS, Config, ProxyMode
from pyproxy.config.config_fields import ConfigField
from pyproxy.config.config_file import FIELDS
from pyproxy.config.grammar import DURATION
from pyproxy.config.kube_proxy_configuration import API_VERSION, KubeProxyConfiguration, VModuleItem
from pyproxy.errors import ConfigError

logger = logging.getLogger(__name__)


def effective_configuration(config: Config) -> dict[str, Any]:
    """Return a configuration as a KubeProxyConfiguration (v1alpha1) in JSON's types: every field, defaults included.

    kube-proxy can read it: ``--proxy-mode=auto`` becomes the empty text, kube-proxy's word for the best mode, unless the
    caller has put the selected mode into the Config. pyproxy's own options are not in it. A minimal sync period that was
    not set is 0s, which means the default.
    """
    # From the table of fields, which is also what files are read by: what is written can be read again.
    tree: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KubeProxyConfiguration.__name__}
    for path, field in FIELDS.items():
        value = _file_value(config, field)
        if field.omit_empty and not value:
            continue
        *sections, name = path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    if config.proxy_mode is ProxyMode.AUTO:
        tree["mode"] = ""
    if config.proxy_mode is ProxyMode.NFTABLES and not config.nodeport_addresses:
        tree["nodePortAddresses"] = ["primary"]
    return tree


def _file_value(config: Config, field: ConfigField) -> object:
    # A field without an option has its zero value, as in Go.
    if not field.attribute:
        return False if isinstance(field.type, msgspec.inspect.BoolType) else ""
    option = OPTIONS[field.attribute]
    value = option.value(config)
    if option.grammar is DURATION:
        return go_duration(value or 0.0)
    written: object
    match field.type, value:
        case msgspec.inspect.DictType(), _:
            written = dict(value)
        case msgspec.inspect.ListType(item_type=msgspec.inspect.StructType()), _:
            written = [msgspec.to_builtins(VModuleItem.from_text(item)) for item in value.split(",") if item]
        case msgspec.inspect.ListType(), _:
            # Go writes a nil slice as null.
            written = [str(item) for item in value] or None
        # Go writes 5.0 as 5, and YAML would keep the float.
        case _, float() if value.is_integer():
            written = int(value)
        case _, bool() | int() | float():
            written = value
        case _:
            written = option.grammar.write(value)
    return written


def go_duration(seconds: float) -> str:
    """Write a duration as Go's ``Duration.String`` does: ``24h0m0s``, ``1m30s``, ``500ms``."""

    def shortest(number: float) -> str:
        return f"{number:.9f}".rstrip("0").rstrip(".")

    if seconds < 0:
        return f"-{go_duration(-seconds)}"
    # Below a second Go uses the largest unit that gives a number of at least 1, and from a minute on it omits no unit.
    if 0 < seconds < 1:
        unit, factor = next(pair for pair in (("ms", 10**3), ("µs", 10**6), ("ns", 10**9)) if seconds * pair[1] >= 1)
        return f"{shortest(seconds * factor)}{unit}"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{head}{shortest(rest)}s"


def write_configuration(config: Config, path: str) -> None:
    """Write a configuration to a file, as kube-proxy's ``--write-config-to`` does.

    Raises:
        ConfigError: the file cannot be written.
    """
    import yaml  # noqa: PLC0415  # an agent does not need it

    try:
        Path(path).write_text(yaml.safe_dump(effective_configuration(config), allow_unicode=True))
    except OSError as error:
        message = f"--write-config-to: {path}: {error.strerror}"
        raise ConfigError(message) from error
    defaults = Config()
    own = [
        f"--{about.flag}" for about in OPTIONS.values() if about.own and about.value(config) != about.value(defaults)
    ]
    omitted = f"; it does not have pyproxy's own settings: {', '.join(own)}" if own else ""
    logger.info("wrote the configuration to %s%s", path, omitted)
