"""YAML that people write: plain values only, and each key once."""

import re
from typing import Any

import yaml

from palkit.errors import ConfigError, brief

REASON = 300  # characters of the parser's


class _Loader(yaml.SafeLoader):
    """A loader of plain values that takes 1e-3 as a number, as YAML 1.2 and JSON do, and refuses a key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"the key {brief(key.value)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str) -> object:
    """The value of one YAML document, None if there is nothing in it.

    Args:
        text: of the document.
        where: it comes from, for errors.

    Raises:
        ConfigError: it is not YAML, or holds other than plain values, or a key twice.
    """
    try:
        return _Loader(text).get_single_data()
    # Constructors of dates, numbers and other scalars let through whatever Python raises.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        kind = "" if isinstance(error, yaml.MarkedYAMLError) else f"{type(error).__name__}: "
        raise ConfigError(f"{where} is not valid YAML: {kind}{str(error)[:REASON]}") from error
