"""The second architecture against `transformers`' Llama and Qwen3, and what every model of ours promises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from horovod_transformer.config import Config, config_from_dict
from horovod_transformer.config_sections import LLAMA_KEYS, ModelConfig, RopeScaling, TrainingConfig
from horovod_transformer.errors import UserError
from horovod_transformer.export import llama as form
from horovod_transformer.generation import generate_text, load_model_for_generation
from horovod_transformer.generation.quantization import shrink_weights
from horovod_transformer.model.rotary import rotary_table
from horovod_transformer.model.size import count_parameters, flops_per_token, pass_bytes
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.resume import require_same_model
from tests.conftest import LINE, TINY, TINY_LLAMA, write_tiny_checkpoint

TOKENS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))
LLAMA3 = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
LONGER = LLAMA3.model_copy(update={"original_max_position_embeddings": 8192})
NEW_KEYS = ("architecture", *LLAMA_KEYS)


def shape(**changes) -> ModelConfig:
    return ModelConfig.model_validate({**TINY_LLAMA.model_dump(), **changes})


SHAPES = {
    "as wide as it is": shape(n_heads=4, n_kv_heads=4, head_dim=None, qk_norm=False),
    "three to one": shape(n_heads=6, n_kv_heads=2, head_dim=None, d_model=48, qk_norm=False),
    "wider heads, three to one": shape(n_heads=6, n_kv_heads=2, head_dim=12, d_model=36, qk_norm=False),
    "untied": shape(tie_embeddings=False, qk_norm=False, rms_norm_eps=1e-3),
    "scaled": shape(rope_scaling=LLAMA3, max_seq_len=512, rope_theta=500.0, qk_norm=False),
    "qwen3": shape(qk_norm=True),
    "qwen3, untied, scaled": shape(
        qk_norm=True, tie_embeddings=False, rope_scaling=LLAMA3, rms_norm_eps=1e-3
    ),
}


def loud(model: TransformerLM) -> TransformerLM:
    """Fresh weights hardly attend; with larger ones, and norms that are not ones, a mistake shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
            else:
                parameter.mul_(5)
    return model


def made(config: ModelConfig) -> TransformerLM:
    torch.manual_seed(0)
    return loud(build_model(config)).eval()


def their_model(config: ModelConfig, weights: dict[str, torch.Tensor]):
    transformers = pytest.importorskip("transformers")
    kind = transformers.Qwen3Config if config.qk_norm else transformers.LlamaConfig
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= config.rope_scaling.model_dump()
    theirs = kind(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads, head_dim=config.head_width, rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_seq_len, tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope, attention_bias=False,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(theirs).eval()
    named = {
        name if name.startswith("lm_head") else f"model.{name}": form.their_weight(
            weights[ours][rows], name, config
        )
        for name, (ours, rows) in form.names(config).items()
    }
    if config.tie_embeddings:
        named["lm_head.weight"] = named["model.embed_tokens.weight"]
    model.load_state_dict(named)
    return model


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_the_logits_are_transformers(kind):
    model = made(SHAPES[kind])
    length = model.max_seq_len
    tokens = torch.randint(0, 300, (2, length), generator=torch.Generator().manual_seed(1))
    logits, _ = model(tokens)
    assert logits.std() > 0.5
    expected = their_model(SHAPES[kind], model.state_dict())(tokens).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_the_scaled_speeds_are_llama_3s():
    plain, scaled = (rotary_table(2, 64, 500000.0, scaling)[1, 0, 0].double() for scaling in (None, LONGER))
    before, after = (torch.atan2(table[:, 1], table[:, 0]) for table in (plain, scaled))
    turns = before * LONGER.original_max_position_embeddings / (2 * math.pi)
    ratio = before / after
    torch.testing.assert_close(
        ratio[turns > 4], torch.ones(int((turns > 4).sum())).double(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(ratio[turns < 1], torch.full_like(ratio[turns < 1], 8), rtol=1e-4, atol=0)
    between = ratio[(turns > 1) & (turns < 4)]
    assert len(between) >= 2 and ((between > 1) & (between < 8)).all()


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_cached_logits_equal_forward(kind):
    model = made(SHAPES[kind])
    cache = model.new_cache(3)
    assert cache.keys[0].shape == (3, SHAPES[kind].kv_heads, model.max_seq_len, SHAPES[kind].head_width)
    steps = [model.cached_logits(TOKENS[:, :7], cache)]
    steps += [model.cached_logits(TOKENS[:, t : t + 1], cache) for t in range(7, 20)]
    torch.testing.assert_close(torch.stack(steps, dim=1), model(TOKENS)[0][:, 6:], atol=1e-4, rtol=0)


def test_an_untied_model_learns_both_embeddings():
    model = made(SHAPES["untied"]).train()
    names = [name for name, parameter in model.named_parameters() if parameter.shape == (300, 32)]
    # Last: its gradient is the first to be there.
    assert names == ["token_embedding.weight", "output_projection.weight"]
    assert [name for name, _ in model.named_parameters()][-1] == names[1]
    total, count, _ = model.loss_sums(TOKENS, TOKENS)
    _, loss = model(TOKENS, labels=TOKENS)
    assert (total / count).item() == pytest.approx(loss.item(), rel=1e-6)
    found = torch.autograd.grad(total / count, list(model.parameters()))
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), one, other in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(
            one, other, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_inside(tied):
    model = build_model(shape(tie_embeddings=tied))
    groups = build_optimizer(model, TrainingConfig(optimizer="muon")).param_groups
    inside = {id(parameter) for group in groups if group["muon"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in inside}
    kinds = ("attention.qkv", "attention.output", "feed_forward.expand", "feed_forward.output")
    assert names == {f"blocks.{layer}.{kind}.weight" for layer in range(2) for kind in kinds}


@pytest.mark.parametrize(("precision", "error"), [("fp16", 2e-3), ("int8", 0.08)])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_smaller_weights_write_and_score_nearly_the_same(precision, error, tied):
    config = shape(tie_embeddings=tied)
    exact, small = made(config), made(config)
    shrink_weights(small, precision)
    assert not any(isinstance(module, nn.Linear) for module in small.modules())
    expected = exact(TOKENS)[0]
    assert 0 < (small(TOKENS)[0] - expected).norm() / expected.norm() < error
    small.blocks = exact.blocks  # the head counts, too
    assert 0 < (small(TOKENS)[0] - expected).norm() / expected.norm() < error


@torch.no_grad()
def test_all_of_it_in_bf16():
    exact, small = made(TINY_LLAMA), made(TINY_LLAMA).to(torch.bfloat16)
    expected, logits = exact(TOKENS)[0], small(TOKENS)[0]
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() / expected.norm() < 0.05
    cache = small.new_cache(3)
    small.cached_logits(TOKENS[:, :-1], cache)
    assert (small.cached_logits(TOKENS[:, -1:], cache) - logits[:, -1]).abs().max() < 0.1 * logits.std()


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_holds_it(tied, tmp_path, tiny_tokenizer):
    values = {
        **shape(tie_embeddings=tied, rope_scaling=LLAMA3).model_dump(),
        "vocab_size": tiny_tokenizer.vocab_size,
    }
    path = write_tiny_checkpoint(tmp_path, tiny_tokenizer, **values)
    model, tokenizer, config = load_model_for_generation(path, device="cpu")
    assert config.model == ModelConfig.model_validate(values)
    assert generate_text(model, tokenizer, LINE[:6], 60, temperature=0).startswith(LINE)


def test_a_config_from_before_is_a_gpt2():
    old = {key: value for key, value in ModelConfig().model_dump().items() if key not in NEW_KEYS}
    assert ModelConfig.model_validate(old) == ModelConfig()
    assert TransformerLM(vocab_size=8, d_model=8, n_heads=1, n_layers=1).tie_embeddings


def test_a_run_goes_on_with_the_same_architecture_only():
    require_same_model(TINY_LLAMA, shape(max_seq_len=99, dropout=0.1), Path("x.pt"))
    # What is left to its default is what that stands for.
    plain = shape(n_heads=2, n_kv_heads=None, head_dim=None)
    require_same_model(plain, shape(n_heads=2, n_kv_heads=2, head_dim=16), Path("x.pt"))
    for change in (
        {"n_kv_heads": 4},
        {"head_dim": 16},
        {"qk_norm": False},
        {"tie_embeddings": False},
        {"rms_norm_eps": 1e-5},
        {"rope_scaling": LLAMA3},
        {"rope_theta": 1e6},
    ):
        with pytest.raises(UserError, match=f"x.pt: its model has {next(iter(change))} = "):
            require_same_model(TINY_LLAMA, shape(**change), Path("x.pt"))
    with pytest.raises(
        UserError, match="has architecture = llama, but the config says model.architecture = gpt2"
    ):
        require_same_model(TINY_LLAMA, TINY, Path("x.pt"))


SCALING = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}
REFUSED = {
    "only llama": (
        {"n_kv_heads": 2, "qk_norm": True},
        "model: n_kv_heads, qk_norm: only architecture: llama has this; leave it out, or set architecture to",
    ),
    "untied": ({"tie_embeddings": False}, "model: tie_embeddings: only architecture: llama"),
    "another": ({"architecture": "mistral"}, "model.architecture = 'mistral': should be 'gpt2' or 'llama'"),
    "positions": (
        {"architecture": "llama", "positions": "learned"},
        "model: architecture: llama has rotary positions, not learned; set positions to rotary",
    ),
    "groups": (
        {"architecture": "llama", "n_kv_heads": 5},
        "model: n_kv_heads must divide n_heads; 5 does not divide 12",
    ),
    "heads": (
        {"architecture": "llama", "n_heads": 5},
        "model: n_heads must divide d_model unless head_dim is set; 5 does not divide 768",
    ),
    "odd heads": ({"architecture": "llama", "head_dim": 7}, "not 7 wide"),
    "another scaling": (
        {"architecture": "llama", "rope_scaling": {**SCALING, "rope_type": "yarn"}},
        "model.rope_scaling.rope_type = 'yarn': should be 'llama3'",
    ),
    "a number is missing": (
        {"architecture": "llama", "rope_scaling": {"factor": 8}},
        "model.rope_scaling.low_freq_factor: ",
    ),
    "an unknown number": (
        {"architecture": "llama", "rope_scaling": {**SCALING, "beta": 1}},
        "model.rope_scaling.beta: no such key",
    ),
    "high and low": (
        {"architecture": "llama", "rope_scaling": {**SCALING, "high_freq_factor": 1}},
        "model.rope_scaling: high_freq_factor should be above low_freq_factor, 1, not 1",
    ),
    "a word": (
        {"architecture": "llama", "rope_scaling": "llama3"},
        "model.rope_scaling = 'llama3': should be",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line(case):
    values, said = REFUSED[case]
    with pytest.raises(UserError) as refused:
        config_from_dict({"model": values}, "c.yaml")
    assert f"c.yaml: {said}" in str(refused.value) or said in str(refused.value)
    assert "\n" not in str(refused.value)
    if "head" not in case:
        assert str(refused.value).startswith(f"c.yaml: {said}")


def test_the_scaling_can_be_given_on_the_command_line():
    overrides = {"model.architecture": "llama", "model.rope_scaling": str(SCALING)}
    assert Config().with_overrides(overrides).model.rope_scaling == RopeScaling(**SCALING)


def test_one_row_turns_queries_and_keys():
    """At 131,072 positions three of them take 100 MB."""
    assert torch.equal(rotary_table(9, 8, 50.0, LLAMA3, three=False), rotary_table(9, 8, 50.0, LLAMA3)[:, :1])
    assert build_model(TINY_LLAMA).position_table.shape == (32, 1, 1, 6, 2)


def test_python_callers_are_told_as_well():
    with pytest.raises(ValueError, match="a Llama has rotary positions, not sinusoidal"):
        TransformerLM(architecture="llama")
    with pytest.raises(ValueError, match="n_heads must be a multiple of n_kv_heads"):
        TransformerLM(vocab_size=8, architecture="llama", positions="rotary", n_kv_heads=5)


def test_work_counts_all_heads_and_no_lookup():
    tied, untied = shape(), shape(tie_embeddings=False)
    found = [flops_per_token(each, count_parameters(each), 32) for each in (tied, untied)]
    assert found[0] == found[1] == 6 * count_parameters(tied) + 12 * 2 * 48 * 32
    assert pass_bytes(untied, 100) > pass_bytes(tied, 100)
