"""YAML without surprises: no readings that people do not expect, no values without an end."""

from __future__ import annotations

from typing import Any

import yaml

# Entries of one mapping. Merges (`<<`) of mappings that merge others make a billion out of few words.
_MOST_ENTRIES = 10_000


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML takes the last, and the numbers 010 (8) and 1:30 (90)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise _problem(key_node, f"the key `{key_node.value}` stands there twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_ENTRIES:
            raise _problem(node, f"a mapping of more than {_MOST_ENTRIES:,} entries")

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits, value = node.value.lstrip("+-").replace("_", ""), super().construct_yaml_int(node)
        if ":" in digits or (digits.isdigit() and digits != "0" and digits[0] == "0"):
            raise _problem(node, f"{node.value} means {value} in YAML; write it in decimal")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if ":" in node.value:
            raise _problem(node, f"{node.value} means {value} in YAML; write it in decimal")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _problem(node: yaml.Node, text: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def read_yaml(text: str) -> Any:
    """Parse plain data: dicts, lists, texts, numbers, dates, True, False and None.

    Raises:
        yaml.YAMLError: It is no YAML, or one of the surprises above.
        Exception: A value cannot be made; YAML's constructors raise many kinds.
    """
    return yaml.load(text, _Loader)
