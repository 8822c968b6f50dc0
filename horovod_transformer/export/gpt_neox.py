"""Our model with rotary positions as `GPTNeoXForCausalLM` stores it (Black et al. 2022, arXiv:2204.06745).

Every weight is a copy, but for queries, keys and values, whose rows come in another order: GPT-NeoX has each
head's three side by side, and a pair that is turned by one angle is numbers i and i + D/2 of a head, where we
have the queries of all heads first, and pairs of neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.errors import UserError
from horovod_transformer.export.requirements import ACTIVATIONS, NORM_EPSILON, require_values

PREFIX, OUTPUT_PROJECTION = "gpt_neox.", "embed_out.weight"
EMBEDDING = "embed_in.weight"
BUFFERS: tuple[str, ...] = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
# Name of every weight: theirs, without the prefix, to ours.
_OUTSIDE = {
    "embed_in.weight": "token_embedding.weight",
    "final_layer_norm.weight": "final_norm.weight",
    "final_layer_norm.bias": "final_norm.bias",
}
# Theirs -> ours, within a layer.
_LAYER = {
    "input_layernorm": "attention_norm",
    "attention.query_key_value": "attention.qkv",
    "attention.dense": "attention.output",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.dense_h_to_4h": "feed_forward.expand",
    "mlp.dense_4h_to_h": "feed_forward.output",
}
# What would make another computation of the same weights: key -> the only value we compute.
_REQUIRED = {
    "use_parallel_residual": False,
    "layer_norm_eps": NORM_EPSILON,
    "attention_bias": True,
    "tie_word_embeddings": True,
}
# What `transformers` takes where a file leaves them out, `rope_parameters` in version 5, the others in 4.
_DEFAULTS = {
    "use_parallel_residual": True,
    "layer_norm_eps": NORM_EPSILON,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
}


def names(shape: ModelConfig) -> dict[str, tuple[str, slice]]:
    """Name of every weight: theirs, without the prefix, to ours, and which rows of ours it is: all."""
    inner = {
        f"layers.{layer}.{theirs}.{part}": f"blocks.{layer}.{ours}.{part}"
        for layer in range(shape.n_layers)
        for theirs, ours in _LAYER.items()
        for part in ("weight", "bias")
    }
    return {theirs: (ours, slice(None)) for theirs, ours in (_OUTSIDE | inner).items()}


def their_weight(tensor: Tensor, name: str, shape: ModelConfig) -> Tensor:
    """Arrange a weight of ours as they store it under this name."""
    if ".query_key_value." not in name:
        return tensor
    query_key, value = tensor.unflatten(0, (3, shape.n_heads, -1)).split(
        [2, 1]
    )  # (2, H, D, ...), (1, H, D, ...)
    halves = query_key.unflatten(2, (-1, 2)).transpose(2, 3).flatten(2, 3)
    return torch.cat([halves, value]).transpose(0, 1).flatten(0, 2)


def our_weight(tensor: Tensor, name: str, shape: ModelConfig) -> Tensor:
    """Arrange what they store under this name as a weight of ours."""
    if ".query_key_value." not in name:
        return tensor
    halves, value = tensor.unflatten(0, (shape.n_heads, 3, -1)).transpose(0, 1).split([2, 1])
    query_key = halves.unflatten(2, (2, -1)).transpose(2, 3).flatten(2, 3)
    return torch.cat([query_key, value]).flatten(0, 2)


def their_config(shape: ModelConfig) -> dict[str, Any]:
    """What `config.json` says of the model; its special tokens left out."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        **_REQUIRED,
        "hidden_act": ACTIVATIONS[0],
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_seq_len,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "intermediate_size": shape.d_ff,
        # The same three for transformers 5 and for 4.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": shape.rope_theta,
            "partial_rotary_factor": 1.0,
        },
        "rotary_pct": 1.0,
        "rotary_emb_base": shape.rope_theta,
        "attention_dropout": shape.dropout,
        "hidden_dropout": shape.dropout,
    }


def our_shape(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Our `model` section for their `config.json`; what that leaves out has `transformers`' value.

    Raises:
        UserError: It is of a model that we do not compute.
    """
    require_values(values, {**_REQUIRED, "hidden_act": ACTIVATIONS}, _DEFAULTS, path, "GPT-NeoX")
    return {
        "vocab_size": values.get("vocab_size", 50432),
        "d_model": values.get("hidden_size", 6144),
        "n_layers": values.get("num_hidden_layers", 44),
        "n_heads": values.get("num_attention_heads", 64),
        "d_ff": values.get("intermediate_size", 24576),
        "max_seq_len": values.get("max_position_embeddings", 2048),
        "dropout": values.get("hidden_dropout", 0.0),
        "positions": "rotary",
        "rope_theta": _theta(values, path),
    }


def _theta(values: dict[str, Any], path: Path) -> Any:
    """How fast positions turn, as version 5 of `transformers` writes it or as version 4 does."""
    rope = values.get("rope_parameters")
    if rope is None:
        require_values(values, {"rotary_pct": 1.0, "rope_scaling": None}, _DEFAULTS, path, "GPT-NeoX")
        return values.get("rotary_emb_base", _DEFAULTS["rotary_emb_base"])
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters should hold keys and values")
    required = {"rope_type": "default", "partial_rotary_factor": 1.0}
    require_values(rope, required, {"rope_type": "default"}, path, "GPT-NeoX")
    return rope.get("rope_theta", _DEFAULTS["rotary_emb_base"])
