"""A layer as Llama and Qwen3 have it: what `LlamaForCausalLM` and `Qwen3ForCausalLM` compute.

Beside the layer of `layer.py`: RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), a gated feed-forward
network (SwiGLU, Shazeer 2020, arXiv:2002.05202), no biases, several heads of queries to one of keys and
values (Ainslie et al. 2023, arXiv:2305.13245), and heads of any width, with norms of their own in Qwen3.

Shapes in comments: B sequences, T tokens, C = d_model, H heads of queries, G of keys and values, D numbers of
a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from horovod_transformer.model.cache import KeyValueCache
from horovod_transformer.model.cpu.attention import attend
from horovod_transformer.model.cpu.linear import Linear
from horovod_transformer.model.cpu.rms_norm import RMSNorm
from horovod_transformer.model.cpu.swiglu import swiglu
from horovod_transformer.model.layer import Dropout, PreNormLayer
from horovod_transformer.model.rotary import rotate


class GroupedQueryAttention(nn.Module):
    """Attention in which H / G heads of queries share the keys and values of one head.

    Args:
        d_model: Width of the residual stream.
        n_heads: H.
        n_kv_heads: G, a divisor of H.
        head_dim: D, even.
        norm_eps: Of the norms of queries and keys; None: there are none.
        dropout: Probability of dropping a weight or an output while training.

    Raises:
        ValueError: The shape does not fit together.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        norm_eps: float | None,
        dropout: float,
    ) -> None:
        super().__init__()
        if n_heads % n_kv_heads or head_dim % 2:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads and heads even in width, not {n_heads} with "
                f"{n_kv_heads}, {head_dim} wide"
            )
        self.heads = [n_heads, n_kv_heads, n_kv_heads]
        self.head_dim = head_dim
        self.qkv = Linear(d_model, sum(self.heads) * head_dim, bias=False)
        self.output = Linear(n_heads * head_dim, d_model, bias=False)
        self.query_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)
        self.key_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)
        self.dropout = dropout
        self.output_dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer_index: int = 0,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Mix each position with those it may see; see `layer.CausalSelfAttention.forward`."""
        batch, length, _ = x.shape
        # (B, T, H, D) and twice (B, T, G, D)
        query, key, value = self.qkv(x).view(batch, length, -1, self.head_dim).split(self.heads, dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            rotation = rotation.select(-4, 0)  # a query's, which is a key's as well
            query, key = rotate(query, rotation), rotate(key, rotation)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        causal = mask is None
        if cache is not None:
            key, value = cache.extend(layer_index, key, value)
            causal = causal and cache.prefill
        y = self._attend(query, key, value, mask, causal)
        return self.output_dropout(self.output(y.transpose(1, 2).reshape(batch, length, -1)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attention of queries, (B, H, T, D), over keys and values, (B, G, K, D), as (B, H, T, D)."""
        dropout = self.dropout if self.training else 0.0
        sharing = query.shape[1] // key.shape[1]
        if sharing > 1 and query.shape[2] == 1:
            # One new token: the queries that share a head are as good as so many tokens. Nothing is copied.
            folded = query.reshape(query.shape[0], key.shape[1], sharing, self.head_dim)
            return attend(folded, key, value, mask, dropout, False).reshape(query.shape)
        if sharing > 1:
            key, value = key.repeat_interleave(sharing, dim=1), value.repeat_interleave(sharing, dim=1)
        return attend(query, key, value, mask, dropout, causal)


class GatedFeedForward(nn.Module):
    """Two linear layers; half of what is between gates the other half. Each position is alone."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.expand = Linear(d_model, 2 * d_ff, bias=False)  # the gate, then what it lets through
        self.output = Linear(d_ff, d_model, bias=False)
        self.output_dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised hidden states, float (..., C), to float (..., C)."""
        return self.output_dropout(self.output(swiglu(self.expand(x))))


class LlamaLayer(PreNormLayer):
    """Llama's layer, or with `qk_norm` Qwen3's.

    Args:
        d_model: Width of the residual stream.
        n_heads: Heads of queries.
        n_kv_heads: Heads of keys and values.
        head_dim: Numbers of a head.
        d_ff: Width of the gate, and of what it lets through.
        qk_norm: Normalise each head's queries and keys, as Qwen3 does.
        norm_eps: Added to the mean square that a norm divides by.
        dropout: Probability of dropping an activation while training.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        d_ff: int,
        qk_norm: bool,
        norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(d_model, norm_eps)
        self.attention = GroupedQueryAttention(
            d_model, n_heads, n_kv_heads, head_dim, norm_eps if qk_norm else None, dropout
        )
        self.feed_forward_norm = RMSNorm(d_model, norm_eps)
        self.feed_forward = GatedFeedForward(d_model, d_ff, dropout)
