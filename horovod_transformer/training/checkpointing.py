"""When a run writes its checkpoints: all ranks agree, rank 0 hands them to a writer in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from horovod_transformer import distributed
from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.errors import UserError
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.system.locks import FolderLock


class Checkpointing:
    """The checkpoints of a run in progress, seen from every rank.

    Args:
        manager: The run's folder of checkpoints.
        lock: Rank 0's right to write into it; None on other ranks.
        model: What is saved; compared over the ranks first.
        on_wait: Called on every rank while the writer is waited for.
        say: Told in a line when a checkpoint could not be written.

    Attributes:
        stall: Seconds that training was held up so far.
    """

    def __init__(
        self,
        manager: CheckpointManager,
        lock: FolderLock | None,
        model: TransformerLM,
        on_wait: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._manager, self._lock, self._model = manager, lock, model
        self._on_wait, self._say = on_wait, say
        self.stall = 0.0

    def save(
        self, contents: Callable[[], dict[str, Any]], update: int, periodic: bool, best: bool
    ) -> str | None:
        """Write a checkpoint if all ranks hold the same weights. *Collective.*

        Args:
            contents: Makes what the checkpoint holds; called on rank 0.
            update: Updates done.
            periodic: Write `update_N.pt` and `last.pt`.
            best: Write `best_model.pt`.

        Returns:
            On rank 0, why the write before this one failed, if it did.

        Raises:
            RuntimeError: The ranks' weights differ.
            LockLostError: The folder is another process's by now.
        """
        began = time.monotonic()
        distributed.require_equal_weights(self._model, f"update {update}")
        # The writer may still be at the checkpoint before; the others wait without timing out.
        failure = distributed.run_on_rank0(self._wait_for_writer, self._on_wait)
        if distributed.is_main_process():
            self._manager.save(contents(), update, periodic, best)
        self.stall += time.monotonic() - began
        return self._tell(failure, update)

    def poll(self, update: int) -> str | None:
        """Look whether the last write failed, and say so; on rank 0, the others have none."""
        failure = self._manager.poll()
        return self._tell(None if failure is None else str(failure), update)

    def finish(self, update: int) -> None:
        """Wait for the last checkpoint. *Collective.*

        Raises:
            UserError: It could not be written.
        """

        def wait() -> None:
            failure = self._manager.wait()
            if failure is not None:
                raise UserError(
                    f"the checkpoint of update {update} could not be written: {failure}; make room, then "
                    f"resume from the newest one in {self._manager.folder} with --resume auto"
                )

        distributed.run_on_rank0(wait, self._on_wait)

    def _wait_for_writer(self) -> str | None:
        assert self._lock is not None
        failure = self._manager.wait()
        self._lock.require()
        return None if failure is None else str(failure)

    def _tell(self, failure: str | None, update: int) -> str | None:
        if failure is None or not distributed.is_main_process():
            return None
        text = f"a checkpoint could not be written: {failure}"
        self._say(f"update {update}: {text}; earlier checkpoints are untouched")
        return text
