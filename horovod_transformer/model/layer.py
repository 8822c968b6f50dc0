"""A layer of the transformer: attention, then a feed-forward network, each added to the residual stream.

Shapes in comments: B sequences, T tokens, C = d_model, H heads, D = C / H.
"""

from __future__ import annotations

from torch import Tensor, nn

from horovod_transformer.model.cache import KeyValueCache
from horovod_transformer.model.cpu.attention import attend
from horovod_transformer.model.cpu.gelu import gelu
from horovod_transformer.model.cpu.layer_norm import LayerNorm
from horovod_transformer.model.cpu.linear import Linear
from horovod_transformer.model.rotary import rotate


class Dropout(nn.Dropout):
    """`nn.Dropout`, which takes 4 microseconds to do nothing: while writing, that adds up in every token."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers of `x`, any shape, while training."""
        return super().forward(x) if self.training else x


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and what came before."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = Linear(d_model, 3 * d_model)
        self.output = Linear(d_model, d_model)
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
        """Mix each position with those it may see.

        Args:
            x: Normalised hidden states, float (B, T, C).
            mask: Bool, broadcast to (B, H, T, T): True where a query (third axis) may see a key
                (fourth axis). None: each position sees itself and all before it.
            cache: Keys and values of earlier tokens, which are seen, too; this layer's new ones
                are added. None: `x` is the whole text.
            layer_index: Which layer's keys and values these are in the cache.
            rotation: Of queries and keys, as `rotary.rotate` takes it; None: positions were added to `x`.

        Returns:
            Float (B, T, C).
        """
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.n_heads, -1)
        if rotation is not None:
            qkv = rotate(qkv, rotation)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # three of (B, H, T, D)
        causal = mask is None
        if cache is not None:
            key, value = cache.extend(layer_index, key, value)
            # A single new token may look at everything before it.
            causal = causal and cache.prefill
        y = attend(query, key, value, mask, self.dropout if self.training else 0.0, causal)
        y = y.transpose(1, 2).reshape(batch, length, width)  # all heads side by side again
        return self.output_dropout(self.output(y))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, applied to each position alone."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.expand = Linear(d_model, d_ff)
        self.output = Linear(d_ff, d_model)
        self.output_dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised hidden states, float (..., C), to float (..., C)."""
        return self.output_dropout(self.output(gelu(self.expand(x))))


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); a subclass makes these four parts."""

    attention_norm: nn.Module
    attention: nn.Module
    feed_forward_norm: nn.Module
    feed_forward: nn.Module

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer_index: int = 0,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Run the layer on the residual stream, float (B, T, C); see `CausalSelfAttention.forward`."""
        x = x + self.attention(self.attention_norm(x), mask, cache, layer_index, rotation)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TransformerLayer(PreNormLayer):
    """GPT-2's layer: LayerNorm, as many heads of keys as of queries, GELU."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(d_model)
        self.attention = CausalSelfAttention(d_model, n_heads, dropout)
        self.feed_forward_norm = LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)


def run_layer(layer: nn.Module, x: Tensor, mask: Tensor | None, rotation: Tensor | None) -> Tensor:
    """Call a layer: the function that `torch.compile` compiles once for all layers."""
    return layer(x, mask, rotation=rotation)
