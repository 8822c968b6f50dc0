"""What `auto` means, and the format that products run in."""

from __future__ import annotations

import os

import pytest
import torch

from horovod_transformer import precision
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


def test_what_is_so_anyway_does_not_load_torchs_compiler(run_python):
    program = (
        "import sys, torch; from horovod_transformer.precision import set_arithmetic; "
        "set_arithmetic(torch.device('cpu'), 'fp32', deterministic=False); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = run_python("-c", program)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.fixture
def arithmetic_restored():
    yield
    precision.set_arithmetic(torch.device("cpu"), "fp32", deterministic=False)


@pytest.mark.parametrize(
    ("device", "wanted", "products"),
    [("cuda", "fp32", "high"), ("cuda", "bf16", "highest"), ("cpu", "fp32", "highest")],
)
def test_only_a_gpu_asked_for_fp32_computes_in_tf32(arithmetic_restored, device, wanted, products):
    precision.set_arithmetic(torch.device(device), wanted, deterministic=False)
    assert torch.get_float32_matmul_precision() == products
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_algorithms(arithmetic_restored, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    precision.set_arithmetic(torch.device("cuda"), "bf16", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
