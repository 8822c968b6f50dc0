"""What ranks send each other, as JSON: plain values and dataclasses; tensors are described, and sent apart.

Nothing that comes from another rank is ever unpickled: whoever reaches a job's network could run code in it.

    None, true, 1, 0.5, "text", [...]                    as in JSON; NaN and Infinity, too
    {"tuple": [...]}, {"dict": [[key, value], ...]}
    {"path": "/data"}
    {"tensor": ["float32", [2, 3]]}
    {"dataclass": ["RankDevice", {"kind": "cpu", ...}]}
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from horovod_transformer.errors import LostRankError, StoppedError, UserError

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool)
    + (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
}
_MOST_ELEMENTS = 2**44  # of a tensor: no memory holds more
_ERRORS = {kind.__name__: kind for kind in (UserError, StoppedError, LostRankError)}


class MessageError(UserError):
    """What a rank sent is no message of this program."""


def encode(value: Any, known: Sequence[type] = ()) -> tuple[bytes, list[Tensor]]:
    """Write a value as a message.

    Args:
        value: None, booleans, numbers, text, paths, tensors; lists, tuples, dicts and dataclasses of them.
        known: Dataclasses that may be in it.

    Returns:
        The message, and the tensors it describes, in its order.

    Raises:
        TypeError: There is something else in it.
    """
    tensors: list[Tensor] = []

    def plain(value: Any) -> Any:
        # By the type itself: a subclass such as NumPy's float64 would arrive as something else.
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is list:
            return [plain(item) for item in value]
        if type(value) is tuple:
            return {"tuple": [plain(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, Tensor):
            tensors.append(value)
            return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape)]}
        if type(value) in known:
            fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"dataclass": [type(value).__name__, fields]}
        raise TypeError(f"a {type(value).__qualname__} cannot be sent to other ranks: {value!r:.100}")

    return json.dumps(plain(value)).encode("ascii"), tensors


def decode(
    message: bytes, sender: int, known: Sequence[type] = (), takes_tensors: bool = True
) -> tuple[Any, list[Tensor]]:
    """Read a message, which may come from anybody.

    Args:
        message: As `encode` writes it.
        sender: Its rank.
        known: Dataclasses that may be in it.
        takes_tensors: Tensors may be in it.

    Returns:
        The value, its tensors still to be filled, and these tensors, on the CPU.

    Raises:
        MessageError: It is no such message.
    """
    tensors: list[Tensor] = []
    kinds = {kind.__name__: kind for kind in known}

    def restored(value: Any) -> Any:
        if isinstance(value, list):
            return [restored(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((tag, content),) = value.items()
        if tag == "tuple":
            return tuple(restored(_checked(content, list)))
        if tag == "dict":
            return {restored(key): restored(item) for key, item in content}
        if tag == "path":
            return Path(_checked(content, str))
        if tag == "tensor" and takes_tensors:
            name, shape = content
            sizes = [_checked(size, int) for size in _checked(shape, list)]
            if any(size < 0 for size in sizes) or math.prod(sizes) > _MOST_ELEMENTS:
                raise ValueError(f"a tensor of shape {sizes}")
            tensors.append(torch.empty(sizes, dtype=_DTYPES[name]))
            return tensors[-1]
        if tag == "dataclass":
            name, fields = content
            kind = kinds[name]
            if fields.keys() != {field.name for field in dataclasses.fields(kind)}:
                raise ValueError(f"{name} has other fields")
            return kind(**{key: restored(item) for key, item in fields.items()})
        raise ValueError(f"unknown: {tag}")

    try:
        return restored(json.loads(message.decode("ascii"))), tensors
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise not_a_message(sender) from None


def not_a_message(sender: int | None) -> MessageError:
    """The error for whatever a rank sent that is no message; None if it cannot be seen which."""
    who = "a rank" if sender is None else f"rank {sender}"
    return MessageError(
        f"{who} sent what is no message of this program; see that all ranks run the same version of it, "
        "and that nobody else reaches the job's network"
    )


def describe_error(error: UserError) -> list[str]:
    """An error as it travels: its kind, or the nearest that others know, and its text."""
    return [next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), str(error)]


def error_from(kind: str, text: str) -> UserError:
    """Make an error of what `describe_error` said of it."""
    return _ERRORS.get(kind, UserError)(text)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
