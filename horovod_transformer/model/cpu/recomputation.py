"""Memory for time: what is cheap to compute again need not be kept for the backward pass.

For training on a CPU without torch's compiler. Code that is compiled sees to this by itself, and a GPU's
memory is spent on speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks


def linear_after(function: Callable[[Tensor], Tensor], x: Tensor, linear: nn.Linear) -> Tensor:
    """`linear(function(x))`, which keeps `x` instead of `function(x)` where that is worth while.

    The linear layer needs its input again for its weight gradient. The same function of the same numbers
    gives the same bits, so no gradient changes. Where autocast casts `function(x)` to another dtype, the
    cast copy is kept, as without this.

    Args:
        function: Elementwise or over the last axis, cheap, and without randomness.
        x: Float (..., C), kept by `function` anyway.
        linear: The layer.

    Returns:
        Float (..., `linear.out_features`).
    """
    # The compiler comes first: it must not look further.
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not torch.is_grad_enabled():
        return linear(function(x))
    middle = function(x)
    address, source = middle.data_ptr(), x.detach()

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        # The layer saves a view of its input, of a shape that is its own affair.
        return (saved.shape, saved.stride()) if saved.data_ptr() == address else saved

    def unpack(saved: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return function(source).as_strided(*saved)

    with saved_tensors_hooks(pack, unpack):
        return linear(middle)


def checkpointed(
    run: Callable[..., Tensor], block: nn.Module, x: Tensor, mask: Tensor | None, compiled: bool
) -> Tensor:
    """`run(block, x, mask)`, computed once more in the backward pass, with nothing but `x` kept.

    The same gradients, to the bit: dropout draws the same numbers again, and autocast is as it was. On a
    CPU this is done here, for `torch.utils.checkpoint` loads torch's compiler into every process.

    Args:
        run: Calls the block.
        block: Its parameters get their gradients.
        x: Float (B, T, C).
        mask: Passed on; no gradient.
        compiled: `run` is compiled code, and torch's own checkpointing knows how to treat it.
    """
    if compiled or torch.compiler.is_compiling() or x.device.type != "cpu":
        from torch.utils.checkpoint import checkpoint

        return checkpoint(run, block, x, mask, use_reentrant=False)
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return _Checkpointed.apply(run, block, mask, x, *parameters)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], block: nn.Module, mask: Tensor | None, x: Tensor, *_: Tensor
    ) -> Tensor:
        ctx.call = run, block, mask
        ctx.random_state = torch.get_rng_state()
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(x)
        return run(block, x, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        run, block, mask = ctx.call
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_(ctx.needs_input_grad[3])
        enabled, dtype = ctx.autocast
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", dtype, enabled):
            torch.set_rng_state(ctx.random_state)
            y = run(block, x, mask)
        wanted = [p for p in (x, *block.parameters()) if p.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, gradients))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
