"""Products of few rows: the same numbers, by whatever library, and training left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from horovod_transformer.model import few_rows
from horovod_transformer.model.few_rows import FEW_ROWS, MANY_WEIGHTS, Linear, linear

WIDTH = 512
OUTPUTS = MANY_WEIGHTS // WIDTH


@pytest.fixture
def products(monkeypatch):
    """Which of `F.linear`'s calls were made."""
    calls = []
    original = F.linear
    monkeypatch.setattr(few_rows.F, "linear", lambda *args: calls.append(1) or original(*args))
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
