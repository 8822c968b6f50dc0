"""Values that ranks give each other: all to all, or rank 0's to everybody; nothing of them is pickled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from horovod_transformer.distributed import collectives
from horovod_transformer.distributed.collectives import get_rank, get_world_size, is_main_process
from horovod_transformer.distributed.messages import decode, encode, not_a_message

T = TypeVar("T")

# What a rank hands to the next at a time: memory for two of them is all that a broadcast takes, and at
# 2 Mbit/s one still arrives before any time-out.
SLICE_BYTES = 2**24
_HEADER_BYTES = 8  # of a message: its length, the header itself not counted


def gather_objects(value: T, name: str, known: Sequence[type] = ()) -> list[T]:
    """Give every rank's value to every rank, by rank. *Collective.*

    Args:
        value: What `messages.encode` takes, without tensors.
        name: The same string on every rank.
        known: Dataclasses that may be in it.

    Raises:
        MessageError: A rank sent something else altogether.
    """
    if get_world_size() == 1:
        return [value]
    message, tensors = encode(value, known)
    if tensors:
        raise TypeError("a tensor cannot be gathered as an object: see allgather")
    messages = _gather_messages(message, name)
    return [decode(each, rank, known, takes_tensors=False)[0] for rank, each in enumerate(messages)]


def broadcast(value: T, known: Sequence[type] = (), on_slice: Callable[[], None] = lambda: None) -> T:
    """Give rank 0's value to every rank. *Collective.*

    Unlike `hvd.broadcast_optimizer_state` this never takes an optimizer step to make state appear.

    Args:
        value: What `messages.encode` takes; what ranks other than 0 pass is not looked at.
        known: Dataclasses that may be in it.
        on_slice: Called on every rank each time that some of the tensors' bytes have arrived.

    Returns:
        Rank 0's value itself; on other ranks a copy with tensors on the CPU.

    Raises:
        MessageError: What came is not what rank 0 sends.
    """
    if get_world_size() == 1:
        return value
    message, tensors = encode(value, known) if is_main_process() else (b"", [])
    message = _gather_messages(message, "outline")[0]
    if not is_main_process():
        value, tensors = decode(message, 0, known)
    _pass_along(tensors, on_slice)
    return value


def _gather_messages(message: bytes, name: str) -> list[bytes]:
    """Give every rank's message to every rank, in one operation unless they are very long. *Collective.*"""
    framed = torch.frombuffer(
        bytearray(len(message).to_bytes(_HEADER_BYTES, "big") + message), dtype=torch.uint8
    )
    # Nobody knows yet how long the others' are: each sends a beginning that fits in any case.
    room = max(_HEADER_BYTES, collectives.GATHER_LIMIT_BYTES // get_world_size())
    beginnings = collectives.allgather_bytes(framed[:room], f"object.{name}").numpy().tobytes()
    found: list[bytes] = []
    missing: list[int] = []
    start = 0
    for _ in range(get_world_size()):
        header = beginnings[start : start + _HEADER_BYTES]
        length = _HEADER_BYTES + int.from_bytes(header, "big")
        end = start + min(length, room)
        if len(header) < _HEADER_BYTES or end > len(beginnings):
            raise not_a_message(None)  # this one's length may be wrong, or one's before
        found.append(beginnings[start + _HEADER_BYTES : end])
        missing.append(length - (end - start))
        start = end
    if start != len(beginnings):
        raise not_a_message(None)
    if any(missing):
        rests = collectives.allgather(framed[room:], f"object.{name}", missing).split(missing)
        found = [begun + rest.numpy().tobytes() for begun, rest in zip(found, rests, strict=True)]
    return found


def _pass_along(tensors: Sequence[Tensor], on_slice: Callable[[], None]) -> None:
    """Fill every rank's tensors with rank 0's, which are of the same shapes. *Collective.*

    Slice by slice, each rank hands on to the next what it has just got, all of them at the same time. Ranks
    of one host are neighbours: between two hosts each byte travels once, and to a host once, too.
    """
    flat = [tensor.detach().cpu().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    cuts = cut([part.numel() for part in flat], SLICE_BYTES)
    rank, size = get_rank(), get_world_size()
    held = torch.empty(0, dtype=torch.uint8)
    for step in range(len(cuts) + size - 2 if cuts else 0):
        if rank == 0:
            parts = [flat[number][start:end] for number, start, end in cuts[step]] if step < len(cuts) else []
            held = torch.cat(parts) if parts else held[:0]
        received = collectives.hand_on(held, "slice")
        # A slice reaches rank r in step r - 1 at the earliest.
        due = cuts[step - rank + 1] if 0 <= step - rank + 1 < len(cuts) and rank > 0 else []
        lengths = [end - start for _, start, end in due]
        if received.numel() != sum(lengths):
            raise not_a_message(rank - 1)
        for (number, start, end), part in zip(due, received.split(lengths), strict=True):
            flat[number][start:end] = part
        if rank > 0:
            held = received
        on_slice()


def cut(sizes: Sequence[int], slice_bytes: int) -> list[list[tuple[int, int, int]]]:
    """Cut tensors that lie in a row into slices.

    Args:
        sizes: Bytes of each.
        slice_bytes: Of each slice; the last may have less.

    Returns:
        For each slice its parts, each a tensor's number and the first byte of it and the one after the last.
    """
    slices: list[list[tuple[int, int, int]]] = []
    room = 0
    for number, size in enumerate(sizes):
        start = 0
        while start < size:
            if room == 0:
                slices.append([])
                room = slice_bytes
            end = min(size, start + room)
            slices[-1].append((number, start, end))
            room -= end - start
            start = end
    return slices
