"""Configuration files to the values that flags would have given: kube-proxy's, and pyproxy's own beside it.

kube-proxy's is a KubeProxyConfiguration, whose fields stand in `config_fields`. pyproxy's own settings have a file and a
kind of their own, so that kube-proxy's stays one that kube-proxy takes: each own flag is a field of it, and so are fields
of kube-proxy's that may have values here that kube-proxy does not know. Own file before kube-proxy's, flags before both.

What kube-proxy takes for «not given» is so here: null, an empty text or list, and for most fields zero
(``apis/config/v1alpha1/defaults.go``), so that a file that kubeadm wrote says little. Fields that nobody knows are
warned of and passed over, as kube-proxy does; a value of the wrong kind is an error, and all errors are told at once.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pyproxy.config.config import OPTIONS, Config, ProxyMode
from pyproxy.config.config_fields import ANY, API_VERSION, FIELDS, KIND, ConfigField
from pyproxy.config.ignored_flags import HEALTHZ_PORT, METRICS_PORT
from pyproxy.errors import ConfigError
from pyproxy.model.address import Family, ListenAddress, family_of, parse_ip
from pyproxy.yaml_documents import YamlDocument, YamlError, yaml_documents

OWN_API_VERSION = "pyproxy.io/v1alpha1"
OWN_KIND = "PyproxyConfiguration"
_ACRONYMS = {"Ip": "IP", "Ips": "IPs", "Cidr": "CIDR", "Cidrs": "CIDRs"}


def _own_fields() -> Iterator[tuple[str, ConfigField]]:
    yield "mode", ConfigField("proxy_mode", ANY)
    yield "metricsBindAddress", ConfigField("metrics_bind_address", ANY)
    for attribute, about in OPTIONS.items():
        if about.own and attribute != "pyproxy_config":
            first, *more = (word.title() for word in about.flag.split("-"))
            yield (
                first.lower() + "".join(_ACRONYMS.get(word, word) for word in more),
                ConfigField(attribute, ANY, keeps_zero=True),
            )


OWN_FIELDS: Mapping[str, ConfigField] = dict(_own_fields())


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of configuration file."""

    flag: str
    """Which names the file."""
    api_version: str
    kind: str
    fields: Mapping[str, ConfigField]

    @property
    def sections(self) -> set[str]:
        """Return the paths that have fields below them."""
        return {path[:at] for path in self.fields for at, letter in enumerate(path) if letter == "."}


_KUBE_PROXYS = Schema("--config", API_VERSION, KIND, FIELDS)
_OWN = Schema("--pyproxy-config", OWN_API_VERSION, OWN_KIND, OWN_FIELDS)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says."""

    path: str
    values: Mapping[str, Any]
    """By attribute of Config. What the file leaves to the defaults, and what flags say otherwise, is not here."""
    warnings: tuple[str, ...]
    fields: Mapping[str, str]
    """Flag to the field that its value came from, or would have come from."""
    text: str = field(repr=False)

    def blamed(self, message: str) -> str:
        """Return a message of Config with file and fields in place of the flags that nobody gave."""

        def field_of(match: re.Match[str]) -> str:
            return self.fields.get(match[1], match[0])

        told = re.sub(r"--([a-z][a-z-]*[a-z])", field_of, message)
        return message if told == message else f"{self.path}: {told}"

    def origins(self) -> dict[str, str]:
        """Return for each attribute of `values` where its value stands."""
        return {name: f"{self.path}: {self.fields.get(OPTIONS[name].flag, 'bindAddress')}" for name in self.values}


def read_files(given: Mapping[str, Any]) -> list[ConfigFile]:
    """Read the files that flags name, the one that counts most first.

    Args:
        given: by attribute of Config, what flags say.

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
    """Read a file of kube-proxy's.

    Args:
        path: of the file.
        typed: by attribute of Config, what wins over the file.

    Raises:
        ConfigError: the file cannot be read, is none of its kind, or values are out of their limits; names file and
            field of each.
    """
    reader = _ConfigReader(_KUBE_PROXYS, path, typed)
    reader.mode = typed.get("proxy_mode") or reader.own_mode()
    file = reader.read()
    values = {**file.values}
    if "manifests" in typed:  # which replace the API server
        values.pop("kubeconfig", None)
    return replace(file, values=_with_listen_defaults(values, typed))


def read_own_file(path: str, typed: Mapping[str, Any]) -> ConfigFile:
    """Read a PyproxyConfiguration; arguments, result and errors are those of `read_config_file`."""
    return _ConfigReader(_OWN, path, typed).read()


@dataclass(slots=True)
class _ConfigReader:
    """Reads one file, and gathers what is wrong with it."""

    schema: Schema
    path: str
    typed: Mapping[str, Any]
    mode: ProxyMode = ProxyMode.IPTABLES
    _text: str = field(init=False)
    _document: YamlDocument = field(init=False)
    _found: list[tuple[str, object]] = field(init=False)
    _warnings: list[str] = field(default_factory=list)
    _errors: dict[str, None] = field(default_factory=dict)
    """In order, each once."""

    def __post_init__(self) -> None:
        self._text = _text(self.schema, self.path)
        self._document, others = _document(self.schema, self.path, self._text)
        if others:
            self._warn(f"only the first document counts, and {others} more are passed over")
        found = _leaves(self._document.tree, "", self.schema.sections)
        self._found = [(name, value) for name, value in found if value is not None]

    def own_mode(self) -> ProxyMode:
        """Return the mode that the file asks for."""
        value = self._value("mode", dict(self._found).get("mode", ""))
        return Config().proxy_mode if value is _NOT_GIVEN else value

    def read(self) -> ConfigFile:
        """Return what the file says.

        Raises:
            ConfigError: see `read_config_file`.
        """
        values: dict[str, Any] = {}
        # The first field of a flag is the one to name where none was given.
        known = reversed([*self.schema.fields.items()])
        fields = {OPTIONS[each.attribute].flag: name for name, each in known if each.attribute}
        for name, raw in self._found:
            if name not in self.schema.fields:
                self._note_unknown(name, raw)
                continue
            value = self._value(name, raw)
            if value is _NOT_GIVEN or not _applies(name, self.mode):
                continue
            attribute = self.schema.fields[name].attribute
            if ignored := self.schema.fields[name].ignored or _ignored(attribute, value):
                self._warn(f"{name} {ignored}")
            if attribute and attribute not in self.typed:
                values[attribute] = value
                fields[OPTIONS[attribute].flag] = name
        if self._errors:
            raise ConfigError("\n".join(self._errors))
        given = {OPTIONS[attribute].flag for attribute in self.typed}
        fields = {flag: name for flag, name in fields.items() if flag not in given}
        return ConfigFile(self.path, values, tuple(self._warnings), fields, self._text)

    def _note_unknown(self, name: str, raw: object) -> None:
        if name in self.schema.sections:
            self._blame(name, f"{json.dumps(raw)} is not a mapping of fields")
            return
        close = get_close_matches(name, self.schema.fields, n=1, cutoff=0.8)
        hint = f" (did you mean {close[0]}?)" if close else ""
        self._warn(f"{name} is unknown, and passed over{hint}")

    def _value(self, name: str, raw: object) -> Any:  # noqa: ANN401  # the attribute's type
        try:
            return _checked_value(self.schema.fields[name], raw)
        except ValueError as error:
            self._blame(name, str(error))
            return _NOT_GIVEN

    def _warn(self, message: str) -> None:
        self._warnings.append(f"{self.path}: {message}")

    def _blame(self, name: str, reason: str) -> None:
        self._errors[f"{self.path}: line {self._document.line(name)}: {name}: {reason}"] = None


def _text(schema: Schema, path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        message = f"{schema.flag}: {path}: {getattr(unreadable, 'strerror', 'is not UTF-8')}"
        raise ConfigError(message) from unreadable


def _document(schema: Schema, path: str, text: str) -> tuple[YamlDocument, int]:
    """Return the first document, which kube-proxy takes whatever follows, and the number of those that follow."""
    match list(yaml_documents(text)):
        case [YamlDocument(tree=dict() as tree) as document, *others]:
            pass
        case [YamlError() as error, *_]:
            message = f"{path}: {error}"
            raise ConfigError(message)
        case _:
            message = f"{path}: is no {schema.kind}"
            raise ConfigError(message)
    for name, wanted in (("apiVersion", schema.api_version), ("kind", schema.kind)):
        if tree.get(name) != wanted:
            message = f"{path}: {name}: {json.dumps(tree.get(name))} is not {wanted}"
            raise ConfigError(message)
    del tree["apiVersion"], tree["kind"]
    return document, len(others)


def _leaves(tree: object, section: str, sections: set[str]) -> Iterator[tuple[str, object]]:
    """Yield each field below a section with its value; a section that is none is a field that nobody knows."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        path = f"{section}.{name}".lstrip(".")
        if path in sections and isinstance(value, dict):
            yield from _leaves(value, path, sections)
        else:
            yield path, value


_NOT_GIVEN: Any = object()


def _checked_value(field: ConfigField, raw: object) -> object:
    text = field.type.read(raw)
    if not text or (not field.attribute and raw is False):
        return _NOT_GIVEN
    if not field.attribute:
        return text
    option = OPTIONS[field.attribute]
    value = option.grammar.parse(text)
    # None is a value: «no server», which an address with port 0 asks for.
    if value is not None and not value and not field.keeps_zero:
        return _NOT_GIVEN
    option.require_limits(value)
    return value


def _applies(name: str, mode: ProxyMode) -> bool:
    """Say whether a mode reads a field: nftables has its block, the others (ipvs beside its own) that of iptables."""
    match name.partition(".")[0]:
        case "nftables":
            return mode in {ProxyMode.NFTABLES, ProxyMode.AUTO}
        case "iptables":
            return mode is not ProxyMode.NFTABLES
    return True


def _ignored(attribute: str, value: object) -> str:
    return "" if value == getattr(Config(), attribute) else OPTIONS[attribute].ignored


def _with_listen_defaults(values: dict[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Let servers listen on IPv6 where the node's address is one and nobody says where."""
    address = values.get("bind_address")
    if address is None or family_of(address) is Family.IPV4:
        return values
    defaults = {
        "metrics_bind_address": ListenAddress(parse_ip("::1"), METRICS_PORT),
        "healthz_bind_address": ListenAddress(parse_ip("::"), HEALTHZ_PORT),
    }
    return {name: value for name, value in defaults.items() if name not in typed} | values
