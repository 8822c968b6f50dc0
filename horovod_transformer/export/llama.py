"""Our Llama as `LlamaForCausalLM` stores it, or with norms of queries and keys as `Qwen3ForCausalLM` does.

Queries, keys and values are one matrix here and three there, and so are gate and what it lets through. A pair
that is turned by one angle is numbers i and i + D/2 of a head there, and neighbours here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.errors import UserError
from horovod_transformer.export.requirements import require_values

PREFIX, OUTPUT_PROJECTION = "model.", "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
BUFFERS: tuple[str, ...] = (".rotary_emb.inv_freq",)
# Theirs -> ours, within a layer, and which piece of ours it is (see `_rows`).
_LAYER = {
    "input_layernorm": ("attention_norm", None),
    "self_attn.q_proj": ("attention.qkv", "query"),
    "self_attn.k_proj": ("attention.qkv", "key"),
    "self_attn.v_proj": ("attention.qkv", "value"),
    "self_attn.o_proj": ("attention.output", None),
    "post_attention_layernorm": ("feed_forward_norm", None),
    "mlp.gate_proj": ("feed_forward.expand", "gate"),
    "mlp.up_proj": ("feed_forward.expand", "passed"),
    "mlp.down_proj": ("feed_forward.output", None),
}
_QK_NORMS = {
    "self_attn.q_norm": ("attention.query_norm", None),
    "self_attn.k_norm": ("attention.key_norm", None),
}
# What would make another computation of the same weights: key -> the only value we compute, and what
# `transformers` takes where a file leaves it out.
_REQUIRED = {"hidden_act": "silu", "attention_bias": False}
_LLAMA = {"mlp_bias": False}
_QWEN3 = {"use_sliding_window": False}
# Numbers of `rope_scaling`.
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Weights whose numbers of a head come in another order.
_TURNED = ("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")


def names(shape: ModelConfig) -> dict[str, tuple[str, slice]]:
    """Name of every weight: theirs, without the prefix, to ours, and which rows of ours it is."""
    whole = slice(None)
    found = {
        EMBEDDING: ("token_embedding.weight", whole),
        "norm.weight": ("final_norm.weight", whole),
    }
    if not shape.tie_embeddings:
        found[OUTPUT_PROJECTION] = ("output_projection.weight", whole)
    rows = _rows(shape)
    inner = _LAYER | (_QK_NORMS if shape.qk_norm else {})
    for layer in range(shape.n_layers):
        for theirs, (ours, piece) in inner.items():
            some = whole if piece is None else rows[piece]
            found[f"layers.{layer}.{theirs}.weight"] = (f"blocks.{layer}.{ours}.weight", some)
    return found


def _rows(shape: ModelConfig) -> dict[str, slice]:
    queries, keys = shape.n_heads * shape.head_width, shape.kv_heads * shape.head_width
    return {
        "query": slice(0, queries),
        "key": slice(queries, queries + keys),
        "value": slice(queries + keys, queries + 2 * keys),
        "gate": slice(0, shape.d_ff),
        "passed": slice(shape.d_ff, 2 * shape.d_ff),
    }


def their_weight(tensor: Tensor, name: str, shape: ModelConfig) -> Tensor:
    """Arrange rows of ours as they store them under this name."""
    if not name.endswith(_TURNED):
        return tensor
    pairs = tensor.unflatten(0, (-1, shape.head_width // 2, 2))  # heads, pairs, the two of a pair
    return pairs.transpose(1, 2).flatten(0, 2)


def our_weight(tensor: Tensor, name: str, shape: ModelConfig) -> Tensor:
    """Arrange what they store under this name as rows of ours."""
    if not name.endswith(_TURNED):
        return tensor
    halves = tensor.unflatten(0, (-1, 2, shape.head_width // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def their_config(shape: ModelConfig) -> dict[str, Any]:
    """What `config.json` says of the model; its special tokens left out.

    Raises:
        UserError: `transformers` computes no such model.
    """
    if not shape.qk_norm and shape.d_model % shape.n_heads:
        raise UserError(
            f"transformers refuses a Llama whose heads do not divide its width, {shape.n_heads} of "
            f"{shape.d_model}; only with qk_norm, as a Qwen3, can it be exported"
        )
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    scaling = None if shape.rope_scaling is None else shape.rope_scaling.model_dump()
    return {
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        **_REQUIRED,
        **(_QWEN3 if shape.qk_norm else _LLAMA),
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_seq_len,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.d_ff,
        "rms_norm_eps": shape.rms_norm_eps,
        "tie_word_embeddings": shape.tie_embeddings,
        # The same for transformers 5 and for 4.
        "rope_parameters": rope | (scaling or {}),
        "rope_theta": shape.rope_theta,
        "rope_scaling": scaling,
        "attention_dropout": shape.dropout,
    }


def our_shape(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Our `model` section for their `config.json`; what that leaves out has `transformers`' value.

    Raises:
        UserError: It is of a model that we do not compute.
    """
    qwen3 = values["model_type"] == "qwen3"
    kind = "Qwen3" if qwen3 else "Llama"
    required = _REQUIRED | (_QWEN3 if qwen3 else _LLAMA)
    require_values(values, required, required, path, kind)
    kinds = values.get("layer_types") or ["full_attention"]
    if kinds != ["full_attention"] * len(kinds):
        raise UserError(
            f"{path}: layer_types: only {kind} models whose layers see all of a text can be imported"
        )
    theta, scaling = _rope(values, path, kind)
    return {
        "architecture": "llama",
        "vocab_size": values.get("vocab_size", 151936 if qwen3 else 32000),
        "d_model": values.get("hidden_size", 4096),
        "n_layers": values.get("num_hidden_layers", 32),
        "n_heads": values.get("num_attention_heads", 32),
        "n_kv_heads": values.get("num_key_value_heads", 32 if qwen3 else None),
        "head_dim": values.get("head_dim", 128 if qwen3 else None),
        "d_ff": values.get("intermediate_size", 22016 if qwen3 else 11008),
        "max_seq_len": values.get("max_position_embeddings", 32768 if qwen3 else 2048),
        "dropout": values.get("attention_dropout", 0.0),
        "positions": "rotary",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": qwen3,
        "rms_norm_eps": values.get("rms_norm_eps", 1e-6),
        "tie_embeddings": values.get("tie_word_embeddings", False),
    }


def _rope(values: dict[str, Any], path: Path, kind: str) -> tuple[Any, dict[str, Any] | None]:
    """`rope_theta` and `rope_scaling`, as version 5 of `transformers` writes them or as version 4 does."""
    key = "rope_scaling" if values.get("rope_parameters") is None else "rope_parameters"
    rope = values.get(key)
    if rope is None:
        rope = {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: {key} should hold keys and values")
    rope = {**rope, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
    require_values(rope, {"rope_type": ("default", "llama3")}, {}, path, kind)
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    if rope["rope_type"] == "default":
        return theta, None
    return theta, {"rope_type": "llama3", **{name: rope[name] for name in _SCALING if name in rope}}
