"""Parses YAML text into plain trees, document by document, with the line of every field.

This module knows YAML only, not Kubernetes. It accepts what ``kubectl`` accepts: keys are text, dates and 22:30 are text as
well (sigs.k8s.io/yaml converts YAML to JSON), and no tag creates an object. libyaml parses; the trees are composed from its
events in Python, because PyYAML's own C composer recurses without a limit, so that 20,000 opening brackets end the process
with a segmentation fault. Every tree is finite and of limited size: an alias for a node that contains it, and aliases that
expand to too many nodes, are rejected as in Go's YAML. Integers that are too long for Python to print are rejected as well.
"""

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.events import AliasEvent, Event
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError
from yaml.resolver import BaseResolver

# PyYAML may be built without libyaml; its own parser is far slower, but gives the same events.
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")
# Maximum number of nodes that aliases add to a document when they are expanded.
_MOST_REPEATED_NODES = 100_000
# Digits. No field needs half of them, and Python does not print integers of more than 4300
# (sys.set_int_max_str_digits).
_LONGEST_NUMBER = 100


class YamlError(Exception):
    """Text that is not valid YAML, or YAML that JSON cannot represent.

    Args:
        reason: what is wrong.
        line: line of the error, from 1; 0 means unknown.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """One document of a file."""

    tree: object
    """Mappings are `dict` with text keys, sequences `list`."""
    _node: Node

    def line(self, path: str) -> int:
        """Return the line, from 1, of a field such as ``items[3].spec.ports[0].port``, or of its innermost parent that exists."""
        node = self._node
        for name, index in _STEP.findall(path):
            inner = _inner(node, name or index)
            if inner is None:
                break
            node = inner
        return int(node.start_mark.line) + 1


def _inner(node: Node, step: str) -> Node | None:
    if isinstance(node, SequenceNode) and step.isdecimal() and int(step) < len(node.value):
        found: Node = node.value[int(step)]
        return found
    pairs = node.value if isinstance(node, MappingNode) else ()
    return next((value for key, value in pairs if key.value == step), None)


def yaml_documents(text: str) -> Iterator[YamlDocument | YamlError]:
    """Yield each document that is not empty, or its error; a syntax error is the last item."""
    reader = _NodeReader(yaml.parse(text, Loader=_PARSER))
    try:
        while reader.check_node() and (node := reader.get_node()) is not None:
            try:
                yield YamlDocument(reader.construct_document(node), node)
            except ConstructorError as error:
                yield _yaml_error(error)
            except (ValueError, LookupError):
                # What `!!int x` and `!!bool x` raise.
                yield YamlError("a value that does not match its tag", node.start_mark.line + 1)
    except ReaderError as error:
        # The position counts bytes (libyaml's problem_offset).
        yield YamlError(error.reason, text.encode().count(b"\n", 0, error.position) + 1)
    except yaml.MarkedYAMLError as error:
        yield _yaml_error(error)
    except RecursionError:
        yield YamlError("nested too deeply", 0)


def _yaml_error(error: yaml.MarkedYAMLError) -> YamlError:
    mark = error.problem_mark or error.context_mark
    return YamlError(" ".join(filter(None, (error.problem, error.context))), mark.line + 1 if mark else 0)


class _Resolver(BaseResolver):
    """Distinguishes null, booleans, integers and text; no field has any other type."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", tuple("yYnNtTfFoO")),
    ("int", r"[-+]?(?:0b[01][01_]*|0[0-7_]*|[1-9][0-9_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)", tuple("-+0123456789")),
    ("merge", "<<", ("<",)),
):
    _Resolver.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _whole_number(reader: SafeConstructor, node: ScalarNode) -> int:
    if len(node.value) > _LONGEST_NUMBER:
        raise ConstructorError(None, None, f"a number of more than {_LONGEST_NUMBER} digits", node.start_mark)
    return reader.construct_yaml_int(node)


def _full_size(node: Node, sizes: dict[int, int]) -> int:
    # The number of nodes in a tree with all aliases expanded. `sizes` has the results by id of a node, and 0 for a node that
    # is being counted: an alias for such a node would make the tree infinite.
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ConstructorError(None, None, "an alias for a node that contains it", node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner = () if isinstance(node, ScalarNode) else node.value
    if isinstance(node, MappingNode):
        inner = chain.from_iterable(node.value)
    sizes[id(node)] = 1 + sum(_full_size(each, sizes) for each in inner)
    return sizes[id(node)]


class _NodeReader(Composer, SafeConstructor, _Resolver):
    # Composes trees from a stream of events. PyYAML's loaders are mix-ins of the same kind, with a parser as well.

    # Only the types of SafeConstructor that JSON has: no dates, sets or bytes.
    yaml_constructors = {
        **{
            f"tag:yaml.org,2002:{tag}": SafeConstructor.yaml_constructors[f"tag:yaml.org,2002:{tag}"]
            for tag in ("null", "bool", "str", "seq", "map")
        },
        "tag:yaml.org,2002:int": _whole_number,
    } | {None: SafeConstructor.construct_undefined}

    def __init__(self, events: Iterator[Event]) -> None:
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        _Resolver.__init__(self)
        self._events = events
        self._next: Event | None = None
        self._repeated: list[ScalarNode] = []
        self._has_aliases = False

    def check_event(self, *choices: type[Event]) -> bool:
        event = self.peek_event()
        return event is not None and (not choices or isinstance(event, choices))

    def peek_event(self) -> Event | None:
        if self._next is None:
            self._next = next(self._events, None)
        return self._next

    def get_event(self) -> Event | None:
        event, self._next = self.peek_event(), None
        self._has_aliases = self._has_aliases or isinstance(event, AliasEvent)
        return event

    def compose_mapping_node(self, anchor: Any) -> MappingNode:  # noqa: ANN401 the stubs are wrong: it is a name or None
        # Duplicate keys are found before mappings are merged (`<<`): a merged mapping may repeat keys.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, ScalarNode)):
            if key.value in seen:
                self._repeated.append(key)
            seen.add(key.value)
        return node

    def construct_document(self, node: Node) -> object:
        # The previous document may have left its state here, if it had an error.
        self.constructed_objects, self.recursive_objects, self.state_generators = {}, {}, []
        repeated, self._repeated = self._repeated, []
        for key in repeated:
            raise ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
        if self._has_aliases:
            sizes: dict[int, int] = {}
            if _full_size(node, sizes) - len(sizes) > _MOST_REPEATED_NODES:
                raise ConstructorError(None, None, "aliases that expand to too many nodes", node.start_mark)
        return super().construct_document(node)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 PyYAML's signature
        # Keys become text, also 1 or true: sigs.k8s.io/yaml converts to JSON, which has no other keys.
        self.flatten_mapping(node)
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key that is not a scalar", key.start_mark)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}
