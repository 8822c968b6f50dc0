"""Weights to write with, smaller or in another order: a token takes the time of reading each of them once.

On a CPU the products with smaller ones are FBGEMM's: they read fp16 or int8 and compute in float32 or whole
numbers. Embedding, positions, norms and biases stay as they are. What each costs and gains stands in
docs/generation.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from horovod_transformer.config_sections import WRITING_PRECISIONS
from horovod_transformer.errors import UserError
from horovod_transformer.model.cpu.linear import MANY_WEIGHTS
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.precision import bf16_unit


class PackedLinear(nn.Module):
    """A linear layer whose float32 weights lie in the order in which oneDNN reads them for several rows.

    Args:
        weight: Float32 (N, K), on the CPU.
        bias: Float32 (N,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 (..., K) to (..., N)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


class HalfLinear(nn.Module):
    """A linear layer with weights in fp16; input, sums and output in float32.

    Args:
        weight: Float32 (N, K), on the CPU.
        bias: Float32 (N,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 (..., K) to (..., N)."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)


class Int8Linear(nn.Module):
    """A linear layer in whole numbers of 8 bits: weights with one scale per output, input with one per call.

    Args:
        weight: Float32 (N, K), on the CPU.
        bias: Float32 (N,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with warnings.catch_warnings():
            # torch means to drop these tensors one day; so far FBGEMM's product takes no others.
            warnings.simplefilter("ignore")
            whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(whole, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 (..., K) to (..., N)."""
        # Seven bits of input: FBGEMM's sums of two products would overflow 16 bits otherwise.
        return torch.ops.quantized.linear_dynamic(x, self._packed, reduce_range=True)


@torch.no_grad()
def shrink_weights(model: TransformerLM, precision: str) -> None:
    """Give a model smaller weights, in place: from then on it can write and score, and nothing else.

    Args:
        model: On the device it will write on.
        precision: `fp32` changes nothing. `bf16`, and on a GPU `fp16`, turn all of the model into that
            format. On a CPU `fp16` and `int8` replace the linear layers; the state dict lacks them then.

    Raises:
        UserError: The device cannot do it, or there is no such precision.
    """
    device = model.token_embedding.weight.device
    if precision not in WRITING_PRECISIONS:
        raise UserError(f"precision: should be one of {', '.join(WRITING_PRECISIONS)}, not {precision!r}")
    if precision == "fp32":
        return
    if precision == "bf16" or (precision == "fp16" and device.type == "cuda"):
        if precision == "bf16" and not bf16_unit(device):
            raise UserError(f"--precision bf16: this {device.type} computes it very slowly; take fp16")
        model.to(torch.bfloat16 if precision == "bf16" else torch.float16)
        return
    if device.type == "cuda":
        raise UserError("--precision int8: is for CPUs; on a GPU take bf16 or fp16")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise UserError(f"--precision {precision}: this PyTorch has no FBGEMM, which computes it; take fp32")
    layer = HalfLinear if precision == "fp16" else Int8Linear
    _replace_linear_layers(model.blocks, layer)
    model.output_projection = layer(model.output_weight, None)


@torch.no_grad()
def pack_weights(model: TransformerLM, texts: int) -> None:
    """Put the weights of a float32 model on a CPU in the order in which oneDNN reads them, in place.

    From then on it can write and score, and nothing else. Small layers gain nothing and are left as they are.

    Args:
        model: As it was loaded.
        texts: How many will be written at once. For several the output projection becomes a second copy
            of its weights, the embedding's where they are tied; for one that would gain nothing.
    """
    if model.token_embedding.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        _replace_linear_layers(model.blocks, PackedLinear, MANY_WEIGHTS)
        if texts > 1 and model.output_weight.numel() >= MANY_WEIGHTS:
            model.output_projection = PackedLinear(model.output_weight, None)


def _replace_linear_layers(
    blocks: nn.Module, layer: Callable[[Tensor, Tensor | None], nn.Module], at_least: int = 0
) -> None:
    """Make each linear layer of at least so many weights a `layer`."""
    for parent in list(blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.weight.numel() >= at_least:
                setattr(parent, name, layer(child.weight, child.bias))
