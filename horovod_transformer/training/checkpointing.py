"""When a run writes its checkpoints: all ranks agree, rank 0 hands them to a writer in the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from horovod_transformer import distributed
from horovod_transformer.checkpoint.run_folders import has_checkpoints
from horovod_transformer.errors import UserError
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.training.due import Every
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.resume import TrainState
from horovod_transformer.training.run_folder import RunFolder


class Checkpointer:
    """The checkpoints of a run in progress, seen from every rank.

    Args:
        folder: The run's; its checkpoints are written.
        model: What is saved; compared over the ranks first.
        contents: Makes what a checkpoint holds, on rank 0; called on every rank. *Collective.*
        every: When `update_N.pt` and `last.pt` are due.
        stop_on_failure: A write that fails asks the run to stop.
        timer: Of the run; what checkpoints cost is a phase of its own.
        on_wait: Called on every rank while the writer is waited for.
        say: Told in a line when a checkpoint could not be written.
        state: Gets the digest of the weights that are saved.
        note: Takes a line for the log file.

    Attributes:
        reason_to_stop: Why the run should stop, on rank 0; None if it should not.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: TransformerLM,
        contents: Callable[[], dict[str, Any]],
        every: Every,
        stop_on_failure: bool,
        timer: PhaseTimer,
        on_wait: Callable[[], None],
        say: Callable[[str], None],
        state: TrainState,
        note: Callable[[str], None],
    ) -> None:
        self._folder, self._manager = folder, folder.checkpoints
        self._model, self._contents = model, contents
        self.every, self._stop_on_failure = every, stop_on_failure
        self._timer, self._on_wait, self._say = timer, on_wait, say
        self._state, self._note = state, note
        self.reason_to_stop: str | None = None

    @property
    def stall(self) -> float:
        """Seconds that training was held up so far: the host by waiting, a GPU by copying as well."""
        return self._timer.totals()["checkpoint"]

    def save_if_due(self, update: int, best: bool, now: bool = False) -> None:
        """Write what is due after an update, in the background. *Collective.*

        Args:
            update: Updates done.
            best: The model is the best so far: write `best_model.pt`.
            now: Write `update_N.pt` and `last.pt` whatever the interval says.

        Raises:
            RuntimeError: The ranks' weights differ.
            LockLostError: The folder is another process's by now.
        """
        periodic = now or self.every.is_due(update)
        if periodic or best:
            self._timer.enter("checkpoint")
            self._save(update, periodic, best)
            self._timer.enter("other")
        failure = self._manager.poll()
        self._report(None if failure is None else str(failure), update)
        self._show()

    def finish(self, update: int) -> None:
        """Wait for the last checkpoint. *Collective.*

        Raises:
            UserError: It could not be written.
        """

        def wait() -> None:
            failure = self._manager.wait()
            if failure is not None:
                folder = self._manager.folder
                if has_checkpoints(folder):
                    then = f"resume from the newest one in {folder} with --resume auto"
                else:
                    then = "start again: there is no earlier one"
                raise UserError(
                    f"the checkpoint of update {update} could not be written: {failure}; make room, then "
                    f"{then}"
                )

        distributed.run_on_rank0(wait, self._on_wait, "writing a checkpoint")
        self._show()

    def _save(self, update: int, periodic: bool, best: bool) -> None:
        self._state.weights = distributed.require_equal_weights(self._model, f"update {update}")
        # The checkpoint before may still be being written; the others wait without timing out.
        failure = distributed.run_on_rank0(self._wait_for_writer, self._on_wait, "writing a checkpoint")
        contents = self._contents()
        if distributed.is_main_process():
            self._manager.save(contents, update, periodic, best)
            self._note(f"update {update}: saving weights {self._state.weights}")
        self._report(failure, update)

    def _show(self) -> None:
        """Once there is a checkpoint, let the promised names lead to this run."""
        names = self._folder.names
        if distributed.is_main_process() and names is not None and self._manager.has_written:
            for line in names.lead_here():
                self._say(line)

    def _wait_for_writer(self) -> str | None:
        assert self._folder.lock is not None
        failure = self._manager.wait()
        self._folder.lock.require()
        return None if failure is None else str(failure)

    def _report(self, failure: str | None, update: int) -> None:
        """Say on rank 0 that a write failed, and ask the run to stop if that is wanted."""
        if failure is None or not distributed.is_main_process():
            return
        text = f"a checkpoint could not be written: {failure}"
        self._say(f"warning: update {update}: {text}; earlier checkpoints are untouched")
        if self._stop_on_failure:
            self.reason_to_stop = text
