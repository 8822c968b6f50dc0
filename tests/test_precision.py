"""What `auto` means, and the format that products run in."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.precision import autocast, choose_precision

CPU = torch.device("cpu")


def test_auto_is_fp32_on_a_cpu_and_what_is_asked_for_is_given():
    assert choose_precision("auto", CPU) == "fp32"
    assert [choose_precision(wanted, CPU) for wanted in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_run_in_the_precision(precision, dtype):
    weight = torch.ones(2, 2, requires_grad=True)
    with autocast(precision, CPU):
        product = torch.ones(2, 2) @ weight
    assert product.dtype == dtype
    product.sum().backward()
    assert weight.grad.dtype == torch.float32
