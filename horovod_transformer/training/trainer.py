"""A training run: set up alike on every rank, then update after update until the end or a signal."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from horovod_transformer import distributed
from horovod_transformer.checkpoint.manager import LAST, CheckpointManager
from horovod_transformer.checkpoint.snapshot import snapshot
from horovod_transformer.config import Config
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.loader import iterate_batches, plan_updates, training_loader, validation_loader
from horovod_transformer.data.page_cache import reading_ahead
from horovod_transformer.errors import UserError
from horovod_transformer.metrics import bits_per_byte
from horovod_transformer.model.compilation import choose_compile
from horovod_transformer.model.size import flops_per_token
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import PrecisionChoice, set_arithmetic
from horovod_transformer.system.console import tell
from horovod_transformer.system.locks import FolderLock
from horovod_transformer.system.machine import return_large_blocks
from horovod_transformer.system.signals import StopRequest
from horovod_transformer.training.checkpointing import Checkpointing
from horovod_transformer.training.metrics.logger import MetricLogger, ValidationMetrics
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.metrics.profiling import ProfileRequest, UpdateProfiler
from horovod_transformer.training.metrics.throughput import Throughput, peak_flops
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.optim.schedule import learning_rate
from horovod_transformer.training.recorder import Bookkeeping
from horovod_transformer.training.restarts import require_progress
from horovod_transformer.training.resume import (
    Start,
    StartRequest,
    TrainState,
    data_fingerprint,
    find_start,
)
from horovod_transformer.training.run_plan import RunPlan
from horovod_transformer.training.sample_texts import write_samples
from horovod_transformer.training.step import StartedUpdate, UpdateResult, UpdateStep
from horovod_transformer.training.validation import validate
from horovod_transformer.training.watchdog import Watchdog

# A run that takes less of the blocks than this share finds them sooner one by one.
WORTH_READING_AHEAD = 0.1


class Trainer:
    """One training run.

    Attributes:
        state: How far it has come.
        model: On this rank's device.
        step: Computes one update; holds the optimizer.
    """

    def __init__(self, config: Config, request: StartRequest, profile: ProfileRequest | None = None) -> None:
        """Put the parts together in the order that keeps all ranks alike. *Collective.*"""
        self.config = config
        self.watchdog = Watchdog(config.distributed.stall_timeout, distributed.get_rank())
        self.stop_reason: str | None = None
        self.device, cards = distributed.choose_device(config.training.device)
        precision = distributed.common_precision(config.training.precision, self.device)
        # It costs time, which who asks for checkpointing gives for memory.
        if self.device.type == "cpu" and config.model.gradient_checkpointing:
            return_large_blocks()
        self.data = distributed.raise_on_all_ranks(lambda: open_prepared_data(config))
        self.plan = plan_updates(config, self.data.train, distributed.get_world_size())
        self.run_plan = RunPlan.of(config, self.plan)
        self.total = self.run_plan.updates
        self.decay_updates = config.training.lr_decay_updates or self.total
        self.lock: FolderLock | None = None
        self.notes: list[str] = []
        try:
            start = self._set_up_state(request, precision)
            self._set_up_ranks(start)
            self.precision_reason = start.precision_reason
            facts: dict[str, Any] = {
                "device": self.device.type,
                "precision": self.state.precision,
                "precision_reason": self.precision_reason,
                "cards": cards,
            }
            self.logger = distributed.raise_on_all_ranks(
                lambda: MetricLogger(config, self.state.run_name, self.state.update, self.total, facts)
            )
        except BaseException:
            self._release_folder()
            raise
        self.checkpointing = Checkpointing(
            self.checkpoints, self.lock, self.model, self.watchdog.beat, self.logger.say
        )
        self.profiler: UpdateProfiler | None = None
        if profile is not None:
            self.profiler = UpdateProfiler(profile, Path(config.paths.log_dir), self.device, self.timer)
        parameters = self.run_plan.parameters
        peaks = [peak_flops(card, self.state.precision) for card in cards]
        self.throughput = Throughput(
            flops_per_token(config.model, parameters, self.plan.block_size),
            sum(peak for peak in peaks if peak) if peaks and all(peaks) else None,
        )
        self.books = Bookkeeping(
            config.training,
            self.plan,
            self.total,
            self.state,
            self.logger,
            self.throughput,
            self.timer,
            self.device,
            self.data.bytes_per_token.get("train"),
        )
        if len(set(cards)) > 1:
            self.notes.append(f"warning: the GPUs differ, the slowest sets the pace: {', '.join(cards)}")

    def _set_up_state(self, request: StartRequest, precision: PrecisionChoice) -> Start:
        """What does not depend on the number of ranks: the folder, the start, the model with its weights."""
        training = self.config.training
        paths = self.config.paths
        self.checkpoints = CheckpointManager(
            paths.checkpoint_dir, training.keep_checkpoints, training.keep_every
        )

        def find() -> Start:
            launch = distributed.launch_id()
            self.checkpoints.make_folder()
            folder = self.checkpoints.folder
            lock = FolderLock(folder / ".lock", str(folder), launch, distributed.attempt())
            try:
                lock.acquire(tell)
            except OSError as error:
                raise UserError(f"{folder}: cannot lock this folder: {error.strerror}") from None
            self.lock = lock
            again = distributed.attempt() > 0 and self.checkpoints.launch == launch
            start = find_start(
                TrainState(
                    request.run_name or datetime.now().strftime("%Y%m%d-%H%M%S"),
                    data_fingerprint(self.plan, self.data),
                ),
                self.checkpoints,
                self.config,
                self.data,
                self.decay_updates,
                request.on_attempt(again),
                precision,
            )
            self.checkpoints.record_launch(launch)
            require_progress(folder, launch, distributed.attempt(), start.state.update)
            return start

        start = distributed.run_on_rank0(find, self.watchdog.beat)
        self.notes, self.state = start.notes, start.state
        set_arithmetic(self.device, self.state.precision, training.deterministic)
        torch.manual_seed(training.seed)
        self.model = build_model(self.config.model)
        # Fresh weights come from rank 0, too: another machine's torch may draw others.
        weights = start.model or distributed.broadcast(snapshot(self.model.state_dict()))
        self.model.load_state_dict(weights)
        self.model.to(self.device).train()
        compiles, note = distributed.raise_on_all_ranks(lambda: choose_compile(training.compile, self.device))
        if compiles:
            self.model.compile_layers()
        self.notes += [note] if note else []
        return start

    def _set_up_ranks(self, start: Start) -> None:
        """What depends on the number of ranks: the summing optimizer, the update step, the loaders."""
        training, model = self.config.training, self.model
        compression = self.config.distributed.compression
        groups = self.config.distributed.gradient_groups
        optimizer = distributed.distribute_optimizer(
            build_optimizer(model, training),
            model.named_parameters(),
            self.plan.micro_batches,
            compression,
            groups,
        )
        self.timer = PhaseTimer(self.device)
        self.step = UpdateStep(
            model,
            optimizer,
            self.plan,
            self.device,
            self.state.precision,
            training.max_grad_norm,
            uses_dropout=self.config.model.dropout > 0,
            compression=compression,
            timer=self.timer,
        )
        if start.optimizer is not None:
            # Horovod's wrapper begins with an empty state, so the state goes in after wrapping.
            self.step.load_state_dict({"optimizer": start.optimizer, "loss_scale": self.state.loss_scale})
        distributed.require_equal_weights(model, "setting up")
        self.validation = validation_loader(
            self.config, self.data.validation, distributed.get_rank(), distributed.get_world_size()
        )

    def train(self) -> dict[str, Any]:
        """Run to the end, or until a signal. *Collective.*"""
        state, training = self.state, self.config.training
        self._introduce()
        batches = self._beating(iterate_batches(self._training_batches()))
        unread: deque[tuple[int, int, StartedUpdate]] = deque()  # with updates and tokens so far
        result: UpdateResult | None = None
        newest = str(self.checkpoints.folder / LAST)
        stopping = False
        with StopRequest() as stop, self.watchdog, self._reading_ahead():
            self.timer.take()  # setting up is not part of any update
            if self._validation_is_due():
                # A signal came just before this validation.
                self._save(periodic=True, best=self._validate())
            while state.update < self.total:
                if stop:
                    self.stop_reason = stop.signal_name
                self.throughput.start_update()
                rate = learning_rate(state.update, training, self.decay_updates)
                started = self.step.start(state.update, batches, rate, stop=self.stop_reason is not None)
                state.update += 1
                state.tokens += started.tokens
                unread.append((state.update, state.tokens, started))
                # While nobody needs the newest result, the device is not kept waiting for it to be read.
                results = []
                while len(unread) > (self.step.reads_late and not stopping and not self._result_is_due()):
                    update, tokens, done = unread.popleft()
                    results.append((update, tokens, done.learning_rate, done.result()))
                    stopping = stopping or results[-1][-1].stop_requested
                self.throughput.end_update(started.tokens)
                self.watchdog.beat()
                for update, tokens, its_rate, result in results:
                    self.books.take_down(update, tokens, its_rate, result, newest)
                self.books.tell_the_speed()
                ends = stopping or state.update == self.total
                # A stop leaves no time to validate; the resumed run makes up for it.
                best = not stopping and self._validation_is_due() and self._validate()
                self._write_samples()
                periodic = ends or state.update % training.save_interval == 0
                if periodic or best:
                    self._save(periodic, best)
                self._note_failed_write(self.checkpointing.poll(state.update))
                self._tell(self.profiler.after_update() if self.profiler else [])
                if stopping:
                    break
            self._tell(self.profiler.close() if self.profiler else [])
            # Still deaf to signals: a second one must not cut off the last checkpoint.
            distributed.require_equal_weights(self.model, "training")
            self._conclude()
        return {
            "update": state.update,
            "train_loss": result.loss if result else None,
            "best_validation_loss": state.best_validation_loss,
            "finished": state.update >= self.total,
            "run_name": state.run_name,
            "checkpoint_dir": str(self.checkpoints.folder),
        }

    def close(self) -> None:
        """Close files and give the folder up."""
        self.checkpoints.wait()
        self.logger.close()
        self._release_folder()

    def _release_folder(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _training_batches(self) -> DataLoader:
        left = range(self.state.update, self.total)
        return training_loader(self.config, self.data.train, self.plan, distributed.get_rank(), left)

    def _beating(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The same batches; the watchdog sees each of them. An update may have many, and take an hour."""
        for batch in batches:
            self.watchdog.beat()
            yield batch

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self.logger.say(line)

    def _reading_ahead(self) -> AbstractContextManager[Any]:
        """On one rank of each node: have the blocks read in order, before they are wanted at random."""
        blocks = (self.total - self.state.update) * self.plan.global_batch_size
        if distributed.get_local_rank() or blocks < self.plan.blocks * WORTH_READING_AHEAD:
            return nullcontext()
        return reading_ahead(self.data.train.files + self.data.validation.files)

    def _introduce(self) -> None:
        plan, say = self.plan, self.logger.say
        self._tell(self.notes)
        say(
            f"run {self.state.run_name}: {self.run_plan.parameters:,} parameters, {plan.world_size} "
            f"process(es) on {self.device.type} in {self.state.precision}, {torch.get_num_threads()} CPU "
            "thread(s) each"
        )
        say(f"precision: {self.state.precision}, {self.precision_reason}")
        self._tell(self.run_plan.introduction(self.config, plan))
        if self.state.update >= self.total:
            say(f"all {self.total} updates are done already")

    def _result_is_due(self) -> bool:
        """Whether something after this update needs to know what it did."""
        update, training = self.state.update, self.config.training
        intervals = (training.eval_interval, training.save_interval, training.sample_interval)
        return update == self.total or any(every and update % every == 0 for every in intervals)

    def _validation_is_due(self) -> bool:
        update = self.state.update
        at_interval = update > 0 and update % self.config.training.eval_interval == 0
        return (at_interval or update == self.total) and self.state.validated_at != update

    def _validate(self) -> bool:
        """Validate, and tell whether the model is the best so far. *Collective.*"""
        state, began = self.state, time.monotonic()
        distributed.require_equal_weights(self.model, f"update {state.update}")
        figures = validate(self.model, self.validation, self.device, self.state.precision, self.watchdog.beat)
        state.validated_at = state.update
        best = figures.loss < state.best_validation_loss  # false for NaN
        if best:
            state.best_validation_loss = figures.loss
        self.logger.log_validation(
            ValidationMetrics(
                update=state.update,
                loss=figures.loss,
                perplexity=figures.perplexity,
                bits_per_byte=bits_per_byte(figures.loss, self.data.bytes_per_token.get("validation")),
                accuracy=figures.accuracy,
                tokens=figures.tokens,
                seconds=time.monotonic() - began,
            )
        )
        return best

    def _write_samples(self) -> None:
        """Write the sample texts when it is time. *Collective.*"""
        interval, tokenizer = self.config.training.sample_interval, self.data.tokenizer
        if not interval or self.state.update % interval:
            return
        if tokenizer is None:
            self.logger.say("no sample texts: the data came without a tokenizer")
            return
        texts = write_samples(self.model, tokenizer, self.config, self.watchdog.beat)
        if distributed.is_main_process():
            for prompt, text in texts.items():
                self.logger.log_sample(self.state.update, prompt, text)

    def _save(self, periodic: bool, best: bool) -> None:
        """Write a checkpoint in the background. *Collective.*"""

        def contents() -> dict[str, Any]:
            step = self.step.state_dict()
            self.state.loss_scale = step["loss_scale"]
            return {
                "model": self.model.state_dict(),
                "optimizer": step["optimizer"],
                "scheduler": {"decay_updates": self.decay_updates},
                "progress": self.state.state_dict(),
                "config": self.config.to_dict(),
                "tokenizer": self.data.manifest.get("tokenizer"),
            }

        self.timer.enter("checkpoint")
        self._note_failed_write(self.checkpointing.save(contents, self.state.update, periodic, best))
        self.timer.enter("other")

    def _note_failed_write(self, failure: str | None) -> None:
        if failure is not None and self.config.training.on_checkpoint_failure == "stop":
            self.stop_reason = failure

    def _conclude(self) -> None:
        """Wait for the last checkpoint and tell how it ended. *Collective.*"""
        state = self.state
        self.checkpointing.finish(state.update)
        # A signal may have reached another rank a moment before this one: whoever was asked knows why.
        reasons = distributed.gather_objects(self.stop_reason, "stop_reason")
        seconds = self.throughput.seconds
        self.logger.say(
            f"checkpoints held training up for {self.checkpointing.stall:.2f} s of {seconds:.1f} s "
            f"({self.checkpointing.stall / seconds:.2%})"
        )
        if state.update < self.total:
            why = ", ".join(sorted({reason for reason in reasons if reason}))
            self.logger.say(f"stopped after update {state.update} ({why}); --resume auto resumes there")
        else:
            best = state.best_validation_loss  # infinite if a signal came before any
            said = f"best validation loss {best:.4f}" if best < math.inf else "not validated"
            self.logger.say(f"done: {state.update} updates, {said}; checkpoints in {self.checkpoints.folder}")
