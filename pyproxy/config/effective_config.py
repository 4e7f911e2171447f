"""A Config as a KubeProxyConfiguration that says everything: what ``--write-config-to`` writes, and ``/configz`` shows."""

import logging
from pathlib import Path
from typing import Any

from pyproxy.config.config import OPTIONS, Config, ProxyMode
from pyproxy.config.config_fields import API_VERSION, FIELDS, KIND, ConfigField
from pyproxy.errors import ConfigError

logger = logging.getLogger(__name__)


def effective_configuration(config: Config) -> dict[str, Any]:
    """Return a configuration as a KubeProxyConfiguration (v1alpha1), as JSON has it: every field, defaults included.

    kube-proxy takes it, too: so ``--proxy-mode=auto`` becomes the empty text, its word for the best mode; who knows
    the mode puts it into the Config first. What is pyproxy's own is not in it. A shortest sync period that nobody has
    chosen is 0s, which stands for the default.
    """
    tree: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND}
    for path, field in FIELDS.items():
        value = _value(config, field)
        if field.may_be_left_out and not value:
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


def write_configuration(config: Config, path: str) -> None:
    """Write a configuration to a file, as kube-proxy's ``--write-config-to`` does.

    Raises:
        ConfigError: the file cannot be written.
    """
    import yaml  # noqa: PLC0415  # an agent has no use for it

    try:
        Path(path).write_text(yaml.safe_dump(effective_configuration(config), allow_unicode=True))
    except OSError as error:
        message = f"--write-config-to: {path}: {error.strerror}"
        raise ConfigError(message) from error
    defaults = Config()
    own = (f"--{about.flag}" for name, about in OPTIONS.items() if about.own and _differs(name, config, defaults))
    left_out = ", ".join(own)
    logger.info(
        "wrote the configuration to %s%s", path, f"; not in it, as pyproxy's own: {left_out}" if left_out else ""
    )


def _differs(attribute: str, one: Config, other: Config) -> bool:
    return bool(getattr(one, attribute) != getattr(other, attribute))


def _value(config: Config, field: ConfigField) -> object:
    if not field.attribute:
        return field.type.empty
    return field.type.write(getattr(config, field.attribute), OPTIONS[field.attribute].grammar)
