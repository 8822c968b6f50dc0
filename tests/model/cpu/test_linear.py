"""Products with weights: the same numbers, by whatever library."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from horovod_transformer.model.cpu import linear as module
from horovod_transformer.model.cpu.linear import (
    FEW_ROWS,
    MANY_PRODUCTS,
    MANY_ROWS,
    MANY_WEIGHTS,
    Linear,
    linear,
)

WIDTH = 512
OUTPUTS = MANY_WEIGHTS // WIDTH


@pytest.fixture
def products(monkeypatch):
    """Which of `F.linear`'s calls were made."""
    calls = []
    original = F.linear
    monkeypatch.setattr(module, "mkl_lacks_avx512", lambda: False)
    monkeypatch.setattr(module.F, "linear", lambda *args: calls.append(1) or original(*args))
    return calls


@pytest.mark.parametrize("shape", [(1, 1), (FEW_ROWS, 1), (2, 5)])
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_the_product_is_that_of_f_linear(products, shape, biased):
    x, weight = torch.randn(*shape, WIDTH), torch.randn(OUTPUTS, WIDTH)
    bias = torch.randn(OUTPUTS) if biased else None
    result = linear(x, weight, bias)
    assert not products
    torch.testing.assert_close(result, F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


def test_training_many_rows_small_weights_and_autocast_go_the_usual_way(products):
    module = Linear(WIDTH, OUTPUTS)
    module(torch.randn(1, 1, WIDTH)).sum().backward()
    assert module.weight.grad is not None and len(products) == 1
    with torch.no_grad():
        module(torch.randn(FEW_ROWS + 1, WIDTH))
        Linear(WIDTH, OUTPUTS - 1)(torch.randn(1, WIDTH))
        with torch.autocast("cpu", torch.bfloat16):
            assert module(torch.randn(1, WIDTH)).dtype == torch.bfloat16
    assert len(products) == 4


@pytest.mark.parametrize("shape", [(MANY_ROWS,), (2, MANY_ROWS), (3, 5, MANY_ROWS)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_where_mkl_is_held_back_training_goes_by_convolution(products, monkeypatch, shape, biased, turned):
    monkeypatch.setattr(module, "mkl_lacks_avx512", lambda: True)
    outputs = MANY_PRODUCTS // MANY_ROWS // WIDTH
    x, weight = torch.randn(*shape, WIDTH), torch.randn(outputs, WIDTH) / WIDTH**0.5
    if turned:
        x = torch.randn(WIDTH, *shape).movedim(0, -1)
    grad = torch.randn(*shape, outputs)
    found = []
    for function in (linear, F.linear):
        leaves = [x.clone(), weight.clone(), *([torch.arange(outputs) / outputs] if biased else [])]
        for leaf in leaves:
            leaf.requires_grad_()
        result = function(*leaves)
        result.backward(grad)
        assert [leaf.grad.stride() for leaf in leaves] == [leaf.stride() for leaf in leaves]
        found.append([result, *(leaf.grad for leaf in leaves)])
        assert bool(products) == (function is F.linear)
    for ours, usual in zip(*found, strict=True):
        torch.testing.assert_close(ours, usual, atol=1e-4, rtol=1e-5)
    products.clear()
    with torch.no_grad():
        torch.testing.assert_close(linear(*leaves), found[1][0], atol=1e-4, rtol=1e-5)
    assert not products


def test_where_mkl_is_held_back_small_products_go_the_usual_way(products, monkeypatch):
    monkeypatch.setattr(module, "mkl_lacks_avx512", lambda: True)
    few = torch.randn(MANY_ROWS - 1, WIDTH)
    few_products = torch.randn(MANY_ROWS, 1), torch.randn(MANY_PRODUCTS // MANY_ROWS - 1, 1)
    for inputs in ((few, torch.randn(OUTPUTS, WIDTH)), few_products):
        linear(*inputs)
        with torch.no_grad():
            linear(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        linear(torch.randn(4 * MANY_ROWS, WIDTH), torch.randn(OUTPUTS, WIDTH))
    assert len(products) == 5


def test_where_mkl_is_not_held_back_many_rows_go_the_usual_way(products):
    x, weight = torch.randn(4 * MANY_ROWS, WIDTH), torch.randn(OUTPUTS, WIDTH)
    linear(x, weight)
    with torch.no_grad():
        linear(x, weight)
    assert len(products) == 2


@pytest.mark.parametrize(
    ("vendor", "flags", "lacks"),
    [
        ("AuthenticAMD", ["avx2", "avx512f"], True),
        ("AuthenticAMD", ["avx2"], False),
        ("GenuineIntel", ["avx2", "avx512f"], False),
        ("", [], False),
    ],
)
def test_on_which_cpus_mkl_is_held_back(monkeypatch, vendor, flags, lacks):
    monkeypatch.setattr(module, "cpu_field", lambda name: {"vendor_id": vendor}[name])
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)
    assert module.mkl_lacks_avx512.__wrapped__() is lacks
