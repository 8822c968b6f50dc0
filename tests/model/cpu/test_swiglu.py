"""The gate against its formula in float64, with its gradient."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.model.cpu.swiglu import swiglu

X = 4 * torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))


def run(function, x):
    result = function(x)
    gradient = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2)).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, x, gradient)]


def formula(x):
    return x[..., :12] * x[..., :12].sigmoid() * x[..., 12:]


@pytest.mark.parametrize("compiling", [False, True])
def test_it_follows_the_formula_gradient_included(monkeypatch, compiling):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    exact = run(formula, X.double().requires_grad_())
    for found, expected in zip(run(swiglu, X.clone().requires_grad_()), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_in_bf16_it_differs_by_rounding():
    exact = run(formula, X.bfloat16().double().requires_grad_())
    for found, expected in zip(run(swiglu, X.bfloat16().requires_grad_()), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() < 2**-7 * expected.norm()
