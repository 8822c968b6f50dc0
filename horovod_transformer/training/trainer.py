"""The training run: set up alike on every rank, then update after update until the end or a signal."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from horovod_transformer import distributed
from horovod_transformer.checkpoint.manager import LAST, CheckpointManager, snapshot
from horovod_transformer.config import Config, PathsConfig
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.loader import iterate_batches, plan_updates, training_loader, validation_loader
from horovod_transformer.errors import UserError
from horovod_transformer.generation import continue_prompt
from horovod_transformer.metrics import bits_per_byte, perplexity
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import choose_precision
from horovod_transformer.training.metric_logger import MetricLogger
from horovod_transformer.training.optimizer import build_optimizer
from horovod_transformer.training.resume import TrainState, find_start
from horovod_transformer.training.schedule import learning_rate
from horovod_transformer.training.step import UpdateResult, UpdateStep
from horovod_transformer.training.stop_signals import StopRequest
from horovod_transformer.training.throughput import Stopwatch, flops_per_token, peak_flops, peak_memory_gib
from horovod_transformer.training.validation import evaluate
from horovod_transformer.training.watchdog import Watchdog


def run_distributed_training(
    config: Config,
    rank: int,
    world_size: int,
    local_rank: int,
    resume_checkpoint: str | Path | None = None,
    run_name: str | None = None,
    output_dir: str | Path | None = None,
    init_from: str | Path | None = None,
) -> dict[str, Any]:
    """Train a model, together with the other ranks. *Collective.*

    Call `setup_horovod` first and pass on what it returned. SIGTERM, SIGUSR1 or SIGINT to any
    rank makes all of them stop after the same update, with a checkpoint.

    Args:
        config: The whole configuration.
        rank: This process's number.
        world_size: Number of processes.
        local_rank: This process's number on its machine.
        resume_checkpoint: Go on from this checkpoint; `"auto"` takes the newest good one of the
            run's checkpoint folder, or starts afresh if there is none.
        run_name: Names the run's folders; None takes the resumed run's, or the time.
        output_dir: Folder that `config.paths` are relative to.
        init_from: Start afresh, but with this checkpoint's weights.

    Returns:
        `update`, `train_loss`, `best_validation_loss`, `finished`, `run_name`, `checkpoint_dir`.

    Raises:
        UserError: The data, a checkpoint or a folder is not what the config says, or training
            diverged.
        ValueError: Rank or world size are not Horovod's.
    """
    known = (distributed.get_rank(), distributed.get_world_size(), distributed.get_local_rank())
    if (rank, world_size, local_rank) != known:
        raise ValueError("rank, world_size and local_rank must be those that setup_horovod() returned")
    if resume_checkpoint and init_from:
        raise UserError("--resume goes on with a run, --init_from starts another: give one of them")
    if output_dir is not None:
        config = _moved_to(config, Path(output_dir))
    distributed.set_threads(config.training.threads_per_rank)
    with distributed.lost_ranks_explained():
        run = _Run(config, resume_checkpoint, run_name, init_from)
        try:
            return run.train()
        finally:
            run.recorder.close()


class _Run:
    """The parts of one training run."""

    def __init__(
        self, config: Config, resume: str | Path | None, run_name: str | None, init_from: str | Path | None
    ) -> None:
        """Put the parts together in the order that keeps all ranks alike. *Collective.*"""
        training = config.training
        self.config = config
        self.device = (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        self.precision = choose_precision(training.precision, self.device)
        self.data = distributed.raise_on_all_ranks(lambda: open_prepared_data(config))
        self.plan = plan_updates(config, self.data.train, distributed.get_world_size())
        self.total = min(self.plan.total_updates, training.max_updates or self.plan.total_updates)
        self.decay_updates = training.lr_decay_updates or self.total
        self.folder = CheckpointManager(
            config.paths.checkpoint_dir, training.keep_checkpoints, training.keep_every
        )
        identity = {
            "seed": self.plan.seed,
            "global_batch_size": self.plan.global_batch_size,
            "data": self.data.manifest.get("fingerprint") or f"{self.plan.blocks} x {self.plan.block_size}",
        }
        start = distributed.run_on_rank0(
            lambda: find_start(
                TrainState(run_name or datetime.now().strftime("%Y%m%d-%H%M%S"), identity),
                self.folder,
                config.model,
                self.decay_updates,
                resume,
                init_from,
                run_name,
            )
        )
        self.notes, self.progress = start.notes, start.progress

        torch.manual_seed(training.seed)
        self.model = build_model(config.model)
        weights = start.model
        if weights is None:
            # Fresh weights come from rank 0, too: another machine's torch may draw others.
            weights = distributed.broadcast(snapshot(self.model.state_dict()))
        self.model.load_state_dict(weights)
        self.model.to(self.device).train()
        self.optimizer = distributed.distribute_optimizer(
            build_optimizer(self.model, training),
            self.model.named_parameters(),
            self.plan.micro_batches,
            config.distributed.compression,
        )
        self.step = UpdateStep(
            self.model,
            self.optimizer,
            self.plan,
            self.device,
            self.precision,
            training.max_grad_norm,
            uses_dropout=config.model.dropout > 0,
        )
        if start.optimizer is not None:
            # Horovod's wrapper begins with an empty state, so the state goes in after wrapping.
            # Decay and betas are the config's, not the checkpoint's.
            groups = self.optimizer.state_dict()["param_groups"]
            if [g["params"] for g in groups] != [g["params"] for g in start.optimizer["param_groups"]]:
                raise UserError(
                    f"training.optimizer = {training.optimizer}: the checkpoint is of another one; set it "
                    "back, or start a new run from its weights with --init_from"
                )
            self.optimizer.load_state_dict({**start.optimizer, "param_groups": groups})
            self.step.loss_scale.restore(self.progress.loss_scale)
        distributed.require_equal_weights(self.model, "setting up")
        self.recorder = distributed.raise_on_all_ranks(
            lambda: MetricLogger(config, self.progress.run_name, self.progress.update, self.total)
        )
        self.validation = validation_loader(
            config, self.data.validation, distributed.get_rank(), distributed.get_world_size()
        )
        self.parameters = sum(p.numel() for p in self.model.parameters())
        peak = peak_flops(self.device, self.precision)
        self.stopwatch = Stopwatch(
            flops_per_token(config.model, self.parameters),
            peak * distributed.get_world_size() if peak else None,
        )
        self.watchdog = Watchdog(config.distributed.stall_timeout, distributed.get_rank())
        self.stop_reason: str | None = None
        self.checkpoint_stall = 0.0

    def train(self) -> dict[str, Any]:
        """Run to the end, or until a signal. *Collective.*"""
        progress, training = self.progress, self.config.training
        self._introduce()
        batches = iterate_batches(self._training_batches())
        result: UpdateResult | None = None
        if self._validation_is_due():
            # A signal came just before this validation.
            self._save(periodic=True, best=self._validate())
        with StopRequest() as stop, self.watchdog:
            while progress.update < self.total:
                if stop:
                    self.stop_reason = stop.signal_name
                self.stopwatch.start_update()
                rate = learning_rate(progress.update, training, self.decay_updates)
                result = self.step.run(progress.update, batches, rate, stop=self.stop_reason is not None)
                self.stopwatch.end_update(result.tokens)
                self.watchdog.beat()
                self._log(result, rate)
                ends = result.stop_requested or progress.update == self.total
                # A stop leaves no time to validate; the resumed run makes up for it.
                best = self._validate() if self._validation_is_due() and not result.stop_requested else False
                self._sample()
                self._save(periodic=ends or progress.update % training.save_interval == 0, best=best)
                if result.stop_requested:
                    break
            # Still deaf to signals: a second one must not cut off the last checkpoint.
            distributed.require_equal_weights(self.model, "training")
            self._conclude()
        return {
            "update": progress.update,
            "train_loss": result.loss if result else None,
            "best_validation_loss": progress.best_validation_loss,
            "finished": progress.update >= self.total,
            "run_name": progress.run_name,
            "checkpoint_dir": str(self.folder.folder),
        }

    def _training_batches(self) -> DataLoader:
        left = range(self.progress.update, self.total)
        return training_loader(self.config, self.data.train, self.plan, distributed.get_rank(), left)

    def _introduce(self) -> None:
        plan, say = self.plan, self.recorder.say
        for note in self.notes:
            say(note)
        say(
            f"run {self.progress.run_name}: {self.parameters:,} parameters, {plan.world_size} process(es) on "
            f"{self.device.type} in {self.precision}, {torch.get_num_threads()} CPU thread(s) each"
        )
        say(
            f"an update: {plan.global_batch_size} blocks of {plan.block_size} tokens = "
            f"{plan.micro_batches} micro-batch(es) of up to {plan.micro_batch_size} per process; "
            f"{self.total} updates = {self.total * plan.global_batch_size / plan.blocks:.2f} epochs "
            f"of {plan.blocks} blocks"
        )
        if self.progress.update >= self.total:
            say(f"all {self.total} updates are done already")

    def _log(self, result: UpdateResult, rate: float) -> None:
        """Count an update, and record it when it is its turn."""
        progress, training = self.progress, self.config.training
        progress.update += 1
        progress.tokens += result.tokens
        progress.skipped_updates += result.skipped
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result.skipped else 0
        if progress.update % training.log_interval == 0 or progress.update == self.total or result.skipped:
            self.recorder.update(
                {
                    "update": progress.update,
                    "epoch": min(
                        progress.update * self.plan.global_batch_size / self.plan.blocks, self.plan.epochs
                    ),
                    "loss": result.loss,
                    "perplexity": perplexity(result.loss),
                    "bits_per_byte": bits_per_byte(result.loss, self.data.bytes_per_token.get("train")),
                    "accuracy": result.accuracy,
                    "learning_rate": rate,
                    "gradient_norm": result.gradient_norm,
                    "tokens": progress.tokens,
                    "skipped_updates": progress.skipped_updates,
                    **self.stopwatch.figures(),
                    "memory_gib": peak_memory_gib(self.device),
                }
            )
        if result.skipped:
            self.recorder.say(
                f"update {progress.update}: gradients were not finite, weights left as they were"
            )
        if progress.skipped_in_a_row >= training.max_skipped_updates:
            raise UserError(
                f"training diverged: the gradients of {progress.skipped_in_a_row} updates in a row, up to "
                f"update {progress.update}, were not finite (learning rate {rate:.3g}, loss "
                f"{result.loss:.4g}); lower training.learning_rate or lengthen the warmup, then "
                f"--resume {self.folder.folder / LAST}"
            )
        self.recorder.advance(progress.update, result.loss, self.stopwatch.tokens_per_second)

    def _validation_is_due(self) -> bool:
        update = self.progress.update
        at_interval = update > 0 and update % self.config.training.eval_interval == 0
        return (at_interval or update == self.total) and self.progress.validated_at != update

    def _validate(self) -> bool:
        """Validate, and tell whether the model is the best so far. *Collective.*"""
        progress, began = self.progress, time.monotonic()
        figures = evaluate(self.model, self.validation, self.device, self.precision, self.watchdog.beat)
        progress.validated_at = progress.update
        best = figures.loss < progress.best_validation_loss  # false for NaN
        if best:
            progress.best_validation_loss = figures.loss
        ratio = self.data.bytes_per_token.get("validation")
        self.recorder.validation(
            {
                "update": progress.update,
                "loss": figures.loss,
                "perplexity": figures.perplexity,
                "bits_per_byte": bits_per_byte(figures.loss, ratio),
                "accuracy": figures.accuracy,
                "tokens": figures.tokens,
                "seconds": time.monotonic() - began,
            }
        )
        return best

    def _sample(self) -> None:
        """Write the sample texts when it is time, on rank 0; the others wait at the next update."""
        interval, tokenizer = self.config.training.sample_interval, self.data.tokenizer
        if not interval or self.progress.update % interval or not distributed.is_main_process():
            return
        if tokenizer is None:
            self.recorder.say("no sample texts: the data came without a tokenizer")
            return
        settings = self.config.generation.model_copy(update={"num_samples": 1})
        for prompt in self.config.training.sample_prompts:
            (text,) = continue_prompt(self.model, tokenizer, prompt, settings, self.config.training.seed)
            self.recorder.sample(self.progress.update, prompt, text)

    def _save(self, periodic: bool, best: bool) -> None:
        """Hand a checkpoint to the writer, on rank 0; notice if an earlier one failed."""
        if not distributed.is_main_process():
            return
        failure = self.folder.wait(wait=False)
        if periodic or best:
            self.progress.loss_scale = self.step.loss_scale.state()
            contents = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": {"decay_updates": self.decay_updates},
                "progress": dict(vars(self.progress)),
                "config": self.config.to_dict(),
                "tokenizer": self.data.manifest.get("tokenizer"),
            }
            began = time.monotonic()
            failure = self.folder.save(contents, self.progress.update, periodic, best) or failure
            self.checkpoint_stall += time.monotonic() - began
        if failure is not None:
            text = f"a checkpoint could not be written: {failure}"
            self.recorder.say(f"update {self.progress.update}: {text}; earlier checkpoints are untouched")
            if self.config.training.on_checkpoint_failure == "stop":
                self.stop_reason = text

    def _conclude(self) -> None:
        """Wait for the last checkpoint and tell how it ended. *Collective.*"""

        def wait_for_writer() -> str | None:
            failure = self.folder.wait()
            if failure is not None:
                raise UserError(
                    f"the checkpoint of update {self.progress.update} could not be written: {failure}; "
                    f"make room, then go on from the newest one in {self.folder.folder} with --resume auto"
                )
            return self.stop_reason

        reason = distributed.run_on_rank0(wait_for_writer)
        update, seconds = self.progress.update, self.stopwatch.seconds
        self.recorder.say(
            f"checkpoints held training up for {self.checkpoint_stall:.2f} s of {seconds:.1f} s "
            f"({self.checkpoint_stall / seconds:.2%})"
        )
        if update < self.total:
            self.recorder.say(
                f"stopped after update {update} ({reason or 'asked by another rank'}); --resume auto goes on"
            )
        else:
            best = self.progress.best_validation_loss  # infinite if a signal came before any
            self.recorder.say(
                f"done: {update} updates, best validation loss {best:.4f}; "
                f"checkpoints in {self.folder.folder}"
            )


def _moved_to(config: Config, folder: Path) -> Config:
    """Make the paths a run writes to relative to a folder."""
    paths = {key: str(folder / value) for key, value in config.paths.model_dump().items()}
    return config.model_copy(update={"paths": PathsConfig(**paths)})
