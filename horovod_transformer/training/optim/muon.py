"""Muon: momentum made orthogonal, for the matrices inside the blocks; the work shared among ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from horovod_transformer import distributed
from horovod_transformer.distributed.workers import Workers
from horovod_transformer.training.optim.eager_adamw import EagerAdamW

# Polynomial whose iteration drives singular values towards 1, from the Muon reference.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95
# Of matrices that are equal in shape.
BATCHES = 8


class MuonAdamW(EagerAdamW):
    """Muon (Jordan et al. 2024) for the parameter groups that say `muon`, AdamW for the others.

    Muon replaces a matrix's momentum by the nearest matrix whose singular values are all alike,
    so that every direction learns at the same pace. Its length is made that of a typical AdamW
    update (Liu et al. 2025, arXiv:2502.16982, section 2.2): both share one learning rate.

    Every rank keeps all the momentum, so a checkpoint is one rank's state. Only the costly part
    is shared out: each rank makes its share of the matrices orthogonal and all ranks gather the
    result, hence take the same step to the bit. `step` is *collective* where there is Muon.

    Attributes:
        precision: What a CPU multiplies in while matrices are made orthogonal: fp32 or bf16.
        workers: Threads that share this rank's part of it.
    """

    precision = "fp32"
    workers: Workers | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step of both kinds."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._muon_step(group)
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _muon_step(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        # torch's fused AdamW looks at the same attribute: 1.0 lets a step change nothing.
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        skip = None if found_inf is None else found_inf > 0
        momenta = [self._momentum(parameter, found_inf) for parameter in parameters]
        if skip is not None and _is_at_hand(skip):
            if skip:
                return
            skip = None
        if skip is not None:
            # A momentum drawn towards itself stays what it is.
            pairs = zip(momenta, gradients, strict=True)
            gradients = [torch.where(skip, momentum, gradient) for momentum, gradient in pairs]
        torch._foreach_lerp_(momenta, gradients, 1 - MUON_MOMENTUM)
        directions = orthogonalized_together(
            parameters,
            lambda number: gradients[number].lerp(momenta[number], MUON_MOMENTUM),
            working_dtype(parameters[0], self.precision),
            self.workers,
        )
        for parameter, direction in zip(parameters, directions, strict=True):
            changed = parameter if skip is None else parameter.clone()
            changed.mul_(1 - group["lr"] * group["weight_decay"])
            changed.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))
            if skip is not None:
                parameter.copy_(torch.where(skip, parameter, changed))

    def _momentum(self, parameter: Tensor, found_inf: Tensor | None) -> Tensor:
        """This parameter's momentum, made if need be; counts the step."""
        state = self.state[parameter]
        if not state:
            # AdamW looks for `step` in every parameter's state when it loads one.
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1 if found_inf is None else 1 - found_inf
        return state["momentum"]


def _is_at_hand(number: Tensor) -> bool:
    """Reading it is free on a CPU and saves passes over all matrices; on a GPU it would synchronize."""
    return not number.is_cuda


def orthogonalized_together(
    parameters: Sequence[Tensor],
    matrix: Callable[[int], Tensor],
    dtype: torch.dtype,
    workers: Workers | None = None,
) -> list[Tensor]:
    """Make many matrices orthogonal, each on one rank, and give all of them to every rank. *Collective.*

    Args:
        parameters: Tell the shapes, (rows, columns), and the device; the same on every rank.
        matrix: Computes the matrix of one parameter by its number, float; asked only for this
            rank's share.
        dtype: What to multiply in, and of the results.
        workers: Threads that compute batches side by side.

    Returns:
        What `orthogonalized` makes of each, in the order of `parameters`, as views of one buffer.
    """
    shapes = [tuple(parameter.shape) for parameter in parameters]
    batches = batches_of(shapes)
    shares = share_out([batch_cost(batch, shapes) for batch in batches], distributed.get_world_size())

    def compute(number: int) -> Tensor:
        with torch.no_grad():
            laid = [m.t() if m.shape[0] > m.shape[1] else m for m in map(matrix, batches[number])]
            return orthogonalized(torch.stack(laid).to(dtype)).reshape(-1)

    # A rank may have nothing to do.
    flat = [parameters[0].new_empty(0, dtype=dtype)]
    lengths = [sum(math.prod(shapes[i]) for number in share for i in batches[number]) for share in shares]
    computed = (workers or Workers()).map(compute, shares[distributed.get_rank()])
    joined = torch.cat(flat + computed)
    gathered = distributed.allgather(joined, "muon", lengths)
    results: dict[int, Tensor] = {}
    place = 0
    for number in (number for share in shares for batch in share for number in batches[batch]):
        rows, columns = wide(shapes[number])
        laid_down = gathered[place : place + rows * columns].view(rows, columns)
        results[number] = laid_down.t() if shapes[number][0] > shapes[number][1] else laid_down
        place += rows * columns
    return [results[number] for number in range(len(shapes))]


def batches_of(shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut matrices into batches, the same for any number of ranks: a result may depend on its batch.

    All matrices of a batch have the same shape; taller ones are transposed. Each shape is cut into at most
    `BATCHES` batches, so that ranks and threads have something to share.
    """
    batches = []
    for shape in sorted(set(map(wide, shapes))):
        alike = [number for number in range(len(shapes)) if wide(shapes[number]) == shape]
        size = math.ceil(len(alike) / BATCHES)
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches


def batch_cost(batch: Sequence[int], shapes: Sequence[Sequence[int]]) -> int:
    """Multiplications of one iteration."""
    rows, columns = wide(shapes[batch[0]])
    return len(batch) * rows * rows * (2 * columns + rows)


def wide(shape: Sequence[int]) -> tuple[int, int]:
    """The shape with its longer side as the second."""
    return min(shape), max(shape)


def share_out(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Share work out so that no rank has much more than another.

    The costliest goes first, each to the rank that has the least to do; the same on every rank.

    Args:
        costs: Of each piece of work.
        ranks: How many share it.

    Returns:
        For each rank the numbers of its pieces, ascending.
    """
    work = [0] * ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        rank = work.index(min(work))
        work[rank] += costs[number]
        shares[rank].append(number)
    return [sorted(share) for share in shares]


def working_dtype(tensor: Tensor, precision: str) -> torch.dtype:
    """A GPU has bf16 matrix units, a run in bf16 those of its CPUs; the iteration needs no more digits."""
    return torch.bfloat16 if tensor.is_cuda or precision == "bf16" else tensor.dtype


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: singular values end between 0.7 and 1.2.

    Args:
        matrices: Float (number, rows, columns); fastest with no more rows than columns.

    Returns:
        The same shape and dtype.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        # a x + (b gram + c gram^2) x, added up inside the products
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
