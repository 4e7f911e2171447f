"""Configuration files to the values that flags would have: kube-proxy's, and pyproxy's own beside it.

kube-proxy's is a KubeProxyConfiguration (`kube_proxy_configuration`). pyproxy's own settings have a kind of their own, so
that kube-proxy can still read its file: a PyproxyConfiguration has a field for each own option, and for those options of
kube-proxy that accept values here that kube-proxy does not know. Flags override the own file, which overrides
kube-proxy's.

As in kube-proxy, null, an empty text or list, and in most fields zero mean the default
(``apis/config/v1alpha1/defaults.go``). An unknown field causes a warning and is ignored, as in kube-proxy. A value of the
wrong type or out of its limits is an error; all errors of a file are reported at once.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pyproxy.config.config import OPTIONS, Config, ProxyMode
from pyproxy.config.config_fields import ConfigField, fields_of, sets
from pyproxy.config.grammar import DURATION, Grammar, write_bool
from pyproxy.config.ignored_options import HEALTHZ_PORT, METRICS_PORT
from pyproxy.config.kube_proxy_configuration import API_VERSION, KubeProxyConfiguration
from pyproxy.errors import ConfigError
from pyproxy.model.address import LOOPBACK_IPS, Family, ListenAddress, family_of, parse_ip
from pyproxy.model.suggestion import suggestion
from pyproxy.yaml_documents import YamlDocument, YamlError, yaml_documents

OWN_API_VERSION = "pyproxy.io/v1alpha1"
_ACRONYMS = {"Ip": "IP", "Ips": "IPs", "Cidr": "CIDR", "Cidrs": "CIDRs"}
# What a flag can be given as: the type of every field of a PyproxyConfiguration.
_AnyValue = bool | int | str | list[str] | None


def _own_configuration() -> type[msgspec.Struct]:
    # A field for each own option, in camelCase with acronyms in capitals, as in Kubernetes APIs. The type is made from the
    # options, so that a new one is a field without further code.
    names = {"proxy_mode": "mode", "metrics_bind_address": "metricsBindAddress"}
    for attribute, about in OPTIONS.items():
        if about.own and attribute != "pyproxy_config":
            first, *more = about.flag.split("-")
            names[attribute] = first + "".join(_ACRONYMS.get(word, word) for word in map(str.title, more))
    return msgspec.defstruct(
        "PyproxyConfiguration",
        [
            (
                attribute,
                Annotated[_AnyValue, sets(attribute, keeps_zero=OPTIONS[attribute].own)],
                msgspec.field(name=name, default=None),
            )
            for attribute, name in names.items()
        ],
    )


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of configuration file."""

    flag: str
    """The flag that names the file."""
    api_version: str
    configuration: type[msgspec.Struct]
    """Its name is the ``kind``."""
    fields: Mapping[str, ConfigField]


_KUBE_PROXYS = Schema("--config", API_VERSION, KubeProxyConfiguration, fields_of(KubeProxyConfiguration))
_OWN = _own_configuration()
_OWNS = Schema("--pyproxy-config", OWN_API_VERSION, _OWN, fields_of(_OWN))
FIELDS = _KUBE_PROXYS.fields
"""Fields of a KubeProxyConfiguration by path."""
OWN_FIELDS = _OWNS.fields
"""Fields of a PyproxyConfiguration."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a file."""

    path: str
    values: Mapping[str, Any]
    """By attribute of Config; without those that the file leaves to the default, and those that flags override."""
    warnings: tuple[str, ...]
    fields: Mapping[str, str]
    """Flag to the field that its value came from, or would have come from."""
    text: str = field(repr=False)

    def with_fields(self, message: str) -> str:
        """Return a message of Config with the file and its fields instead of flags that were not given."""

        def field_of(match: re.Match[str]) -> str:
            return self.fields.get(match[1], match[0])

        # Messages of Config name flags; a user who has written a file looks for its fields.
        changed = re.sub(r"--([a-z][a-z-]*[a-z])", field_of, message)
        return message if changed == message else f"{self.path}: {changed}"

    def origins(self) -> dict[str, str]:
        """Return for each attribute of `values` the file and field that it comes from."""
        return {name: f"{self.path}: {self.fields.get(OPTIONS[name].flag, 'bindAddress')}" for name in self.values}


def read_files(given: Mapping[str, Any]) -> list[ConfigFile]:
    """Read the files that flags name, the one with the highest precedence first.

    Args:
        given: values of flags, by attribute of Config.

    Raises:
        ConfigError: see `read_config_file`.
    """
    values, files = dict(given), []
    for attribute, read in (("pyproxy_config", read_own_file), ("config", read_config_file)):
        if path := given.get(attribute):
            files.append(read(path, values))
            values = {**files[-1].values, **values}
    return files


def read_config_file(path: str, typed: Mapping[str, Any]) -> ConfigFile:
    """Read a KubeProxyConfiguration.

    Args:
        path: path of the file.
        typed: values that override the file, by attribute of Config.

    Raises:
        ConfigError: the file cannot be read, is of another kind, or has wrong values; names file and field of each.
    """
    file = _ConfigReader(_KUBE_PROXYS, path, typed).read()
    values = dict(file.values)
    if "manifests" in typed:
        # Manifests replace the API server.
        values.pop("kubeconfig", None)
    # kube-proxy's default for the servers depends on the family of bindAddress (`apis/config/v1alpha1/defaults.go`).
    address = values.get("bind_address")
    if address is not None and family_of(address) is Family.IPV6:
        defaults = {
            "metrics_bind_address": ListenAddress(LOOPBACK_IPS[Family.IPV6], METRICS_PORT),
            "healthz_bind_address": ListenAddress(parse_ip("::"), HEALTHZ_PORT),
        }
        values = {name: value for name, value in defaults.items() if name not in typed} | values
    return replace(file, values=values)


def read_own_file(path: str, typed: Mapping[str, Any]) -> ConfigFile:
    """Read a PyproxyConfiguration; arguments, result and errors are those of `read_config_file`."""
    return _ConfigReader(_OWNS, path, typed).read()


_NOT_GIVEN: Any = object()


@dataclass(slots=True)
class _ConfigReader:
    """Reads one file, and collects its errors and warnings."""

    schema: Schema
    path: str
    typed: Mapping[str, Any]
    _document: YamlDocument = field(init=False)
    # Each with its line.
    _warnings: dict[str, int] = field(default_factory=dict)
    _errors: dict[str, int] = field(default_factory=dict)

    def read(self) -> ConfigFile:
        """Read the file.

        Raises:
            ConfigError: see `read_config_file`.
        """
        text, tree = self._load()
        configuration = self._converted(tree)
        for name in _unknown_fields(tree, self.schema.fields):
            self._warn(name, f"is unknown and ignored{suggestion(name, self.schema.fields)}")
        found = {
            name: value for name, each in self.schema.fields.items() if (value := each.value(configuration)) is not None
        }
        # The mode decides which sections count, so it is read before all other fields.
        mode = self.typed.get("proxy_mode") or self._value("mode", found.get("mode", ""))
        values: dict[str, Any] = {}
        # A message about a flag that no field sets names the first field that could.
        fields = {
            OPTIONS[each.attribute].flag: name
            for name, each in reversed([*self.schema.fields.items()])
            if each.attribute
        }
        for name, raw in found.items():
            value = self._value(name, raw)
            if value is _NOT_GIVEN or not _applies(name, Config().proxy_mode if mode is _NOT_GIVEN else mode):
                continue
            attribute, ignored = self.schema.fields[name].attribute, self.schema.fields[name].ignored
            # A file that kubeadm writes has every field: an ignored option is worth a warning only if it was changed.
            if attribute and value != OPTIONS[attribute].value(Config()):
                ignored = OPTIONS[attribute].ignored
            if ignored:
                self._warn(name, ignored)
            if attribute and attribute not in self.typed:
                values[attribute] = value
                fields[OPTIONS[attribute].flag] = name
        # Errors and warnings in the order of their lines.
        if self._errors:
            raise ConfigError("\n".join(sorted(self._errors, key=self._errors.__getitem__)))
        given = {OPTIONS[attribute].flag for attribute in self.typed}
        fields = {flag: name for flag, name in fields.items() if flag not in given}
        return ConfigFile(
            self.path, values, tuple(sorted(self._warnings, key=self._warnings.__getitem__)), fields, text
        )

    def _load(self) -> tuple[str, dict[str, Any]]:
        kind = self.schema.configuration.__name__
        try:
            text = Path(self.path).read_text()
        except (OSError, UnicodeDecodeError) as unreadable:
            message = f"{self.schema.flag}: {self.path}: {getattr(unreadable, 'strerror', 'is not UTF-8')}"
            raise ConfigError(message) from unreadable
        match list(yaml_documents(text)):
            case [YamlDocument(tree=dict() as tree) as document, *others]:
                self._document = document
            case [YamlError() as error, *_]:
                message = f"{self.path}: {error}"
                raise ConfigError(message)
            case _:
                message = f"{self.path}: is not a {kind}"
                raise ConfigError(message)
        for name, wanted in (("apiVersion", self.schema.api_version), ("kind", kind)):
            if tree.get(name) != wanted:
                message = f"{self.path}: {name}: {json.dumps(tree.get(name))} is not {wanted}"
                raise ConfigError(message)
        if others:
            # kube-proxy reads the first document and ignores what follows.
            self._warnings[f"{self.path}: only the first document is read, and {len(others)} more are ignored"] = 0
        return text, {name: value for name, value in tree.items() if name not in {"apiVersion", "kind"}}

    def _converted(self, tree: dict[str, Any]) -> msgspec.Struct:
        # msgspec stops at the first wrong type. To report all, each is left out and the rest is converted again.
        while True:
            try:
                return msgspec.convert(tree, self.schema.configuration)
            except msgspec.ValidationError as error:
                match = _VALIDATION_ERROR.fullmatch(str(error))
                path, reason = (match["path"], match["reason"]) if match else ("", str(error))
                if mismatch := _MISMATCH.fullmatch(reason):
                    wanted = [_TYPE_NAMES[name] for name in mismatch["wanted"].split(" | ") if name != "null"]
                    words = " or ".join(filter(None, (", ".join(wanted[:-1]), wanted[-1])))
                    reason = f"must be {words}, not {_TYPE_NAMES[mismatch['found']]}"
                self._blame(path, reason.replace("`", ""))
                tree = _without(tree, re.sub(r"\[.*", "", path).split("."))

    def _value(self, name: str, raw: object) -> Any:  # noqa: ANN401  # the option's type
        field = self.schema.fields[name]
        if not field.attribute:
            return raw or _NOT_GIVEN
        option = OPTIONS[field.attribute]
        text = _flag_text(raw, option.grammar)
        if not text:
            return _NOT_GIVEN
        try:
            value = option.grammar.parse(text)
            # Go cannot distinguish an absent field from its zero value, so that zero means the default, except where
            # kube-proxy has a pointer. None is a value: an address with port 0 disables the server.
            if value is not None and not value and not field.keeps_zero:
                return _NOT_GIVEN
            option.require_limits(value)
        except ValueError as error:
            self._blame(name, str(error))
            return _NOT_GIVEN
        return value

    def _warn(self, name: str, message: str) -> None:
        self._warnings[f"{self.path}: {name} {message}"] = self._document.line(name)

    def _blame(self, name: str, reason: str) -> None:
        line = self._document.line(name)
        self._errors[f"{self.path}: line {line}: {name}: {reason}"] = line


def _unknown_fields(tree: Mapping[str, Any], known: Mapping[str, ConfigField], section: str = "") -> Iterator[str]:
    for name, value in tree.items():
        path = f"{section}{name}"
        if any(each.startswith(f"{path}.") for each in known):
            # A section that is not a mapping is reported as an error of its type.
            yield from _unknown_fields(value if isinstance(value, dict) else {}, known, f"{path}.")
        elif path not in known:
            yield path


# msgspec names types as JSON does, and begins the path of a field with "$".
_VALIDATION_ERROR = re.compile(r"(?P<reason>.*?)(?: - at `\$\.(?P<path>.*)`)?")
_MISMATCH = re.compile(r"Expected `(?P<wanted>.*)`, got `(?P<found>.*)`")
_TYPE_NAMES = {
    "bool": "a boolean",
    "int": "an integer",
    "str": "a string",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def _without(tree: dict[str, Any], steps: list[str]) -> dict[str, Any]:
    # A copy, because aliases of YAML may share parts of a tree.
    first, *more = steps
    if not more:
        return {name: value for name, value in tree.items() if name != first}
    return tree | {first: _without(tree[first], more)}


def _flag_text(value: object, grammar: Grammar[object]) -> str:
    # A file has typed values, and a flag has text. Values of files go through the grammar of the flag as well, so that limits
    # and messages are the same. A metav1.Duration in a file may be a number of nanoseconds.
    match value:
        case bool():
            return write_bool(value)
        case int() if grammar is DURATION:
            return f"{value}ns"
        case dict():
            # Go's decoder takes null for the zero value, false.
            return ",".join(f"{name}={write_bool(bool(each))}" for name, each in value.items())
        case list():
            return ",".join(map(str, value))
        case _:
            return str(value)


def _applies(name: str, mode: ProxyMode) -> bool:
    # A mode reads its own section, and ipvs that of iptables as well; auto may become nftables or iptables.
    match name.partition(".")[0]:
        case "nftables":
            return mode in {ProxyMode.NFTABLES, ProxyMode.AUTO}
        case "iptables":
            return mode is not ProxyMode.NFTABLES
    return True
