"""The transformer's block: attention, then a feed-forward layer.

Shapes in comments: B sequences, T tokens, C = d_model, H heads, D = C / H.
"""

from __future__ import annotations

from torch import Tensor, nn

from horovod_transformer.model.cpu.attention import attend
from horovod_transformer.model.cpu.gelu import gelu
from horovod_transformer.model.cpu.linear import Linear
from horovod_transformer.model.cpu.recomputation import linear_after
from horovod_transformer.model.decoding import KeyValueCache


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and what came before."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = Linear(d_model, 3 * d_model)
        self.output = Linear(d_model, d_model)

    def forward(
        self,
        x: Tensor,
        norm: nn.Module,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Mix each position with those it may see.

        Args:
            x: Hidden states, float (B, T, C).
            norm: What normalises them first.
            mask: Bool, broadcast to (B, H, T, T): True where a query (third axis) may see a key
                (fourth axis). None: each position sees itself and all before it.
            cache: Keys and values of earlier tokens, which are seen, too; this layer's new ones
                are added. None: `x` is the whole text.
            layer: This block's place in the cache.

        Returns:
            Float (B, T, C), to be added to the residual stream.
        """
        batch, length, width = x.shape
        projected = linear_after(norm, x, self.qkv)
        # (B, T, 3C) -> three of (B, H, T, D)
        query, key, value = projected.view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        causal = mask is None
        if cache is not None:
            key, value = cache.extend(layer, key, value)
            # A single new token may look at everything before it.
            causal = causal and cache.filling
        x = attend(query, key, value, mask, self.dropout if self.training else 0.0, causal)
        return self.output(x.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, applied to each position alone."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.expand = Linear(d_model, d_ff)
        self.output = Linear(d_ff, d_model)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Map hidden states, float (..., C), which `norm` normalises first, to float (..., C)."""
        return linear_after(gelu, linear_after(norm, x, self.expand), self.output)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = CausalSelfAttention(d_model, n_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None, layer: int = 0
    ) -> Tensor:
        """Run the block on the residual stream, float (B, T, C); see `CausalSelfAttention.forward`."""
        mixed = self.attention(x, self.attention_norm, mask, cache, layer)
        # While writing, a call that does nothing would cost 4 microseconds, 25 of them for every token.
        x = x + (self.dropout(mixed) if self.training else mixed)
        mapped = self.feed_forward(x, self.feed_forward_norm)
        return x + (self.dropout(mapped) if self.training else mapped)


def run_block(block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Call a block: the function that `torch.compile` compiles once for all blocks."""
    return block(x, mask)
