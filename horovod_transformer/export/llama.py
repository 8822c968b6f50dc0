"""Our Llama as `LlamaForCausalLM` stores it, or with norms of queries and keys as `Qwen3ForCausalLM` does.

Queries, keys and values are one matrix here and three there, and so are gate and what it lets through. A pair
that is turned by one angle is numbers i and i + D/2 of a head there, and neighbours here.
"""

from __future__ import annotations

from torch import Tensor

from horovod_transformer.config_sections import ModelConfig

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
# Weights whose numbers of a head come in another order.
_TURNED = ("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")


def names(shape: ModelConfig) -> dict[str, tuple[str, slice]]:
    """Name of every weight: theirs to ours, and which rows of ours it is."""
    whole = slice(None)
    found = {
        "model.embed_tokens.weight": ("token_embedding.weight", whole),
        "model.norm.weight": ("final_norm.weight", whole),
    }
    if not shape.tie_embeddings:
        found["lm_head.weight"] = ("output_projection.weight", whole)
    rows = _rows(shape)
    inner = _LAYER | (_QK_NORMS if shape.qk_norm else {})
    for layer in range(shape.n_layers):
        for theirs, (ours, piece) in inner.items():
            some = whole if piece is None else rows[piece]
            found[f"model.layers.{layer}.{theirs}.weight"] = (f"blocks.{layer}.{ours}.weight", some)
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


def their_weight(tensor: Tensor, theirs: str, shape: ModelConfig) -> Tensor:
    """Arrange rows of ours as they store them under this name."""
    if not theirs.endswith(_TURNED):
        return tensor
    pairs = tensor.unflatten(0, (-1, shape.head_width // 2, 2))  # heads, pairs, the two of a pair
    return pairs.transpose(1, 2).flatten(0, 2)


def our_weight(tensor: Tensor, theirs: str, shape: ModelConfig) -> Tensor:
    """Arrange what they store under this name as rows of ours."""
    if not theirs.endswith(_TURNED):
        return tensor
    halves = tensor.unflatten(0, (-1, 2, shape.head_width // 2))
    return halves.transpose(1, 2).flatten(0, 2)
