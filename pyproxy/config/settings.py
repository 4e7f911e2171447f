"""The settings that result from flags, pyproxy's own file, kube-proxy's file and defaults, in this order of precedence.

It combines values that other modules read: `cli` the command line, `config.config_file` the files, `config` defaults and
limits.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyproxy.config.config import OPTIONS, Config, build_config, ignored_warnings
from pyproxy.errors import ConfigError

if TYPE_CHECKING:
    from pyproxy.config.config_file import ConfigFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSettings:
    """A Config, and where its values come from."""

    config: Config
    warnings: tuple[str, ...] = ()
    """One for each flag or field of a file that has no effect."""
    origins: Mapping[str, str]
    """Attribute of Config to the flag, or ``FILE: FIELD``, that its value came from; other values are defaults."""
    texts: dict[str, str]
    """Path of each configuration file to its content when it was read."""

    def origin(self, attribute: str) -> str:
        """Return where a value came from, for people."""
        return self.origins.get(attribute, "default")

    def in_words(self) -> str:
        """Return the mode, and the origin of each setting that is not a default, in one line."""
        values_by_source: dict[str, list[str]] = {}
        for attribute, origin in self.origins.items():
            about = OPTIONS[attribute]
            value = about.value(self.config)
            place, colon, name = origin.rpartition(": ")
            if not colon or value != about.value(Config()):
                text = "" if value is None else about.grammar.write(value)
                values_by_source.setdefault(place or "flags", []).append(f"{name}={text}")
        places = (f"{place}: {', '.join(settings)}" for place, settings in values_by_source.items())
        return "; ".join((f"{self.config.proxy_mode.value} mode", *places, "all else is default"))


def resolve_settings(given: Mapping[str, Any]) -> ResolvedSettings:
    """Combine flags and the files that they name.

    Args:
        given: values of flags, by attribute of Config.

    Raises:
        ConfigError: see `Config` and `config.config_file`.
    """
    files: Sequence[ConfigFile] = ()
    if given.get("config") or given.get("pyproxy_config"):
        from pyproxy.config.config_file import read_files  # noqa: PLC0415  # YAML

        files = read_files(given)
    # The first mapping with a key wins: flags, then the own file, then kube-proxy's.
    values = dict(ChainMap(dict(given), *(dict(file.values) for file in files)))
    # The deprecated port flags of kube-proxy: only 0, which disables a server, still has an effect.
    for server in ("metrics", "healthz"):
        if values.get(f"{server}_port") == 0:
            values[f"{server}_bind_address"] = None
    try:
        config = build_config(values)
    except ConfigError as error:
        message = str(error)
        for file in files:
            message = file.with_fields(message)
        raise ConfigError(message) from error
    origins = {name: f"--{OPTIONS[name].flag}" for name in given}
    for file in files:
        origins |= file.origins()
    warnings = (*ignored_warnings(given), *(warning for file in files for warning in file.warnings))
    return ResolvedSettings(
        config=config, warnings=warnings, origins=origins, texts={file.path: file.text for file in files}
    )
