"""Messages between ranks: every value arrives as it was, and whatever else arrives is one error."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import random
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from horovod_transformer.distributed.messages import (
    MessageError,
    decode,
    describe_error,
    encode,
    error_from,
)
from horovod_transformer.errors import LostRank0Error, LostRankError, StoppedError, UserError


@dataclasses.dataclass(frozen=True)
class Place:
    folder: Path
    sizes: tuple[int, ...] = ()
    inner: Place | None = None


@dataclasses.dataclass
class Other:
    folder: Path


VALUES = [
    None,
    True,
    0,
    -(2**200),
    "né — \udcff \0",
    [1, [2.5, None], []],
    (1, (), [(2,)]),
    {0: {"betas": (0.9, 0.95)}, "text": {}, None: 1, (1, 2): True},
    Path(os.fsdecode(b"/data/\xff")),
    Place(Path("a"), (1, 2), Place(Path("b"))),
    {"tuple": [1], "dict": []},
    [{"path": "/"}, {"tensor": ["float32", [1]]}],
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_value_arrives_as_it_was(value: Any) -> None:
    message, tensors = encode(value, known=(Place,))
    got, described = decode(message, 1, known=(Place,))
    assert (got, tensors, described) == (value, [], [])
    assert repr(got) == repr(value)  # True is 1, too


@pytest.mark.parametrize(
    "number", [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1.0, 1e22, math.pi, math.inf, -math.inf, math.nan]
)
def test_a_number_arrives_to_the_bit(number: float) -> None:
    assert decode(encode(number)[0], 1)[0].hex() == number.hex()


def test_tensors_are_described_in_the_messages_order() -> None:
    value = OrderedDict(
        scalar=torch.tensor(2.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        half=[torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor([True])],
        ids=(torch.arange(3, dtype=torch.int16),),
    )
    message, tensors = encode(value)
    got, described = decode(message, 0)
    assert [(t.shape, t.dtype) for t in described] == [(t.shape, t.dtype) for t in tensors]
    assert [got["scalar"], got["empty"], *got["half"], *got["ids"]] == described
    assert len(message) < 300, "what is in them travels apart"


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, mark: str = "never") -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        b"bytes",
        np.float64(1.0),
        np.int64(1),
        torch.float32,
        torch.Size([1]),
        namedtuple("Pair", "a b")(1, 2),
        Other(Path("a")),
        Trap(),
        ValueError("x"),
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_plain_value_is_the_senders_mistake(value: Any) -> None:
    with pytest.raises(TypeError, match=f"a {type(value).__name__} cannot be sent to other ranks"):
        encode({"a": [value]}, known=(Place,))


HOSTILE = {
    "nothing": b"",
    "cut off": encode(VALUES[9], known=(Place,))[0][:-1],
    "two": b"1 2",
    "no ascii": '"é"'.encode(),
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep dicts": b'{"tuple":[' * 30_000,
    "endless number": b"1" * 10_000,
    "unknown tag": b'{"call": "os.system"}',
    "two tags": b'{"path": "a", "tuple": []}',
    "no tag": b"{}",
    "tuple of a number": b'{"tuple": 1}',
    "path of a list": b'{"path": ["a"]}',
    "key that is a list": b'{"dict": [[[1], 2]]}',
    "pair of three": b'{"dict": [[1, 2, 3]]}',
    "unknown dataclass": b'{"dataclass": ["Other", {"folder": 1}]}',
    "any class": b'{"dataclass": ["os.system", {"command": "true"}]}',
    "class that is a list": b'{"dataclass": [[], {}]}',
    "field missing": b'{"dataclass": ["Place", {"folder": 1, "sizes": 2}]}',
    "field too many": b'{"dataclass": ["Place", {"folder": 1, "sizes": 2, "inner": 3, "more": 4}]}',
    "fields in a list": b'{"dataclass": ["Place", ["folder"]]}',
    "unknown dtype": b'{"tensor": ["object", [1]]}',
    "dtype that is none": b'{"tensor": ["nn", [1]]}',
    "negative size": b'{"tensor": ["float32", [-1]]}',
    "sizes that are none": b'{"tensor": ["float32", [true, 1.5]]}',
    "size of a text": b'{"tensor": ["float32", "12"]}',
    "larger than any memory": b'{"tensor": ["float32", [1000000000, 1000000000]]}',
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
def test_whatever_else_arrives_is_one_error(message: bytes) -> None:
    with pytest.raises(MessageError, match="rank 3 sent what is no message of this program"):
        decode(message, 3, known=(Place,))


def test_a_pickle_is_that_error_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(MessageError):
            decode(pickle.dumps(Trap(str(mark)), protocol), 1)
    assert not mark.exists()


def test_tensors_only_where_they_may_be() -> None:
    with pytest.raises(MessageError):
        decode(encode(torch.ones(1))[0], 1, takes_tensors=False)


def test_a_damaged_message_is_a_value_or_that_error() -> None:
    chance = random.Random(0)
    whole = encode([VALUES, torch.ones(2, 3), Place(Path("x"))], known=(Place,))[0]
    refused = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            decode(bytes(damaged[: chance.choice((None, chance.randrange(len(whole))))]), 1, known=(Place,))
        except MessageError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("a"), UserError),
        (StoppedError("b"), StoppedError),
        (LostRankError("c"), LostRankError),
        # Those whom it reaches have not lost rank 0.
        (LostRank0Error("d"), LostRankError),
        (MessageError("e"), UserError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_keeps_its_text_and_its_exit_code(error: UserError, kind: type) -> None:
    got = error_from(*decode(encode(describe_error(error))[0], 0)[0])
    assert (type(got), str(got), got.exit_code) == (kind, str(error), error.exit_code)


def test_an_error_of_no_known_kind_is_a_users() -> None:
    assert type(error_from("SystemExit", "text")) is UserError
