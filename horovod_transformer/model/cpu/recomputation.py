"""Memory for time: what is cheap to compute again need not be kept for the backward pass.

A linear layer keeps its input for the gradient of its weights. If that input is the output of a norm or of
GELU, it can be computed again from what the norm or GELU keeps anyway. `recomputable` marks such outputs;
`recomputing_input` lets the linear layer keep the recipe instead. The same function of the same numbers
gives the same bits, so no gradient changes.

For training on a CPU without torch's compiler. Compiled code sees to this by itself, and a GPU's memory is
spent on speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

_NO_CONTEXT = contextlib.nullcontext()


@dataclass(frozen=True)
class _Recipe:
    """How a tensor came about: as `function(source)`, when its version counter stood at `version`."""

    function: Callable[[Tensor], Tensor]
    source: Tensor
    version: int


def recomputable(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, marked as cheap to compute again.

    The mark is an attribute of the returned object: it lives and dies with it, and no view or copy has it.

    Args:
        function: Elementwise or over the last axis, cheap, and without randomness.
        x: Float (..., C), kept by `function` anyway.
    """
    # The compiler comes first: it must not look further.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type != "cpu":
        return function(x)
    output = function(x)
    output.recipe = _Recipe(function, x.detach(), output._version)  # type: ignore[attr-defined]
    return output


def recomputing_input(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """While this context is open, operations that save a recomputable `x`, or a view of it, save its recipe.

    Where autocast casts `x` to another dtype, the cast copy is saved, as without this. Other tensors are not
    touched.
    """
    recipe = None if torch.compiler.is_compiling() else getattr(x, "recipe", None)
    if recipe is None or x._version != recipe.version:
        return _NO_CONTEXT
    # `x` outlives the context, in the caller's hands: no other tensor can have its address.
    address = x.data_ptr()

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        # A view's shape is the affair of the operation that saves it.
        return (saved.shape, saved.stride()) if saved.data_ptr() == address else saved

    def unpack(saved: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return recipe.function(recipe.source).as_strided(*saved)

    return saved_tensors_hooks(pack, unpack)


def checkpointed(
    run: Callable[..., Tensor],
    layer: nn.Module,
    x: Tensor,
    mask: Tensor | None,
    rotation: Tensor | None,
    compiled: bool,
) -> Tensor:
    """`run(layer, x, mask, rotation)`, computed once more in the backward pass, with nothing but `x` kept.

    The same gradients, to the bit: dropout draws the same numbers again, and autocast is as it was. On a
    CPU this is done here, for `torch.utils.checkpoint` loads torch's compiler into every process (70 MB).

    Args:
        run: Calls the layer.
        layer: Its parameters get their gradients.
        x: Float (B, T, C).
        mask: Passed on; no gradient.
        rotation: The same.
        compiled: `run` is compiled code, and torch's own checkpointing knows how to treat it.
    """
    if compiled or torch.compiler.is_compiling() or x.device.type != "cpu":
        from torch.utils.checkpoint import checkpoint

        return checkpoint(run, layer, x, mask, rotation, use_reentrant=False)
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return _Checkpointed.apply(run, layer, (mask, rotation), x, *parameters)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., Tensor],
        layer: nn.Module,
        more: tuple[Tensor | None, Tensor | None],
        x: Tensor,
        *_: Tensor,
    ) -> Tensor:
        ctx.call = run, layer, more
        ctx.random_state = torch.get_rng_state()
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(x)
        return run(layer, x, *more)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run, layer, more = ctx.call
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_(ctx.needs_input_grad[3])
        enabled, dtype = ctx.autocast
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", dtype, enabled):
            torch.set_rng_state(ctx.random_state)
            y = run(layer, x, *more)
        wanted = [p for p in (x, *layer.parameters()) if p.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grads))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
