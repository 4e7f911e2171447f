"""Fields of configuration files: what a msgspec struct declares about each, and the flat table made from it.

A field of a file belongs to a struct; its annotation says which option it sets (`sets`), or why it has no effect
(`has_no_effect`). `kube_proxy_configuration` has kube-proxy's structs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Meta, Struct, inspect

Number = int | str
"""A number with a decimal point is a text: `yaml_documents` does not convert it. So is a quantity such as 1Mi."""


def sets(attribute: str, *, keeps_zero: bool = False, omit_empty: bool = False) -> Meta:
    """Declare the option of Config that a field sets.

    Args:
        attribute: the option.
        keeps_zero: zero and false are values; in other fields they mean the default.
        omit_empty: kube-proxy writes the field only if it has a value (``omitempty``).
    """
    return Meta(extra={"attribute": attribute, "keeps_zero": keeps_zero, "omit_empty": omit_empty})


def has_no_effect(warning: str) -> Meta:
    """Declare a field without an option, and the warning if it has a value."""
    return Meta(extra={"ignored": warning})


@dataclass(frozen=True, slots=True)
class ConfigField:
    """A field of a file. For the last three attributes see `sets`."""

    steps: tuple[str, ...]
    """Names of the attributes that lead to the value in the struct of the file."""
    type: inspect.Type
    attribute: str = ""
    """Option of Config; empty if no option corresponds to the field."""
    ignored: str = ""
    """Warning for a field without an option."""
    keeps_zero: bool = False
    omit_empty: bool = False

    def value(self, configuration: Struct) -> Any:  # noqa: ANN401  # the field's type
        """Return the value of the field, None if it is absent or null."""
        value: Any = configuration
        for step in self.steps:
            value = None if value is None else getattr(value, step)
        return value


def fields_of(configuration: type[Struct]) -> Mapping[str, ConfigField]:
    """Return the fields of a file by path, such as ``iptables.syncPeriod``."""
    return dict(_fields(inspect.type_info(configuration), "", ()))


def _fields(info: inspect.Type, section: str, steps: tuple[str, ...]) -> Iterator[tuple[str, ConfigField]]:
    assert isinstance(info, inspect.StructType)  # noqa: S101  # the type checker cannot know
    for declared in info.fields:
        path, inner = f"{section}{declared.encode_name}", (*steps, declared.name)
        if isinstance(declared.type, inspect.Metadata):
            yield path, ConfigField(inner, _without_null(declared.type.type), **(declared.type.extra or {}))
        else:
            yield from _fields(_without_null(declared.type), f"{path}.", inner)


def _without_null(info: inspect.Type) -> inspect.Type:
    # Fields are declared with null last.
    return info.types[0] if isinstance(info, inspect.UnionType) else info
