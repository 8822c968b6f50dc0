"""What a run is going to be, in figures, and what about it cannot go well: told before hours are spent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.model.size import count_parameters, run_bytes
from horovod_transformer.planning.expectation import expectation
from horovod_transformer.system.console import counted
from horovod_transformer.training.optim.schedule import warmup_updates

if TYPE_CHECKING:  # doctor works out checkpoint sizes where torch is missing
    from horovod_transformer.data.sampler import BatchPlan

# A run of fewer updates has hardly begun to learn, whatever its corpus: the loss of a small model is
# still falling fast after a few hundred.
FEW_UPDATES = 200
# Above this share of the run the rate spends its time rising.
LONG_WARMUP = 0.3
# Tokens per parameter below which a model stays mostly what it was drawn as; Hoffmann et al. 2022
# (arXiv:2203.15556) find about 20 best for a given amount of work.
FEW_TOKENS = 0.1


@dataclass(frozen=True)
class RunSummary:
    """A run in figures, known before it begins.

    Attributes:
        updates: Optimizer updates.
        epochs: Passes over the corpus that these are.
        tokens: Tokens predicted, as `train.csv` counts them: not the first of a block, which has nothing
            before it, nor what fills the last one. (A run that ends within an epoch may have met that once
            more.)
        parameters: Of the model.
        warmup: Updates in which the learning rate rises.
        checkpoint_bytes: Disk that the run's checkpoints take.
        expected: What to expect of it, a sentence; empty if it is too short to say.
        cut_short: `training.max_updates` ends it before its epochs: nobody expects it to learn much.
    """

    updates: int
    epochs: float
    tokens: int
    parameters: int
    warmup: int
    checkpoint_bytes: int
    expected: str = ""
    cut_short: bool = False

    @classmethod
    def of(
        cls, model: ModelConfig, training: TrainingConfig, plan: BatchPlan, data_dir: Path | None = None
    ) -> RunSummary:
        """Work a run out from its config and the blocks there are.

        Args:
            model, training: Sections of the config.
            plan: Which blocks each update has.
            data_dir: The prepared data, which may hold a law of its own.

        Raises:
            UserError: That law is damaged.
        """
        updates = min(plan.total_updates, training.max_updates or plan.total_updates)
        blocks = min(updates * plan.global_batch_size, plan.blocks * plan.epochs)
        filling = blocks // plan.blocks * min(plan.padding, plan.block_size - 1)
        tokens = blocks * (plan.block_size - 1) - filling
        expected = ""
        if updates >= FEW_UPDATES:
            expected = expectation(model, data_dir, plan.blocks * plan.block_size, tokens)
        return cls(
            updates=updates,
            epochs=blocks / plan.blocks,
            tokens=tokens,
            parameters=count_parameters(model),
            warmup=warmup_updates(training, training.lr_decay_updates or updates),
            checkpoint_bytes=run_bytes(model, training.keep_checkpoints),
            expected=expected,
            cut_short=updates < plan.total_updates,
        )

    def describe(self) -> str:
        """The figures in a line."""
        return (
            f"{self.updates:,} updates = {self.epochs:.2f} epochs = {self.tokens:,} tokens predicted, "
            f"{self.tokens / self.parameters:.2g} per parameter; the learning rate rises for {self.warmup} "
            f"of them ({self.warmup / self.updates:.0%}); checkpoints take up to "
            f"{self.checkpoint_bytes / 1e9:.1f} GB"
        )

    def introduction(self, training: TrainingConfig, plan: BatchPlan) -> list[str]:
        """What a run says of itself before its first update, a line each."""
        lines = [
            f"an update: {plan.global_batch_size} blocks of {plan.block_size} tokens = "
            f"{counted(plan.micro_batches, 'micro-batch', 'micro-batches')} of up to "
            f"{plan.piece_size} per process"
        ]
        if training.gradient_accumulation_steps is not None:
            lines.append(
                f"training.gradient_accumulation_steps ties the update to "
                f"{counted(plan.world_size, 'process', 'processes')}: "
                "another number of them is another global batch and another curve"
            )
        lines.append(self.describe())
        if self.expected:
            lines.append(self.expected)
        return [*lines, *(f"warning: {text}" for text in self.warnings())]

    def warnings(self) -> list[str]:
        """What cannot go well, a line each, with what to change."""
        found = []
        if self.warmup > LONG_WARMUP * self.updates:
            found.append(
                f"the learning rate rises during {self.warmup} of {self.updates} updates: set "
                "training.warmup_updates to null (a tenth of the run) or train longer"
            )
        if self.cut_short:
            return found
        if self.updates < FEW_UPDATES:
            found.append(
                f"a run of {counted(self.updates, 'update')} learns little: lower "
                "training.global_batch_size, raise training.epochs, or take more books"
            )
        if self.tokens < FEW_TOKENS * self.parameters:
            found.append(
                f"{self.tokens:,} tokens for {self.parameters:,} parameters: the model will learn little; "
                "take a smaller one (configs/laptop.yaml) or more books"
            )
        return found


def about_sums(plan: BatchPlan, exact: bool, threads: int, at_once: int) -> list[str]:
    """What a run says of its sums, a line each.

    Args:
        plan: Of the run.
        exact: Gradients are added up exactly.
        threads: Of this rank.
        at_once: Passes that it computes side by side.
    """
    if not exact:
        return ["sums: fast, the last bits depend on the number of processes (distributed.sums)"]
    if plan.exact_up_to is None:  # gradient_accumulation_steps, of which another line tells
        lines = ["sums: exact, the same bits whenever the update is the same"]
    elif plan.cuts_alike:
        lines = [f"sums: exact, the same bits on any number of processes up to {plan.summands}"]
    else:
        lines = [
            f"warning: these bits are those of {plan.world_size} processes only, which share an update that "
            f"is cut for {plan.exact_up_to}; raise training.exact_up_to for the same bits on all numbers"
        ]
    if at_once < min(threads, plan.micro_batches):
        lines.append(f"{at_once} of {threads} threads compute passes: dropout, or memory, allows no more")
    elif at_once < threads:
        lines.append(
            f"warning: {at_once} of {threads} threads compute passes, for an update has no more here: start "
            "more processes, or raise training.exact_up_to"
        )
    return lines
