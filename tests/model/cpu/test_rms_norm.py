"""RMSNorm in few passes against its formula in float64, with its gradients."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.model.cpu.rms_norm import RMSNorm

X = torch.randn(4, 7, 24, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 2, 7)[:, None]


def made(dtype=torch.float32):
    torch.manual_seed(0)
    norm = RMSNorm(24, 1e-3)
    torch.nn.init.normal_(norm.weight, 1.0, 0.5)
    return norm.to(dtype)


def run(function, x, weight):
    result = function(x)
    gradient = torch.randn(X.shape, generator=torch.Generator().manual_seed(2)).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, [x, weight], gradient)]


def exact():
    x, weight = X.double().requires_grad_(), made().weight.detach().double().requires_grad_()
    return run(lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight, x, weight)


@pytest.mark.parametrize("compiling", [False, True])
def test_it_follows_the_formula_gradients_included(monkeypatch, compiling):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    norm = made()
    for found, expected in zip(run(norm, X.clone().requires_grad_(), norm.weight), exact(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_only_the_result_is_rounded(dtype):
    norm = made(dtype)
    wide = made().requires_grad_(False)
    wide.weight.copy_(norm.weight)
    x = X.to(dtype)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x).float(), wide(x.float()), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_weight_of_its_own_dtype_changes_no_dtype():
    assert made()(X.bfloat16()).dtype == torch.bfloat16  # under autocast a head is, and its weight is not
