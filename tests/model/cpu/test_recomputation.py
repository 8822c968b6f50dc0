"""What is computed again instead of kept: how often, how much memory it saves, and with the same bits."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from horovod_transformer.model.cpu import gelu as gelu_module
from horovod_transformer.model.cpu import linear as linear_module
from horovod_transformer.model.cpu.layer_norm import LayerNorm
from horovod_transformer.model.cpu.linear import Linear
from horovod_transformer.model.cpu.recomputation import checkpointed, recomputable, recomputing_input
from horovod_transformer.model.layer import TransformerLayer
from horovod_transformer.model.llama import LlamaLayer

BATCH, LENGTH, WIDTH, FEED_FORWARD = 4, 64, 64, 256


@pytest.fixture(params=["fp32", "bf16", "fp32 by convolution"])
def precision(monkeypatch, request):
    """Each way in which a layer may compute; GELU by way of the sigmoid in all of them."""
    monkeypatch.setattr(linear_module, "mkl_lacks_avx512", lambda: "convolution" in request.param)
    monkeypatch.setattr(linear_module, "MANY_ROWS", 1)
    monkeypatch.setattr(linear_module, "MANY_PRODUCTS", 1)
    monkeypatch.setattr(gelu_module, "MANY_NUMBERS", 1)
    return request.param


def plain(monkeypatch):
    """Let linear layers keep their input, as torch's do."""
    monkeypatch.setattr(linear_module, "recomputing_input", lambda x: contextlib.nullcontext())


def run_layer(precision, dropout=0.0, llama=False):
    """One pass forward and backward; the bytes kept in between, the output and all gradients."""
    torch.manual_seed(0)
    layer = TransformerLayer(WIDTH, 2, FEED_FORWARD, dropout)
    if llama:
        layer = LlamaLayer(WIDTH, 2, 2, 32, FEED_FORWARD, False, 1e-6, dropout)
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with profiler as forward, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = layer(x)
    # Allocated less freed: what the backward pass has been left.
    kept = sum(event.self_cpu_memory_usage for event in forward.events())
    output.float().square().sum().backward()
    return kept, [output, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize(("dropout", "llama"), [(0.0, False), (0.2, False), (0.0, True)])
def test_a_layer_keeps_less_and_no_bit_changes(precision, dropout, llama, monkeypatch):
    kept, found = run_layer(precision, dropout, llama)
    plain(monkeypatch)
    plainly_kept, expected = run_layer(precision, dropout, llama)
    assert all(torch.equal(again, kept_one) for again, kept_one in zip(found, expected, strict=True))
    # In bf16 the norms' outputs are cast, and the cast copies are kept; the activation's have two bytes.
    bytes_of_norms = 0 if precision == "bf16" else 2 * 4 * WIDTH
    bytes_of_activation = (2 if precision == "bf16" else 4) * FEED_FORWARD
    assert plainly_kept - kept == BATCH * LENGTH * (bytes_of_norms + bytes_of_activation)


def test_the_input_is_computed_again_once(precision):
    x, calls = torch.randn(2, 50, 8, requires_grad=True), []

    def function(values):
        calls.append(1)
        return F.gelu(values)

    linear = Linear(8, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = linear(recomputable(function, x.bfloat16() if precision == "bf16" else x))
    output.sum().backward()
    assert len(calls) == 2


def test_an_input_that_autocast_casts_is_kept():
    norm, linear, calls = nn.LayerNorm(8), Linear(8, 4), []
    with torch.autocast("cpu", torch.bfloat16):
        output = linear(recomputable(lambda x: calls.append(1) or norm(x), torch.randn(3, 2, 8)))
    output.sum().backward()
    assert len(calls) == 1
    assert linear.weight.grad is not None and norm.weight.grad is not None


def test_only_the_object_itself_is_recomputed_and_only_as_it_was():
    """A copy is not what the recipe makes, nor is the output once it has been changed in place."""
    x = torch.randn(5, 8, requires_grad=True)
    for change in (lambda y: y * 2, lambda y: y.mul_(2), lambda y: y.detach().requires_grad_()):
        linear, torchs_own = Linear(8, 3), nn.Linear(8, 3)
        torchs_own.load_state_dict(linear.state_dict())
        for layer in (linear, torchs_own):
            layer(change(recomputable(torch.sin, x))).sum().backward()
        assert torch.equal(linear.weight.grad, torchs_own.weight.grad)


def test_without_gradients_nothing_is_marked():
    with torch.no_grad():
        outputs = LayerNorm(8)(torch.randn(2, 8)), gelu_module.gelu(torch.randn(2, 8))
    for output in outputs:
        assert output.grad_fn is None and not vars(output)
        assert isinstance(recomputing_input(output), contextlib.nullcontext)


def test_checkpointing_within_autocast_backward_included():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8))
    x, found = torch.randn(3, 4, 8), []
    layer[0].bias.requires_grad_(False)

    def run(layer, x, mask, rotation):
        return layer(x)

    for checkpointing in (False, True):
        torch.manual_seed(1)
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = checkpointed(run, layer, inputs, None, None, False) if checkpointing else layer(inputs)
            output.float().square().sum().backward()
        found.append([inputs.grad, *(p.grad for p in layer.parameters() if p.requires_grad), torch.rand(3)])
        layer.zero_grad()
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))
