"""Rotary positions against their formula, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from horovod_transformer.model.cpu.rotary import rotated
from horovod_transformer.model.layer import CausalSelfAttention
from horovod_transformer.model.rotary import rotary_table, rotate
from horovod_transformer.model.transformer import build_model
from tests.conftest import TINY

TOKENS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))


def rotary(**changes):
    torch.manual_seed(0)
    model = build_model(TINY.model_copy(update={"positions": "rotary", **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # fresh weights hardly attend
    return model


def test_the_table_follows_the_formula():
    table = rotary_table(40, 16, 500.0)
    assert table.shape == (40, 2, 8)
    for position in (0, 1, 7, 39):
        for i in range(8):
            angle = position / 500 ** (2 * i / 16)
            assert table[position, 0, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert table[position, 1, i].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_each_pair_is_turned_as_a_complex_number_and_values_stay():
    qkv = torch.randn(2, 6, 3, 2, 8)
    turned = rotate(qkv, rotary_table(6, 8, 10000.0))
    assert torch.equal(turned[:, :, 2], qkv[:, :, 2])
    before, after = (torch.complex(x[..., :4], x[..., 4:]) for x in (qkv[:, :, :2], turned[:, :, :2]))
    frequencies = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    angles = torch.arange(6.0)[:, None] * frequencies
    torch.testing.assert_close(after, before * torch.polar(torch.ones(6, 4), angles)[:, None, None])


def test_the_formula_for_a_gpu_and_for_the_compiler_is_the_same(monkeypatch):
    qkv = torch.randn(2, 6, 3, 2, 8, requires_grad=True)
    table, found = rotary_table(6, 8, 10000.0), []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        turned = rotate(qkv, table)
        assert ("_Rotation" in type(turned.grad_fn).__name__) != compiling
        found.append((turned, *torch.autograd.grad(turned.square().sum() + turned[0].sum(), qkv)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_its_gradient():
    qkv = torch.randn(2, 3, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    table = rotary_table(3, 4, 100.0).double()
    assert gradcheck(lambda x: rotate(x, table), qkv)
    assert gradcheck(lambda x: rotate(x.transpose(0, 1), table[:2]), qkv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype):
    qkv, table = torch.randn(2, 50, 3, 2, 8), rotary_table(50, 8, 10000.0)
    turned = rotate(qkv.to(dtype), table)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned.float(), rotate(qkv, table), atol=3e-2, rtol=3e-2)


def test_without_gradients_no_graph_is_made():
    qkv = torch.randn(1, 3, 3, 2, 4, requires_grad=True)
    cosines, sines = torch.ones(3, 1, 1, 2), torch.zeros(3, 1, 1, 2)
    with torch.no_grad():
        assert rotated(qkv, cosines, sines).grad_fn is None
    assert torch.equal(rotated(qkv, cosines, sines), qkv)


def test_attention_sees_distances_only():
    torch.manual_seed(0)
    attention, table = CausalSelfAttention(32, 2, 0.0), rotary_table(64, 16, 10000.0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 32)
    near, far = (attention(x, rotation=table[start : start + 9]) for start in (0, 50))
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(near, attention(x, rotation=table[:18:2]), atol=1e-2)


def test_theta_is_part_of_the_model():
    state = rotary().state_dict()
    logits = []
    for theta in (10000.0, 20.0):
        model = rotary(rope_theta=theta)
        model.load_state_dict(state)
        logits.append(model(TOKENS)[0])
    assert not torch.allclose(*logits, atol=1e-2)


def test_a_longer_context_computes_the_same():
    """Nothing is learned for a position: the same weights read longer texts."""
    short, long = rotary(), rotary(max_seq_len=500)
    long.load_state_dict(short.state_dict())
    assert torch.equal(short(TOKENS)[0], long(TOKENS)[0])
    many = torch.randint(0, 300, (1, 500), generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(long(many)[0]).all()


def test_in_bf16_it_is_the_same_model_but_for_rounding():
    model = rotary()
    with torch.autocast("cpu", torch.bfloat16):
        rounded, count, _ = model.loss_sums(TOKENS, TOKENS)
    exact, _, _ = model.loss_sums(TOKENS, TOKENS)
    assert rounded.item() != exact.item()
    assert (rounded / count).item() == pytest.approx((exact / count).item(), abs=0.05)
