"""What all ranks learn of one: a mistake of any rank, and what rank 0 does for all."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch

from horovod_transformer.distributed.collectives import allreduce, is_main_process
from horovod_transformer.distributed.exchange import broadcast, gather_objects
from horovod_transformer.distributed.messages import describe_error, error_from
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell

T = TypeVar("T")

# Seconds between two meetings of the ranks while they wait for rank 0: far below every time-out.
MEET_EVERY_S = 0.5
# After so many seconds rank 0 says what is waited for, and again after twice as many, and so on.
TELL_AFTER_S = 60.0
# After so many it no longer passes for alive. Reading or writing 18 GB, the state of 1.5 billion parameters,
# takes half of it at 10 MB/s; a hung file system never answers.
LIMIT_S = 3600.0


def raise_on_all_ranks(action: Callable[[], T]) -> T:
    """Do something on every rank; if it is a user's mistake on any, it is on all. *Collective.*

    Without this a rank that meets a mistake leaves, and the others wait for it.

    Raises:
        UserError: The lowest rank's mistake, on every rank.
    """
    result, mistake = None, None
    try:
        result = action()
    except UserError as error:
        mistake = describe_error(error)
    mistakes = gather_objects(mistake, "mistake")
    for rank, each in enumerate(mistakes):
        if each is not None:
            kind, text = each
            raise error_from(kind, text if each == mistakes[0] else f"on rank {rank}: {text}")
    return cast(T, result)


def run_on_rank0(
    action: Callable[[], T],
    on_wait: Callable[[], None] = lambda: None,
    doing: str = "busy",
    known: Sequence[type] = (),
) -> T:
    """Do something on rank 0 alone and give its result to every rank. *Collective.*

    It may take long: the ranks meet every half a second until it is done, so no collective times out on
    a healthy job, and a rank or a link that is lost is still noticed. Rank 0 says now and then what it is at.
    After `LIMIT_S` it stops calling `on_wait`: a file system that hangs ends the job by the watchdog.

    Args:
        action: Runs in a thread of rank 0, so it must not call a collective.
        on_wait: Called on every rank each time they meet, and for each slice of a large result.
        doing: What rank 0 is at, as in "rank 0 has been `doing` for 60 s".
        known: Dataclasses that may be in the result, see `broadcast`.

    Raises:
        UserError: It was a user's mistake, on every rank.
    """
    result: T | None = None
    failure: BaseException | None = None
    threads = torch.get_num_threads()

    def act() -> None:
        nonlocal result, failure
        torch.set_num_threads(threads)  # a new thread would begin with all cores
        try:
            result = action()
        except BaseException as error:
            failure = error

    # A daemon: Ctrl-C must not leave it at work on the folder.
    worker = threading.Thread(target=act, name="rank 0", daemon=True)
    if is_main_process():
        worker.start()
    patience = _Patience(doing)
    busy = True
    while busy:
        if is_main_process():
            worker.join(MEET_EVERY_S)
        mine = torch.tensor([int(worker.is_alive())])
        busy = bool(allreduce(mine, "busy").item())
        if not busy or not is_main_process() or patience.lasts():
            on_wait()
    if failure is not None and not isinstance(failure, UserError):
        raise failure  # a bug: the other ranks learn of it when this one has ended
    mistake = None if failure is None else describe_error(failure)
    result, mistake = broadcast((result, mistake), known, on_wait)
    if mistake is not None:
        raise error_from(*mistake)
    return cast(T, result)


class _Patience:
    """How long rank 0 may be at something, and what it says meanwhile."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._began = time.monotonic()
        self._tell_at = min(TELL_AFTER_S, LIMIT_S)

    def lasts(self) -> bool:
        """Whether it may take still longer; says a line when one is due."""
        seconds = time.monotonic() - self._began
        over = seconds >= LIMIT_S
        if seconds >= self._tell_at:
            self._tell_at = math.inf if over else min(2 * self._tell_at, LIMIT_S)
            end = "a file system hangs? The watchdog ends the job" if over else "all ranks wait for it"
            tell(f"rank 0 has been {self._doing} for {seconds:.0f} s: {end}", sys.stderr)
        return not over
