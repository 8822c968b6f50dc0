"""The second architecture against `transformers`' Llama and Qwen3, and what every model of ours promises."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.config_sections import ModelConfig, RopeScaling
from horovod_transformer.export import llama as form
from horovod_transformer.model.transformer import TransformerLM, build_model
from tests.conftest import TINY_LLAMA

TOKENS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))
LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)


def shape(**changes) -> ModelConfig:
    return ModelConfig.model_validate({**TINY_LLAMA.model_dump(), **changes})


SHAPES = {
    "as wide as it is": shape(n_heads=4, n_kv_heads=4, head_dim=None, qk_norm=False),
    "three to one": shape(n_heads=6, n_kv_heads=2, head_dim=None, d_model=48, qk_norm=False),
    "wider heads, three to one": shape(n_heads=6, n_kv_heads=2, head_dim=12, d_model=36, qk_norm=False),
    "untied": shape(tie_embeddings=False, qk_norm=False, rms_norm_eps=1e-3),
    "scaled": shape(rope_scaling=LLAMA3, max_seq_len=512, rope_theta=500.0, qk_norm=False),
    "qwen3": shape(qk_norm=True),
    "qwen3, untied, scaled": shape(qk_norm=True, tie_embeddings=False, rope_scaling=LLAMA3, rms_norm_eps=1e-3),
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
        name: form.their_weight(weights[ours][rows], name, config)
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
