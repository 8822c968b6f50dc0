"""Attention out of matrix products against torch's fused one in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from horovod_transformer.model.cpu import attention as module
from horovod_transformer.model.cpu.attention import _CausalAttention, attend

SHAPE = (2, 3, 40, 16)
HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def example(shape=SHAPE, dtype=torch.bfloat16):
    """Query, key and value as a layer has them, views of one product, and the gradient of the result."""
    batch, heads, length, width = shape
    torch.manual_seed(0)
    projected = torch.randn(batch, length, 3 * heads * width).to(dtype).requires_grad_()
    return projected, torch.randn(shape).to(dtype)


def run(function, projected, gradient):
    """The result, and the gradient of what query, key and value are views of."""
    batch, heads, length, _ = gradient.shape
    query, key, value = projected.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    result = function(query, key, value)
    (found,) = torch.autograd.grad(result, projected, gradient)
    return result.detach(), found


def torchs_own(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def difference(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 8), (1, 5, 129, 48)])
def test_it_differs_from_exact_attention_by_rounding(shape):
    projected, gradient = example(shape)
    exact = run(torchs_own, projected.detach().double().requires_grad_(), gradient.double())
    found = run(_CausalAttention.apply, projected, gradient)
    fused = run(torchs_own, projected, gradient)
    for mine, torchs, reference in zip(found, fused, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        # No worse than torch's own, but for the weights' own rounding: 2^-9 of each.
        assert difference(mine, reference) < difference(torchs, reference) + 2**-9


def test_in_float64_it_is_exact():
    projected, gradient = example(dtype=torch.float64)
    expected = run(torchs_own, projected, gradient)
    for mine, reference in zip(run(_CausalAttention.apply, projected, gradient), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


def test_heads_taken_together_or_apart_give_the_same_bits(monkeypatch):
    whole = run(_CausalAttention.apply, *example())
    for at_once in (4, 1):  # 4 of 6 heads, then 2
        monkeypatch.setattr(module, "SCORES", at_once * SHAPE[2] ** 2)
        for mine, expected in zip(run(_CausalAttention.apply, *example()), whole, strict=True):
            assert torch.equal(mine, expected)


def test_autocast_changes_nothing():
    plain = run(_CausalAttention.apply, *example())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = run(_CausalAttention.apply, *example())
    assert all(map(torch.equal, plain, under_autocast))


def test_more_keys_than_queries_are_torchs():
    projected, _ = example()
    query, key, value = projected.detach().view(2, 40, 3, 3, 16).permute(2, 0, 3, 1, 4)
    few = query[:, :, :5]
    expected = torchs_own(few, key, value)
    assert torch.equal(attend(few, key, value, None, 0.0, True), expected)


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 products")
@pytest.mark.parametrize(
    ("changed", "own"),
    [
        ({}, True),
        ({"dtype": torch.float32}, False),
        ({"shape": (1, 1, module.MOST_TOKENS + 1, 8)}, False),
        ({"dropout": 0.1}, False),
        ({"causal": False}, False),
    ],
)
def test_where_it_is_torchs_own(monkeypatch, changed, own):
    projected, gradient = example(changed.get("shape", SHAPE), changed.get("dtype", torch.bfloat16))
    dropout, causal = changed.get("dropout", 0.0), changed.get("causal", True)
    called = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *given, **more: called.append(more) or fused(*given, **more)
    )
    run(lambda *qkv: attend(*qkv, None, dropout, causal), projected, gradient)
    assert called == ([] if own else [{"attn_mask": None, "dropout_p": dropout, "is_causal": causal}])
