"""Rotary positions against their formula, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch

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
    assert table.shape == (40, 3, 1, 8, 2)
    for position in (0, 1, 7, 39):
        for i in range(8):
            angle = position / 500 ** (2 * i / 16)
            for which in (0, 1):
                cosine, sine = table[position, which, 0, i].tolist()
                assert (cosine, sine) == pytest.approx((math.cos(angle), math.sin(angle)), abs=1e-6)


def test_neighbours_are_turned_and_values_stay():
    qkv = torch.randn(2, 6, 3, 2, 8)
    turned = rotate(qkv, rotary_table(6, 8, 100.0))
    assert torch.equal(turned[:, :, 2], qkv[:, :, 2]) and torch.equal(turned[:, 0], qkv[:, 0])
    for position, which, head, pair in ((1, 0, 0, 0), (5, 1, 1, 3), (3, 0, 1, 2)):
        x, y = qkv[1, position, which, head, 2 * pair : 2 * pair + 2].tolist()
        angle = position / 100 ** (2 * pair / 8)
        expected = (
            x * math.cos(angle) - y * math.sin(angle),
            x * math.sin(angle) + y * math.cos(angle),
        )
        found = turned[1, position, which, head, 2 * pair : 2 * pair + 2].tolist()
        assert found == pytest.approx(expected, abs=1e-6)


def test_the_compilers_formula_is_the_same(monkeypatch):
    qkv = torch.randn(2, 6, 3, 2, 8, requires_grad=True)
    table, found = rotary_table(6, 8, 10000.0), []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        turned = rotate(qkv, table)
        found.append((turned, *torch.autograd.grad(turned.square().sum() + turned[0].sum(), qkv)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_only_the_result_is_rounded(dtype):
    qkv, table = torch.randn(2, 50, 3, 2, 8).to(dtype), rotary_table(50, 8, 10000.0)
    turned = rotate(qkv, table)
    assert turned.dtype == dtype
    assert torch.equal(turned, rotate(qkv.float(), table).to(dtype))


def test_texts_at_positions_of_their_own():
    qkv, table = torch.randn(2, 3, 3, 2, 8), rotary_table(20, 8, 10000.0)
    positions = torch.tensor([[0, 1, 2], [10, 11, 12]])
    together = rotate(qkv, table[positions])
    for row, start in enumerate((0, 10)):
        torch.testing.assert_close(together[row], rotate(qkv[row][None], table[start : start + 3])[0])
    torch.testing.assert_close(rotate(qkv[:, :1], table[7]), rotate(qkv[:, :1], table[7:8]))


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
