"""A training run: set up equal on every rank, then update after update until the end or a signal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from horovod_transformer import distributed
from horovod_transformer.checkpoint.manager import Takeover
from horovod_transformer.checkpoint.run_paths import LAST
from horovod_transformer.config import Config
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.held_out import held_out_warnings
from horovod_transformer.data.loader import iterate_batches, plan_batches, training_loader, validation_loader
from horovod_transformer.data.manifest import facts_of
from horovod_transformer.data.page_cache import reading_ahead, worth_reading_ahead
from horovod_transformer.data.sampler import cut_alike_up_to
from horovod_transformer.model.size import flops_per_token
from horovod_transformer.precision import PrecisionChoice
from horovod_transformer.reports.waiting import about_waiting
from horovod_transformer.system.console import counted
from horovod_transformer.system.machine import cpu_field, return_large_blocks
from horovod_transformer.system.signals import StopRequest
from horovod_transformer.training.checkpointing import Checkpointer
from horovod_transformer.training.due import Every
from horovod_transformer.training.exact_sums import wants_exact
from horovod_transformer.training.metrics.logger import MetricLogger
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.metrics.profiling import ProfileRequest, UpdateProfiler
from horovod_transformer.training.metrics.throughput import Throughput, peak_flops
from horovod_transformer.training.optim.schedule import learning_rate
from horovod_transformer.training.recorder import UpdateRecorder
from horovod_transformer.training.results import DeferredResults
from horovod_transformer.training.resume import (
    Start,
    StartRequest,
    TrainState,
    data_fingerprint,
    find_start,
    order_of,
)
from horovod_transformer.training.run_folder import RunFolder
from horovod_transformer.training.run_summary import RunSummary, about_sums
from horovod_transformer.training.sample_texts import SampleWriter
from horovod_transformer.training.setup import build_equal_model, build_step
from horovod_transformer.training.validation import Validator
from horovod_transformer.training.watchdog import Watchdog


class Trainer:
    """One training run.

    Attributes:
        state: How far it has come.
        model: On this rank's device.
        step: Computes one update; holds the optimizer.
    """

    def __init__(self, config: Config, request: StartRequest, profile: ProfileRequest | None = None) -> None:
        """Put the parts together in the order that keeps all ranks equal. *Collective.*"""
        training = self.training = config.training
        self.stop_reason: str | None = None
        self.watchdog = Watchdog(config.distributed.stall_timeout, distributed.get_rank())
        self.device, cards = distributed.choose_device(training.device)
        precision = distributed.common_precision(training.precision, self.device)
        # It costs time, and gradient checkpointing asks for less memory at the cost of time.
        if self.device.type == "cpu" and config.model.gradient_checkpointing:
            return_large_blocks()
        self.data = distributed.raise_on_all_ranks(lambda: open_prepared_data(config))
        exact = wants_exact(config.distributed, config.model.dropout, self.device)
        self.plan = plan_batches(training, self.data.train, distributed.get_world_size(), exact)
        self.summary = distributed.raise_on_all_ranks(
            lambda: RunSummary.of(config.model, training, self.plan, self.data.folder)
        )
        self.total = self.summary.updates
        self.decay_updates = training.lr_decay_updates or self.total
        self.workers = config.data.num_workers
        self.folder = RunFolder(config.paths, training.keep_checkpoints, training.keep_every)
        with ExitStack() as opened:
            opened.callback(self.folder.release)
            start = self._find_start(config, request, precision, exact)
            self.state, self.notes = start.state, start.notes
            # As the run began, whatever a fresh one would take.
            self.plan = replace(
                self.plan,
                order=order_of(self.state.data_fingerprint),
                exact_up_to=cut_alike_up_to(training, self.state.exact_sums is not None),
            )
            self.takeover: Takeover | None = start.takeover
            beat = self.watchdog.beat
            self.model, notes = build_equal_model(config.model, training, start, self.device, beat)
            self.notes += notes
            self.timer = PhaseTimer(self.device)
            self.threads = torch.get_num_threads()  # exact sums divide work among them in their own way
            opened.callback(torch.set_num_threads, self.threads)
            self.step = build_step(
                config.model,
                training,
                config.distributed,
                start,
                self.model,
                self.plan,
                self.device,
                self.timer,
            )
            self.precision_reason = start.precision_reason
            self.logger = self._open_logger(config, cards)
            opened.callback(self.logger.close)
            self._build_what_follows_an_update(config, profile, cards)
            opened.callback(self.folder.checkpoints.wait)
            self._opened = opened.pop_all()
        if len(set(cards)) > 1:
            self.notes.append(f"warning: the GPUs differ, the slowest sets the pace: {', '.join(cards)}")
        if distributed.completes_asynchronously(self.device):
            self.notes.append(
                "warning: HOROVOD_ENABLE_ASYNC_COMPLETION is on, which no test on several GPUs has seen; "
                "docs/scaling.md says what it gives up"
            )

    def train(self) -> dict[str, Any]:
        """Run to the end, or until a signal. *Collective.*"""
        state = self.state
        self._introduce()
        batches = self._batches()
        results = DeferredResults(self.step.defers_results)
        with StopRequest() as stop, self.watchdog, self._reading_ahead():
            self.timer.take()  # setting up is not part of any update
            if self.validator.is_due:
                # A signal came just before this validation, the first thing to be recorded.
                self._take_over()
            if self.validator.validate_if_due():
                self.checkpointer.save_if_due(state.update, best=True, now=True)
            while state.update < self.total and not results.stop_requested:
                self.stop_reason = stop.signal_name or self.checkpointer.reason_to_stop
                self._update(batches, results)
                ends = results.stop_requested or state.update == self.total
                # A stop leaves no time to validate; the resumed run makes up for it.
                best = not results.stop_requested and self.validator.validate_if_due()
                self.samples.write_if_due(state.update)
                self.checkpointer.save_if_due(state.update, best, now=ends)
                self._say(self.profiler.after_update() if self.profiler else [])
            self._say(self.profiler.close() if self.profiler else [])
            self._take_over()  # there may have been no update left
            # Signals are still held back: a second one must not cut off the last checkpoint.
            distributed.require_equal_weights(self.model, "training")
            self._conclude()
        return {
            "update": state.update,
            "train_loss": results.latest.loss if results.latest else None,
            "best_validation_loss": state.best_validation_loss,
            "finished": state.update >= self.total,
            "run_name": state.run_name,
            "checkpoint_dir": str(self.folder.paths.checkpoints),
            "records_dir": str(self.folder.paths.tables),
        }

    def close(self) -> None:
        """Close files and give the folder up."""
        self._opened.close()

    def _update(self, batches: Iterator[dict[str, Tensor]], results: DeferredResults) -> None:
        """Make one update, and record those whose results are read by now. *Collective.*"""
        state = self.state
        self.throughput.start_update()
        rate = learning_rate(state.update, self.training, self.decay_updates)
        started = self.step.start(state.update, batches, rate, stop=self.stop_reason is not None)
        state.update += 1
        state.tokens += started.tokens
        finished = results.add(state.update, state.tokens, started, self._result_is_needed())
        self.throughput.end_update(started.tokens)
        self.watchdog.beat()
        # What fails in a first update, such as memory, has changed nothing that an earlier run left.
        self._take_over()
        for each in finished:
            self.recorder.record(each)
        self.recorder.say_speed()

    def _result_is_needed(self) -> bool:
        """Whether something after this update depends on what it did."""
        parts = (self.validator, self.samples, self.checkpointer)
        return any(part.every.is_due(self.state.update) for part in parts)

    def _find_start(
        self, config: Config, request: StartRequest, precision: PrecisionChoice, exact: bool
    ) -> Start:
        """Claim the run's folder on rank 0, and tell every rank what the run starts from. *Collective.*"""

        def find(wanted: StartRequest) -> Start:
            fresh = TrainState(
                request.run_name or "",
                data_fingerprint(self.plan, self.data),
                exact_sums={} if exact else None,
            )
            return find_start(
                fresh,
                self.folder.checkpoints,
                config.model,
                config.training.optimizer,
                self.data,
                self.decay_updates,
                wanted,
                precision,
                config.to_dict(),
            )

        start = distributed.run_on_rank0(
            lambda: self.folder.claim(request, find),
            self.watchdog.beat,
            "reading what the run starts from",
            known=(Start, TrainState, Takeover),
        )
        self.folder.settle(start)
        return start

    def _take_over(self) -> None:
        """Archive what an earlier run left in this one's way, unless that is done. *Collective.*"""
        if self.takeover is None:
            return
        takeover, self.takeover = self.takeover, None

        archived = distributed.run_on_rank0(
            lambda: self.folder.take_over(takeover, self.total),
            self.watchdog.beat,
            "archiving earlier files",
        )
        distributed.raise_on_all_ranks(self.logger.take_over)
        if archived is not None:
            whose = "other" if takeover.resumed else "the earlier run's"
            self.logger.say(f"archived {whose} checkpoints in {archived}")

    def _open_logger(self, config: Config, cards: list[str]) -> MetricLogger:
        facts: dict[str, Any] = {
            "device": self.device.type,
            "precision": self.state.precision,
            "precision_reason": self.precision_reason,
            "cards": cards,
            "threads_per_rank": self.threads,
            "cpu": cpu_field("model name"),
            "parameters": self.summary.parameters,
            "warmup_updates": self.summary.warmup,
            **facts_of(self.data.manifest),
        }
        return distributed.raise_on_all_ranks(
            lambda: MetricLogger(
                self.folder.paths,
                self.state.update,
                self.total,
                config.to_dict(),
                config.training.trackers,
                facts,
            )
        )

    def _build_what_follows_an_update(
        self, config: Config, profile: ProfileRequest | None, cards: list[str]
    ) -> None:
        """Records, validation, sample texts, checkpoints, a profile."""
        training, state, logger, beat = config.training, self.state, self.logger, self.watchdog.beat
        bytes_per_token = self.data.bytes_per_token
        self.profiler: UpdateProfiler | None = None
        if profile is not None:
            self.profiler = UpdateProfiler(profile, self.folder.paths.logs, self.device, self.timer)
        peaks = [peak_flops(card, state.precision) for card in cards]
        self.throughput = Throughput(
            flops_per_token(config.model, self.summary.parameters, self.plan.block_size),
            sum(peak for peak in peaks if peak) if peaks and all(peaks) else None,
        )
        self.recorder = UpdateRecorder(
            self.plan,
            every=Every(training.log_interval, self.total),
            total=self.total,
            max_skipped=training.max_skipped_updates,
            newest=self.folder.checkpoints.folder / LAST,
            state=state,
            logger=logger,
            throughput=self.throughput,
            timer=self.timer,
            device=self.device,
            bytes_per_token=bytes_per_token.get("train"),
            about_waiting=partial(
                about_waiting,
                hosts=distributed.get_hosts(),
                processes=self.plan.world_size,
                hierarchical=config.distributed.hierarchical,
                compression=config.distributed.compression,
            ),
        )
        held_out = validation_loader(
            self.data.validation,
            self.plan,
            distributed.get_rank(),
            training.eval_blocks,
            self.workers,
            pin_memory=self.device.type == "cuda",
        )
        self.validator = Validator(
            self.model,
            held_out,
            self.device,
            state.precision,
            every=Every(training.eval_interval, self.total),
            state=state,
            logger=logger,
            bytes_per_token=bytes_per_token.get("validation"),
            on_batch=beat,
            workers=self.step.workers,
        )
        self.samples = SampleWriter(
            self.model,
            self.data.tokenizer,
            training.sample_prompts,
            config.generation,
            training.seed,
            every=Every(training.sample_interval),
            logger=logger,
            on_wait=beat,
        )
        configuration = config.to_dict()
        self.checkpointer = Checkpointer(
            self.folder,
            self.model,
            contents=lambda: self._checkpoint_contents(configuration),
            every=Every(training.save_interval, self.total),
            stop_on_failure=training.on_checkpoint_failure == "stop",
            timer=self.timer,
            on_wait=beat,
            say=logger.say,
            state=state,
            note=logger.note,
        )

    def _checkpoint_contents(self, configuration: dict[str, Any]) -> dict[str, Any]:
        step = self.step.state_dict()
        self.state.loss_scale = step["loss_scale"]
        self.state.exact_sums = step["sums"]
        return {
            "model": self.model.state_dict(),
            "optimizer": step["optimizer"],
            "scheduler": {"decay_updates": self.decay_updates},
            "progress": self.state.state_dict(),
            "config": configuration,
            "tokenizer": self.data.manifest.get("tokenizer"),
        }

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """This rank's micro-batches; the watchdog sees each, as an update may have many and take an hour."""
        loader = training_loader(
            self.data.train,
            self.plan,
            distributed.get_rank(),
            range(self.state.update, self.total),
            self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch in iterate_batches(loader):
            self.watchdog.beat()
            yield batch

    def _reading_ahead(self) -> AbstractContextManager[Any]:
        """On one rank of each node: have the blocks read in order, before they are wanted at random."""
        taken = (self.total - self.state.update) * self.plan.global_batch_size
        ranks_here, ranks = distributed.get_local_size(), self.plan.world_size
        if distributed.get_local_rank() or not worth_reading_ahead(
            taken, self.plan.blocks, ranks_here, ranks
        ):
            return nullcontext()
        return reading_ahead(self.data.train.files + self.data.validation.files)

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self.logger.say(line)

    def _introduce(self) -> None:
        say = self.logger.say
        self._say(self.notes)
        say(
            f"run {self.state.run_name}: {self.summary.parameters:,} parameters, "
            f"{counted(self.plan.world_size, 'process', 'processes')} on {self.device.type} in "
            f"{self.state.precision}, {counted(self.threads, 'CPU thread')} each"
        )
        say(f"precision: {self.state.precision}, {self.precision_reason}")
        self._say(self.summary.introduction(self.training, self.plan))
        if distributed.is_main_process():
            self._say(
                [f"warning: {line}" for line in held_out_warnings(self.data.train, self.data.validation)]
            )
        self._say(about_sums(self.plan, self.state.exact_sums is not None, self.threads, self.step.at_once))
        if self.state.update >= self.total:
            say(f"all {self.total} updates are done already")

    def _conclude(self) -> None:
        """Wait for the last checkpoint and say how the run ended. *Collective.*"""
        state, say = self.state, self.logger.say
        self.checkpointer.finish(state.update)
        stall = self.checkpointer.stall
        # A signal may have reached another rank a moment before this one: the rank that was asked knows why.
        reasons = distributed.gather_objects(self.stop_reason, "stop_reason")
        seconds = self.throughput.seconds
        more = ", the GPU's copies included" if self.device.type == "cuda" else ""
        say(
            f"checkpoints held training up for {stall:.2f} s of {seconds:.1f} s ({stall / seconds:.2%}){more}"
        )
        if state.update < self.total:
            why = ", ".join(sorted({reason for reason in reasons if reason}))
            say(f"stopped after update {state.update} ({why}); --resume auto resumes there", always=True)
        else:
            distributed.run_on_rank0(self.folder.finish, self.watchdog.beat, "tidying up")
            best = state.best_validation_loss  # infinite if a signal came before any
            known = f"best validation loss {best:.4f}" if best < math.inf else "not validated"
            say(
                f"done: {state.update} updates, {known}; checkpoints in {self.folder.checkpoints.folder}",
                True,
            )
