"""Smaller weights: nearly the same numbers, where they are asked for and the machine can do them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from horovod_transformer.commands import generate
from horovod_transformer.errors import UserError
from horovod_transformer.generation import generate_text, load_model_for_generation
from horovod_transformer.generation import quantization as small_weights
from horovod_transformer.generation.quantization import HalfLinear, Int8Linear, shrink_weights
from tests.conftest import LINE

IDS = torch.randint(0, 250, (3, 20), generator=torch.Generator().manual_seed(1))


def load(checkpoint, precision="fp32"):
    return load_model_for_generation(checkpoint, device="cpu", precision=precision)


@pytest.mark.parametrize(("layer", "error"), [(HalfLinear, 1e-3), (Int8Linear, 0.03)])
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_a_product_is_nearly_that_in_fp32(layer, error, biased):
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=biased)
    x = torch.randn(2, 3, 96)
    exact, small = linear(x), layer(linear.weight, linear.bias)(x)
    assert small.shape == exact.shape and small.dtype == torch.float32
    relative = (small - exact).norm() / exact.norm()
    assert 1e-6 < relative < error


def test_int8_uses_all_of_its_range():
    weight = torch.randn(40, 96)
    stored, _ = torch.ops.quantized.linear_unpack(Int8Linear(weight, None)._packed)
    # Half a step of 127 on either side.
    assert ((stored.dequantize() - weight).abs() <= weight.abs().amax(1, keepdim=True) / 250).all()


@pytest.mark.parametrize(("precision", "error"), [("fp16", 2e-3), ("int8", 0.05)])
@torch.no_grad()
def test_a_model_with_smaller_weights_writes_and_scores_with_all_of_them(tiny_checkpoint, precision, error):
    exact, small = load(tiny_checkpoint)[0], load(tiny_checkpoint, precision)[0]
    assert not any(isinstance(module, nn.Linear) for module in small.modules())
    expected, logits = exact(IDS)[0], small(IDS)[0]
    assert 0 < (logits - expected).norm() / expected.norm() < error
    # The head counts, too: the same hidden states give other logits.
    small.blocks, small.final_norm = exact.blocks, exact.final_norm
    assert 0 < (small(IDS)[0] - expected).norm() / expected.norm() < error
    cached, whole = small.cached_logits(IDS, small.new_cache(3)), small(IDS)[0][:, -1]
    # int8 rounds by the largest input of all positions at hand, and here these are fewer.
    assert (cached - whole).norm() / whole.norm() < error


@torch.no_grad()
def test_packed_weights_give_nearly_the_same_numbers(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(small_weights, "MANY_WEIGHTS", 1)
    exact, packed = load(tiny_checkpoint)[0], load(tiny_checkpoint)[0]
    small_weights.pack_weights(packed, 2)
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    torch.testing.assert_close(packed(IDS)[0], exact(IDS)[0], rtol=1e-4, atol=1e-4)
    cache = packed.new_cache(3)
    torch.testing.assert_close(packed.cached_logits(IDS, cache), packed(IDS)[0][:, -1], atol=1e-4, rtol=1e-4)
    # The head counts, too.
    packed.output_projection = small_weights.PackedLinear(torch.ones_like(exact.token_embedding.weight), None)
    assert not torch.allclose(packed(IDS)[0], exact(IDS)[0], atol=0.1)


def test_small_layers_are_not_packed(tiny_checkpoint):
    model = load(tiny_checkpoint)[0]
    small_weights.pack_weights(model, 2)
    assert model.output_projection is None
    assert not any(isinstance(module, small_weights.PackedLinear) for module in model.modules())


def test_for_one_text_the_embedding_is_not_copied(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(small_weights, "MANY_WEIGHTS", 1)
    model = load(tiny_checkpoint)[0]
    small_weights.pack_weights(model, 1)
    assert model.output_projection is None
    assert isinstance(model.blocks[0].attention.qkv, small_weights.PackedLinear)


@pytest.mark.parametrize(
    ("more", "texts"),
    [(["--num_samples", "1"], [1]), (["--num_samples", "2"], [2]), (["--precision", "fp16"], [])],
)
def test_the_command_packs_them(tiny_checkpoint, monkeypatch, more, texts):
    seen = []
    monkeypatch.setattr(small_weights, "pack_weights", lambda model, texts: seen.append(texts))
    assert generate.main(["--checkpoint", str(tiny_checkpoint), "--max_new_tokens", "3", *more]) == 0
    assert seen == texts


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_was_learned_by_heart_is_still_known(tiny_checkpoint, precision):
    model, tokenizer, _ = load(tiny_checkpoint, precision)
    assert generate_text(model, tokenizer, LINE[:6], 60, temperature=0).startswith(LINE)


def test_fp32_changes_nothing(tiny_checkpoint):
    model = load(tiny_checkpoint)[0]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shrink_weights(model, "fp32")
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_what_the_machine_cannot_do_is_one_line(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(small_weights, "bf16_unit", lambda device: "")
    with pytest.raises(UserError, match="bf16: this cpu computes it very slowly; take fp16"):
        load(tiny_checkpoint, "bf16")
    with pytest.raises(UserError, match="one of fp32, bf16, fp16, int8, not 'int4'"):
        load(tiny_checkpoint, "int4")
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    with pytest.raises(UserError, match="no FBGEMM"):
        load(tiny_checkpoint, "int8")


@torch.no_grad()
def test_bf16_where_the_cpu_has_it(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(small_weights, "bf16_unit", lambda device: "AMX-BF16")
    exact, (model, tokenizer, _) = load(tiny_checkpoint)[0], load(tiny_checkpoint, "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    expected = exact(IDS)[0]
    assert (model(IDS)[0].float() - expected).norm() / expected.norm() < 0.05
    assert len(generate_text(model, tokenizer, "to be", 20, seed=3)) > 5


def test_the_command_takes_it(tiny_checkpoint, run_python):
    command = ["-m", "src.generate", "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    done = run_python(*command, "--precision", "int8", "--max_new_tokens", "5")
    assert done.returncode == 0 and "warning" not in done.stderr.lower(), done.stderr
    wrong = run_python(*command, "--precision", "int4")
    assert wrong.returncode == 2 and "int4" in wrong.stderr
