"""The activation by way of the sigmoid against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from horovod_transformer.model.cpu import gelu as gelu_module
from horovod_transformer.model.cpu.gelu import MANY_NUMBERS, gelu

LARGE = torch.cat([torch.linspace(-12, 12, MANY_NUMBERS), torch.tensor([0.0, 1e20, -1e20, 1e-30, -1e-30])])


def test_it_is_torchs_to_rounding():
    exact = F.gelu(LARGE.double(), approximate="tanh")
    assert (gelu(LARGE) - exact).abs().div(LARGE.abs().clamp(min=1)).max() < 5e-7
    assert gelu(torch.full((MANY_NUMBERS,), torch.nan)).isnan().all()


def test_so_is_its_gradient():
    x, reference = LARGE.clone().requires_grad_(), LARGE.double().requires_grad_()
    gelu(x).square().sum().backward()
    F.gelu(reference, approximate="tanh").square().sum().backward()
    inner = slice(0, MANY_NUMBERS)
    torch.testing.assert_close(x.grad[inner].double(), reference.grad[inner], rtol=1e-5, atol=1e-6)


def test_in_bf16_it_is_as_exact_as_torchs(monkeypatch):
    monkeypatch.setattr(gelu_module, "PIECE", 1000)  # the last one is not full
    x = LARGE[:MANY_NUMBERS].bfloat16().view(256, -1)
    exact = F.gelu(x.double(), approximate="tanh")
    for turned in (x, x.t().contiguous().t()):
        found = gelu(turned)
        assert found.dtype == torch.bfloat16
        # Half of the last of eight bits.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    leaf = x.clone().requires_grad_()
    reference = x.double().requires_grad_()
    gelu(leaf).sum().backward()
    F.gelu(reference, approximate="tanh").sum().backward()
    torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize(("x", "own"), [(LARGE, True), (LARGE[:100], False), (LARGE.half(), False)])
def test_where_it_is_torchs_own(monkeypatch, x, own):
    expected = F.gelu(x, approximate="tanh")
    called = []
    monkeypatch.setattr(F, "gelu", lambda *_, **__: called.append(1) or expected)
    assert gelu(x).dtype == x.dtype
    assert called == ([] if own else [1])
