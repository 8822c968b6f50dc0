"""Our model with sinusoidal or learned positions as `GPT2LMHeadModel` stores it.

Every weight is a copy or a transpose: GPT-2 stores its linear layers as (in, out). A fixed
sinusoidal position table becomes GPT-2's learned one, `wpe`, as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.export.requirements import ACTIVATIONS, NORM_EPSILON, require_values

PREFIX, OUTPUT_PROJECTION = "transformer.", "lm_head.weight"
EMBEDDING = "wte.weight"
BUFFERS: tuple[str, ...] = (".attn.bias", ".attn.masked_bias")
# Name of every weight: theirs, without the prefix, to ours.
_OUTSIDE = {
    "wte.weight": "token_embedding.weight",
    "wpe.weight": "position_embedding.weight",
    "ln_f.weight": "final_norm.weight",
    "ln_f.bias": "final_norm.bias",
}
# Theirs -> ours, within a layer; the linear layers are transposed.
_LAYER = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.output",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.expand",
    "mlp.c_proj": "feed_forward.output",
}
# What would make another computation of the same weights: key -> the only value we compute.
_REQUIRED = {
    "layer_norm_epsilon": NORM_EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def names(shape: ModelConfig) -> dict[str, tuple[str, slice]]:
    """Name of every weight: theirs, without the prefix, to ours, and which rows of ours it is: all."""
    inner = {
        f"h.{layer}.{theirs}.{part}": f"blocks.{layer}.{ours}.{part}"
        for layer in range(shape.n_layers)
        for theirs, ours in _LAYER.items()
        for part in ("weight", "bias")
    }
    return {theirs: (ours, slice(None)) for theirs, ours in (_OUTSIDE | inner).items()}


def their_weight(tensor: Tensor, name: str, shape: ModelConfig) -> Tensor:
    """Arrange a weight of ours as they store it under this name."""
    return tensor.t() if name.startswith("h.") and tensor.dim() == 2 else tensor


def our_weight(tensor: Tensor, name: str, shape: ModelConfig) -> Tensor:
    """Arrange what they store under this name as a weight of ours."""
    return their_weight(tensor, name, shape)


def their_config(shape: ModelConfig) -> dict[str, Any]:
    """What `config.json` says of the model; its special tokens left out."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **_REQUIRED,
        "activation_function": ACTIVATIONS[0],
        "vocab_size": shape.vocab_size,
        "n_positions": shape.max_seq_len,
        "n_ctx": shape.max_seq_len,  # the same by its old name, which llama.cpp reads
        "n_embd": shape.d_model,
        "n_layer": shape.n_layers,
        "n_head": shape.n_heads,
        "n_inner": shape.d_ff,
        "attn_pdrop": shape.dropout,
        "embd_pdrop": shape.dropout,
        "resid_pdrop": shape.dropout,
    }


def our_shape(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Our `model` section for their `config.json`; what that leaves out has GPT-2's own value.

    Raises:
        UserError: It is of a model that we do not compute.
    """
    required = {**_REQUIRED, "activation_function": ACTIVATIONS}
    require_values(values, required, {**_REQUIRED, "activation_function": ACTIVATIONS[0]}, path, "GPT-2")
    width, inner = values.get("n_embd", 768), values.get("n_inner")
    return {
        "vocab_size": values.get("vocab_size", 50257),
        "d_model": width,
        "n_layers": values.get("n_layer", 12),
        "n_heads": values.get("n_head", 12),
        "d_ff": 4 * width if inner is None and isinstance(width, int) else inner,
        "max_seq_len": values.get("n_positions", 1024),
        "dropout": values.get("resid_pdrop", 0.1),
        "positions": "learned",
    }
