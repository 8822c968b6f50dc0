"""Values in nested dicts, lists, tuples and dataclasses, as checkpoints and broadcasts hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def convert_all(value: Any, kind: type[T], convert: Callable[[T], Any]) -> Any:
    """Copy nested values, with all of one type converted.

    Args:
        value: Anything; looked into are dicts, lists, tuples and dataclasses.
        kind: What is converted; everything else stays the same object.
        convert: Called with each, in the order in which they stand.
    """
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, dict):
        return {key: convert_all(item, kind, convert) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(convert_all(item, kind, convert) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {name: convert_all(item, kind, convert) for name, item in vars(value).items()}
        return dataclasses.replace(value, **items)
    return value
