"""One optimizer update, in the one order that is right under Horovod.

    backward x micro-batches -> wait for the gradient sum -> unscale (fp16) -> clip the global norm
    -> step without summing again, no step if not finite -> (the loop advances the schedule)

Clipping before the sum would clip each rank by its own norm; stepping without `skip_synchronize`
would sum twice. The loss of every micro-batch is divided by the update's token count over all
ranks, and gradients are summed, not averaged: the update is the gradient of the mean loss per
token however the blocks are shared out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from horovod_transformer import distributed
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.distributed.workers import Workers
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.precision import autocast
from horovod_transformer.training.exact_sums import ExactSums, exactly
from horovod_transformer.training.metrics.deferred import DeferredReader
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.optim.loss_scale import LossScale
from horovod_transformer.training.results import StartedUpdate, UpdateResult


class UpdateStep:
    """Computes updates of one model; holds what stays the same between them.

    Args:
        model: The model, in training mode.
        optimizer: As `distributed.distribute_optimizer` returned it.
        plan: Tells the token count and the dropout seeds of each update.
        device: Where the model is.
        precision: fp32, bf16 or fp16.
        max_grad_norm: Clip to this; 0 does not clip.
        uses_dropout: Whether random numbers are needed at all.
        compression: What the gradients travel as: `none`, `fp16` or `bf16`.
        exact: Adds gradients up exactly; None adds them as floats.
        twins: Copies of the model for passes in other threads, which `exact` follows.
        workers: These threads.
        timer: Told which phase of an update begins; None makes one of its own.

    Attributes:
        defers_results: The next update may be started before the result of this one is known. Only on a GPU,
            where it keeps the host from waiting, and not with a loss scale, which follows from the result.
        at_once: Passes that this rank computes side by side.
    """

    def __init__(
        self,
        model: TransformerLM,
        optimizer: Optimizer,
        plan: BatchPlan,
        device: torch.device,
        precision: str,
        max_grad_norm: float,
        uses_dropout: bool,
        compression: str = "none",
        timer: PhaseTimer | None = None,
        exact: ExactSums | None = None,
        twins: Sequence[TransformerLM] = (),
        workers: Workers | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.plan = plan
        self.device = device
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        self.uses_dropout = uses_dropout
        self.exact = exact
        self.feedback = distributed.error_feedback(optimizer)
        self._send_embedding = distributed.send_embedding(optimizer)
        self._first_part: Tensor | None = None  # of the embedding's gradient, if it is not at hand
        self.workers = workers or Workers()
        self._twins = twins
        self.at_once = len(twins) + 1
        self.timer = timer or PhaseTimer(device)
        # Gradients divided by all tokens of an update are mostly too small for fp16.
        self.loss_scale = LossScale(dynamic="fp16" in (precision, compression))
        self.defers_results = device.type == "cuda" and not self.loss_scale.dynamic
        self._reader = DeferredReader(device, 4)
        self._parameters = list(model.parameters())
        # Muon multiplies, too.
        self.optimizer.precision = precision  # type: ignore[attr-defined]
        self.optimizer.workers = self.workers  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """What must be restored for the next update to be the same. *Collective.*

        Returns:
            `optimizer`, `loss_scale` and `sums`. What rounding to bfloat16 left, a tensor per rank, is in
            `optimizer` as `remainders`, on rank 0 only.
        """
        optimizer = self.optimizer.state_dict()
        if self.feedback:
            optimizer["remainders"] = distributed.gather_to_rank0(self.feedback.state(), "remainders")
        return {
            "optimizer": optimizer,
            "loss_scale": self.loss_scale.state_dict(),
            "sums": self.exact.state_dict() if self.exact else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`. Rates, decay and betas are the config's, not the checkpoint's."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        self.loss_scale.load_state_dict(state["loss_scale"])
        if self.exact and state["sums"]:
            self.exact.load_state_dict(state["sums"])
        remainders = state["optimizer"].get("remainders")
        if self.feedback and remainders is not None and len(remainders) == distributed.get_world_size():
            self.feedback.load_state(remainders[distributed.get_rank()])

    def run(
        self, update: int, batches: Iterator[dict[str, Tensor]], learning_rate: float, stop: bool = False
    ) -> UpdateResult:
        """Make one update and wait for its result: `start(...).result()`. *Collective.*"""
        return self.start(update, batches, learning_rate, stop).result()

    def start(
        self, update: int, batches: Iterator[dict[str, Tensor]], learning_rate: float, stop: bool = False
    ) -> StartedUpdate:
        """Make one update, as far as the host is concerned: a GPU may still be at it. *Collective.*

        Args:
            update: Counted from 0; names the blocks that `batches` is about to deliver.
            batches: This rank's micro-batches; `plan.micro_batches` of them are taken.
            learning_rate: For this update.
            stop: This rank wants to stop after the update; all ranks learn of it.

        Raises:
            RuntimeError: The batches ran out.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        tokens = max(1, self.plan.target_tokens(update))
        if self.exact:
            self.exact.begin_update(self.loss_scale.factor)
        if self.feedback:
            self.feedback.begin_update(self.loss_scale.factor)
        totals = self._backward(update, islice(batches, self.plan.micro_batches), tokens)
        self.timer.enter("gradient_wait")
        # Sent after the gradients and waited for before them: on CPUs this wait does not keep a core busy.
        totals[2].fill_(float(stop))  # `totals[2] = ...` would make the host wait for a GPU
        if self.exact:
            both = torch.cat([totals, self.exact.largest])
            ranks = distributed.get_world_size()
            gathered = distributed.allgather(both, "update", [len(both)] * ranks).view(ranks, -1)
            summed, largest = gathered[:, : len(totals)].sum(0), gathered[:, len(totals) :].amax(0)
        else:
            summed = distributed.allreduce(totals, "update")
        distributed.synchronize(self.optimizer)
        self.timer.enter("optimizer")
        fits = self.exact.finish(largest) if self.exact else None
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).double() / self.loss_scale.factor
        if fits is not None:
            norm = norm.where(fits, math.inf)
        # All that the host must know is read at once: it waits for a GPU once an update, if at all.
        read = self._reader.begin(torch.cat([summed, norm[None]]))
        self._unscale_and_clip(gradients, norm)
        # The device decides, and alike on every rank: the summed gradients are the same bits everywhere.
        self.optimizer.found_inf = (~(norm < float("inf"))).float()  # type: ignore[attr-defined]  # NaN, too
        if self.feedback:
            self.feedback.end_update(self.optimizer.found_inf)  # type: ignore[attr-defined]
        with distributed.skip_synchronize(self.optimizer):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.timer.enter("other")
        return StartedUpdate(tokens, learning_rate, read, self.loss_scale)

    def _backward(self, update: int, batches: Iterator[dict[str, Tensor]], tokens: int) -> Tensor:
        """Accumulate this rank's gradients; return its sums of loss and right predictions."""
        passes = passes_here(self.plan, len(self._twins))
        self.timer.enter("data")
        ours: Iterable[dict[str, Tensor]] = batches
        others: list[Future[Tensor]] = []
        if self._twins:
            together = list(batches)
            _require(update, len(together), self.plan.micro_batches)
            ours, *theirs = (together[place :: len(self._twins) + 1] for place in range(len(self._twins) + 1))
            others = [
                self.workers.start(partial(self._passes_of_twin, model, some, tokens))
                for model, some in zip(self._twins, theirs, strict=True)
            ]
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        done = 0
        try:
            for batch in ours:
                if self.uses_dropout:
                    torch.manual_seed(self.plan.dropout_seed(update, distributed.get_rank(), done))
                done += 1
                if self.exact:
                    self.exact.begin_micro_batch(is_last=done == passes)
                totals += self._pass(self.model, batch, tokens, self.timer, is_last=done == passes)
                self.timer.enter("data")
        finally:
            # What has failed in another thread says more than what came of it here.
            for other in others:
                totals += other.result()
        _require(update, done, passes)
        return totals

    def _pass(
        self,
        model: TransformerLM,
        batch: dict[str, Tensor],
        tokens: int,
        timer: PhaseTimer | None = None,
        is_last: bool = False,
    ) -> Tensor:
        """One forward and backward pass: loss and right predictions, float64 (3,), the third for others."""
        input_ids = batch["input_ids"].to(self.device, non_blocking=True)
        labels = batch["labels"].to(self.device, non_blocking=True)
        if timer:
            timer.enter("forward")
        scale = self.loss_scale.factor / tokens
        with autocast(self.precision, self.device):
            # Only fp16 needs its gradient scaled from the start.
            ahead = scale if self.precision == "fp16" else 1.0
            loss, _, correct = model.loss_sums(input_ids, labels, ahead)
        if timer:
            timer.enter("backward")
        if is_last and self._send_embedding:
            assert loss.grad_fn
            # Called as soon as the gradients of `chunked_cross_entropy`'s arguments are there.
            loss.grad_fn.register_hook(lambda grads, _: self._send_first_part(grads[1], input_ids))
        (loss * scale).backward()
        return torch.stack([exactly(loss.detach()), correct.double(), torch.zeros_like(loss).double()])

    def _send_first_part(self, projection_grad: Tensor, input_ids: Tensor) -> None:
        """Send the embedding's gradient, all but the rows that the lookup is going to change."""
        embedding = self.model.token_embedding.weight
        gradient = projection_grad
        if self.exact or embedding.grad is not None:
            if self._first_part is None:  # new memory each time would cost more than the sum
                self._first_part = torch.empty_like(embedding, requires_grad=False)
            gradient = self._first_part
        if self.exact:
            self.exact.put_sum(0, projection_grad, gradient)
        elif embedding.grad is not None:
            torch.add(embedding.grad, projection_grad, out=gradient)
        assert self._send_embedding
        self._send_embedding(gradient, input_ids.unique())

    def _passes_of_twin(self, model: TransformerLM, batches: list[dict[str, Tensor]], tokens: int) -> Tensor:
        """Passes of another thread."""
        assert self.exact is not None
        try:
            return sum((self._pass(model, batch, tokens) for batch in batches), torch.zeros(3).double())
        except BaseException:
            self.exact.give_up()
            raise

    def _unscale_and_clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        """Bring gradients to their true size, at most `max_grad_norm`; `norm` stays on the device."""
        if not self.max_grad_norm and self.loss_scale.factor == 1.0:
            return
        shrink = torch.full_like(norm, 1.0 / self.loss_scale.factor)
        if self.max_grad_norm:
            shrink = torch.where(norm > self.max_grad_norm, shrink * (self.max_grad_norm / norm), shrink)
        # `.item()` is free on a CPU and saves a pass over all gradients; it would synchronize a GPU.
        if shrink.device.type == "cpu" and shrink.item() == 1.0:
            return
        torch._foreach_mul_(gradients, shrink.float())


def passes_here(plan: BatchPlan, twins: int) -> int:
    """Backward passes of the model itself in an update, if so many copies of it take part."""
    return math.ceil(plan.micro_batches / (twins + 1))


def _require(update: int, got: int, wanted: int) -> None:
    if got != wanted:
        raise RuntimeError(f"update {update} got {got} of {wanted} micro-batches")
