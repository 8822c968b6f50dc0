"""Products with a matrix of weights, in fp32 on a CPU by whichever of torch's libraries is the faster one.

`F.linear` calls MKL. Two cases are oneDNN's (docs/log.md, 2026-11-26 and 2026-11-27):

- A few rows, which is what writing token after token consists of, take as long as reading the weights
  takes. MKL reads large ones at half the memory's bandwidth, and several times for some rows.
- On an AMD CPU with AVX-512 MKL does without it, at half of what the CPU can do. Of torch's functions with
  gradients it is the convolution that calls oneDNN there; one of 1 x 1 pixels is this product.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from horovod_transformer.model.cpu.recomputation import recomputing_input
from horovod_transformer.system.machine import cpu_field, cpu_flags

# Without gradient oneDNN is the faster one up to this many rows, and from this many weights on: fewer fit
# into the caches, and a call of it costs some 30 microseconds.
FEW_ROWS = 32
MANY_WEIGHTS = 2**19
# Where MKL lacks AVX-512, from this many rows and this many multiplications on.
MANY_ROWS = 64
MANY_PRODUCTS = 2**24


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; in fp32 on a CPU by oneDNN where that is faster.

    Args:
        x: Float (..., K).
        weight: Float (N, K).
        bias: Float (N,), or None.

    Returns:
        Float (..., N).
    """
    # The compiler comes first: it must not look further.
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    few, many = rows <= FEW_ROWS, rows >= MANY_ROWS and rows * weight.numel() >= MANY_PRODUCTS
    if torch.is_grad_enabled():
        return _by_convolution(x, weight, bias) if many and mkl_lacks_avx512() else F.linear(x, weight, bias)
    if (few and weight.numel() >= MANY_WEIGHTS) or (many and mkl_lacks_avx512()):
        return onednn_product(x, weight, bias)
    return F.linear(x, weight, bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` by oneDNN, for float32 on a CPU, without gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@functools.cache
def mkl_lacks_avx512() -> bool:
    """Whether MKL leaves this CPU's AVX-512 unused."""
    return cpu_field("vendor_id") == "AuthenticAMD" and "avx512f" in cpu_flags()


def _by_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One picture of one line, each row of `x` a pixel and its numbers the pixel's channels."""
    # Rows as they lie in memory: (..., K) -> (1, 1, rows, K) -> (1, K, 1, rows)
    pixels = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    mapped = F.conv2d(pixels, weight[:, :, None, None], bias)
    return mapped.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """`nn.Linear` by `linear`; an input that is cheap to compute again is not kept for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float (..., K) to float (..., N)."""
        with recomputing_input(x):
            return linear(x, self.weight, self.bias)
