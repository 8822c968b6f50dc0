"""What `auto` means, and the format that products run in."""

from __future__ import annotations

import os

import pytest
import torch

from horovod_transformer import precision
from horovod_transformer.errors import UserError
from horovod_transformer.precision import autocast, bf16_unit, choose_precision, cpu_bf16_unit
from horovod_transformer.system.machine import cpu_field, cpu_flags

CPU = torch.device("cpu")


def decided(wanted, *units, device="cpu"):
    choice = choose_precision(wanted, device, units)
    return choice.name, choice.reason


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("sse2 avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8", "AMX-BF16"),  # Sapphire Rapids
        ("sse2 avx512f avx512_bf16 avx512_vnni", "AVX512-BF16"),  # Zen 4
        ("sse2 avx512f avx512_vnni amx_tile amx_int8", ""),
        ("sse2 avx2 bf16", ""),
        ("", ""),
    ],
)
def test_what_a_cpus_flags_say(tmp_path, monkeypatch, flags, unit):
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nmodel name\t: X\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n"
    )
    found = cpu_flags(tmp_path / "cpuinfo")
    assert found == flags.split()
    assert cpu_field("model name", tmp_path / "cpuinfo") == "X"
    assert cpu_bf16_unit(found) == unit
    monkeypatch.setattr(precision, "cpu_flags", lambda: found)
    assert bf16_unit(CPU) == unit
    # Without oneDNN torch uses none of them.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert bf16_unit(CPU) == ""


def test_a_system_without_a_list_of_flags(tmp_path):
    assert cpu_flags(tmp_path / "none") == []
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(tmp_path / "arm") == []


def test_auto_takes_bf16_where_every_rank_has_a_unit_for_it():
    assert decided("auto", "AMX-BF16") == ("bf16", "every rank has AMX-BF16")
    assert decided("auto", "AMX-BF16", "AVX512-BF16", "AMX-BF16") == (
        "bf16",
        "every rank has AMX-BF16 or AVX512-BF16",
    )
    assert decided("auto", "tensor cores", device="cuda") == ("bf16", "every rank has tensor cores")
    # One without decides for all.
    lacking = "the CPU of rank 1 has no unit for bf16 (AMX-BF16 or AVX512-BF16)"
    assert decided("auto", "AMX-BF16", "", "AMX-BF16") == ("fp32", lacking)
    assert decided("auto", "tensor cores", "", device="cuda") == (
        "fp32",
        "the GPU of rank 1 has no bf16 matrix unit",
    )


def test_what_is_asked_for_is_given():
    for wanted in ("fp32", "bf16", "fp16"):
        assert decided(wanted, "AMX-BF16") == (wanted, "as training.precision says")
    assert decided("fp32", "") == ("fp32", "as training.precision says")
    assert decided("bf16", "")[1].startswith("as training.precision says, slowly: the CPU of rank 0 has no")
    with pytest.raises(UserError, match="= bf16: the GPU of rank 1 has no bf16 matrix unit; use fp16, fp32"):
        decided("bf16", "tensor cores", "", device="cuda")


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
