"""Gradients summed exactly: the same bits in any order, hence on any number of ranks.

A sum of floats depends on its order, because each addition rounds. A sum of whole numbers does not. So the
gradient of each micro-batch is written in whole multiples of a unit, one unit per parameter, and these int32
numbers are added up: over micro-batches here, over ranks by Horovod. They take the bytes that float32 takes.

The unit is a power of two, chosen from the largest number in any micro-batch's gradient so far (old ones are
forgotten slowly) so that a number 64 times as large still fits. If one does not fit, the update is skipped,
as it is when a gradient is not finite, and the next unit is larger.

What this costs in precision: a gradient's largest number keeps at least 21 bits for eight micro-batches, one
bit less each time there are twice as many. Float32 has 24 for each number, bf16 products give 8.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from horovod_transformer.config_sections import DistributedConfig
from horovod_transformer.errors import UserError

# How much larger than the largest so far a number may be: a power of two.
HEADROOM_BITS = 6
# How much of the largest number so far is remembered after each update.
REMEMBERED = 0.95
# Taken for the largest number of a gradient that has been zero so far, as before the first update: with a
# mean loss per token it is mostly far less.
FIRST_LARGEST = 2.0**-4
# The power of two of a unit stays within float32.
SMALLEST_LARGEST = 2.0**-80
# Numbers that a CPU takes at a time, so that they stay in its caches from one operation to the next.
CPU_SLICE = 2**18


def wants_exact(settings: DistributedConfig, dropout: float, device: torch.device) -> bool:
    """Whether a fresh run adds its gradients up exactly.

    Args:
        settings: `sums`, and `compression`, which rounds what travels.
        dropout: Of the model. With it a CPU computes one pass after the other, which `auto` does not accept.
        device: Of the run. On GPUs it has not been measured what exact sums cost.
    """
    if settings.sums == "auto":
        return device.type == "cpu" and not dropout and settings.compression == "none"
    return settings.sums == "exact"


class ExactSums:
    """Sums of each parameter's gradients over the micro-batches of an update.

    Used like this, for each update: `begin_update`, then for each micro-batch `begin_micro_batch` and a
    backward pass, which calls `_add` for each parameter; then `largest` is gathered from all ranks, Horovod
    adds the sums up, and `finish` turns them into gradients.

    Other threads may help with copies of the model, see `follow`. Horovod sends a parameter's sum when the
    model's own last backward pass reaches it, so that pass first waits for the other threads to add theirs.

    Args:
        parameters: Of the model, in a fixed order; float32.
        summands: How many gradients are added up in an update, over all ranks, at most.
        passes: Backward passes of this rank in an update.

    Attributes:
        largest: Largest absolute number in any micro-batch's gradient in this update on this rank, by
            parameter, float64; infinite or NaN if one was. It includes the loss scale.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], summands: int, passes: int) -> None:
        self._parameters = list(parameters)
        self._passes = passes
        device = self._parameters[0].device
        # Each number stays below this, so that all of them together stay below 2**31.
        self._bits = 31 - math.ceil(math.log2(summands))
        # Largest numbers so far, the loss scale taken out; 0: nothing is known yet.
        self._remembered = torch.zeros(len(self._parameters), dtype=torch.float64, device=device)
        self._totals: list[Tensor | None] = [None] * len(self._parameters)
        self.largest = torch.zeros_like(self._remembered)
        self._locks = [threading.Lock() for _ in self._parameters]
        self._changed = threading.Condition()
        self.begin_update(1.0)
        for number, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._add_own, number))

    def follow(self, copies: Sequence[nn.Parameter]) -> None:
        """Also add the gradients of these copies of the parameters, which other threads compute."""
        for number, parameter in enumerate(copies):
            parameter.register_post_accumulate_grad_hook(partial(self._add_from_copy, number))

    def give_up(self) -> None:
        """End the wait for passes of other threads: one of them has failed."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the units of the next update follow from it."""
        return {"largest": self._remembered.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`.

        Raises:
            UserError: It is of another model, or not of this program's making.
        """
        largest = state.get("largest") if isinstance(state, dict) else None
        if (
            not isinstance(largest, list)
            or len(largest) != len(self._parameters)
            or not all(isinstance(number, float) and 0 <= number < math.inf for number in largest)
        ):
            raise UserError("the checkpoint's record of exact sums is damaged, or of another model")
        self._remembered.copy_(torch.tensor(largest, dtype=torch.float64))

    def begin_update(self, loss_scale: float) -> None:
        """Forget the sums of the last update.

        Args:
            loss_scale: What all gradients are multiplied with, a power of two.
        """
        largest = self._remembered.masked_fill(self._remembered == 0, FIRST_LARGEST)
        _, exponents = torch.frexp(largest.clamp(min=SMALLEST_LARGEST))
        exponents = exponents.long() + HEADROOM_BITS - self._bits
        self._loss_scale = loss_scale
        self._unit = power_of_two(exponents) * loss_scale
        self._unit32 = self._unit.float()
        self._per_unit32 = (power_of_two(-exponents) / loss_scale).float()
        self.largest.zero_()
        self._totals = [None] * len(self._parameters)
        self._added = [0] * len(self._parameters)
        self._is_last = self._failed = False

    def begin_micro_batch(self, is_last: bool) -> None:
        """Have the model's next backward pass write a gradient of its own instead of adding to the sums.

        Args:
            is_last: It is the model's last one in this update.
        """
        self._is_last = is_last
        for parameter in self._parameters:
            parameter.grad = None

    def put_sum(self, number: int, gradient: Tensor, place: Tensor) -> None:
        """Write what a parameter's `grad` will hold once this gradient is added: whole numbers' bits.

        Args:
            number: The parameter's, among all of them.
            gradient: As it is in the next pass, which will add it. Only without copies of the model.
            place: Float32, of the same shape.
        """
        values, wholes, total = gradient.view(-1), place.view(-1).view(torch.int32), self._totals[number]
        for some in _slices(values):
            wholes[some].copy_(values[some] * self._per_unit32[number])
            if total is not None:
                wholes[some].add_(total[some])

    def _add_own(self, number: int, parameter: Tensor) -> None:
        """Add a gradient of the model to the sum, which takes its place as `parameter.grad`."""
        self._add(number, parameter)
        if self._is_last:
            with self._changed:
                self._changed.wait_for(lambda: self._failed or self._added[number] == self._passes)
            if self._failed:
                raise RuntimeError("a backward pass in another thread has failed")
        total = self._totals[number]
        assert total is not None
        parameter.grad = total.view(torch.float32).view_as(parameter)  # bits: int32 inside

    def _add_from_copy(self, number: int, parameter: Tensor) -> None:
        """Add a gradient of a copy to the sum."""
        self._add(number, parameter)
        parameter.grad = None

    def _add(self, number: int, parameter: Tensor) -> None:
        grad = parameter.grad
        assert grad is not None
        values = grad.view(-1)
        wholes = values.view(torch.int32)  # the same memory
        with self._locks[number]:
            total = self._totals[number]
            for some in _slices(values):
                low, high = values[some].aminmax()
                self.largest[number] = torch.maximum(self.largest[number], torch.maximum(-low, high))
                # Towards zero: to the nearest would be one more pass over all numbers.
                wholes[some].copy_(values[some].mul_(self._per_unit32[number]))
                if total is not None:
                    total[some].add_(wholes[some])
            if total is None:
                self._totals[number] = wholes
        with self._changed:
            self._added[number] += 1
            self._changed.notify_all()

    def finish(self, largest: Tensor) -> Tensor:
        """Turn sums into gradients, float32 with the loss scale still in them.

        Args:
            largest: The largest of all ranks' `largest`.

        Returns:
            Whether every number was finite and has fitted, bool scalar; if not, gradients mean nothing.
        """
        self._totals = [None] * len(self._parameters)
        for number, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            values = parameter.grad.view(-1)
            wholes = values.view(torch.int32)
            for some in _slices(values):
                values[some].copy_(wholes[some]).mul_(self._unit32[number])
        fits = largest < self._unit * 2.0**self._bits  # false for NaN, too
        true_size = largest / self._loss_scale
        remembered = torch.maximum(self._remembered * REMEMBERED, true_size)
        self._remembered = torch.where(true_size < math.inf, remembered, self._remembered)
        return fits.all()


def power_of_two(exponents: Tensor) -> Tensor:
    """2 to these whole exponents, within float64's range, to the bit on every device."""
    return ((exponents + 1023) << 52).view(torch.float64)


def exactly(loss: Tensor) -> Tensor:
    """A float32 sum of losses as a float64 that adds up exactly: a multiple of 2**-24, in nats."""
    return (loss.double() * 2**24).round() / 2**24


def _slices(values: Tensor) -> Iterator[slice]:
    step = CPU_SLICE if values.device.type == "cpu" else max(1, len(values))
    for start in range(0, len(values), step):
        yield slice(start, start + step)
