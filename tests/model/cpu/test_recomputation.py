"""What is computed again instead of kept: how often, and with the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from horovod_transformer.model.cpu import linear as linear_module
from horovod_transformer.model.cpu.linear import Linear
from horovod_transformer.model.cpu.recomputation import checkpointed, linear_after


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp32 by convolution"])
def test_the_input_of_a_linear_layer_is_computed_again_and_no_bit_changes(precision, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(linear_module, "mkl_lacks_avx512", lambda: "convolution" in precision)
    monkeypatch.setattr(linear_module, "MANY_ROWS", 1)
    monkeypatch.setattr(linear_module, "MANY_PRODUCTS", 1)
    x, expand, linear = torch.randn(2, 50, 8), Linear(8, 16), Linear(16, 4)
    calls, found = [], []

    def gelu(values):
        calls.append(1)
        return F.gelu(values)

    for layer in (lambda h: linear(gelu(h)), lambda h: linear_after(gelu, h, linear)):
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = layer(expand(x))
        output.float().square().sum().backward()
        found.append([output, *(p.grad for m in (expand, linear) for p in m.parameters())])
        expand.zero_grad()
        linear.zero_grad()
    assert len(calls) == 2
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))


def test_an_input_that_autocast_casts_is_kept():
    norm, linear, calls = nn.LayerNorm(8), nn.Linear(8, 4), []
    with torch.autocast("cpu", torch.bfloat16):
        output = linear_after(lambda x: calls.append(1) or norm(x), torch.randn(3, 2, 8), linear)
    output.sum().backward()
    assert len(calls) == 1
    assert linear.weight.grad is not None and norm.weight.grad is not None


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        assert linear_after(F.gelu, torch.randn(2, 8), nn.Linear(8, 4)).grad_fn is None


def test_checkpointing_within_autocast_backward_included():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8))
    x, found = torch.randn(3, 4, 8), []
    block[0].bias.requires_grad_(False)

    def run(block, x, mask):
        return block(x)

    for checkpointing in (False, True):
        torch.manual_seed(1)
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = checkpointed(run, block, inputs, None, False) if checkpointing else block(inputs)
            output.float().square().sum().backward()
        found.append([inputs.grad, *(p.grad for p in block.parameters() if p.requires_grad), torch.rand(3)])
        block.zero_grad()
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))
