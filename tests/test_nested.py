"""What stands in nested values is converted, in order; all else stays."""

from __future__ import annotations

from horovod_transformer.nested import convert_all


def test_all_of_a_type_are_converted_in_order():
    seen = []

    def convert(text: str) -> int:
        seen.append(text)
        return len(text)

    value = {"a": ["one", 2.0, ("three", None)], "b": {"c": "four!"}, "d": str}
    converted = convert_all(value, str, convert)
    assert converted == {"a": [3, 2.0, (5, None)], "b": {"c": 5}, "d": str}
    assert seen == ["one", "three", "four!"]
    assert value["a"] == ["one", 2.0, ("three", None)], "the original stays as it is"
    assert value["b"] == {"c": "four!"}
