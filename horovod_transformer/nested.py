"""Values in nested dicts, lists and tuples, as checkpoints hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def convert_all(value: Any, kind: type[T], convert: Callable[[T], Any]) -> Any:
    """Copy nested values, with all of one type converted.

    Args:
        value: Anything; looked into are dicts, lists and tuples.
        kind: What is converted; everything else stays the same object.
        convert: Called with each, in the order in which they stand.
    """
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, dict):
        return {key: convert_all(item, kind, convert) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(convert_all(item, kind, convert) for item in value)
    return value
