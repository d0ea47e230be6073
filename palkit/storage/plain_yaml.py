"""YAML that people write: plain values only, each key once, and no larger than it looks."""

import re

import yaml

from palkit.errors import ConfigError, brief

NODES = 100_000  # with every alias written out: nine lines of aliases to aliases stand for a billion values
REASON = 300  # characters of the parser's


class _Loader(yaml.SafeLoader):
    """A loader of plain values that takes 1e-3 as a number, as YAML 1.2 and JSON do, and YAML 1.1 does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, where: str) -> object:
    """The value of one YAML document, None if there is nothing in it.

    Args:
        text: of the document.
        where: it comes from, for errors.

    Raises:
        ConfigError: it is not YAML, holds other than plain values, a key twice, or aliases that grow without bound.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        if _size(root, {}) > NODES:
            raise ConfigError(f"{where}: with its aliases written out it holds more than {NODES:,} values. Write less.")
        return loader.construct_document(root)
    except RecursionError as error:
        raise ConfigError(f"{where} is not valid YAML: it is nested too deeply. Write it flat.") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {str(error)[:REASON]}") from error
    # Constructors of dates, numbers and other scalars let through whatever Python raises.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{where} is not valid YAML: {type(error).__name__}: {str(error)[:REASON]}") from error


def _size(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """Values below a node, itself included, with aliases written out.

    Args:
        node: composed.
        known: sizes of nodes that have been seen; None of those that this one is inside of.

    Raises:
        ConstructorError: a node is inside of itself, or a mapping has a key twice.
    """
    size = known.get(node, 0)
    if size is None:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands inside of what it names", node.start_mark)
    if size:
        return size
    known[node] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"the key {brief(key.value)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, str(key.value)))
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[node] = 1 + sum(_size(child, known) for child in children)
    return known[node] or 0
