"""A GPT as most scripts have it: PyTorch's own modules, no biases, all logits at once, like nanoGPT's.

nanoGPT is no package that could be installed to be measured. These are its operations in its order, written
anew; what it does besides (loading, compiling, logging) is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.model.losses import IGNORED_LABEL


class _Attention(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.dropout = shape.n_heads, shape.dropout
        self.qkv = nn.Linear(shape.d_model, 3 * shape.d_model, bias=False)
        self.output = nn.Linear(shape.d_model, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            each.view(batch, length, self.n_heads, -1).transpose(1, 2) for each in self.qkv(x).split(width, 2)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        mixed = self.output(mixed.transpose(1, 2).contiguous().view(batch, length, width))
        return F.dropout(mixed, self.dropout, self.training)


class _Block(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.d_model, bias=False)
        self.attention = _Attention(shape)
        self.feed_forward_norm = nn.LayerNorm(shape.d_model, bias=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(shape.d_model, shape.d_ff, bias=False),
            nn.GELU(),
            nn.Linear(shape.d_ff, shape.d_model, bias=False),
            nn.Dropout(shape.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class PlainGPT(nn.Module):
    """The model, with the embedding as output projection.

    Args:
        shape: What to build. The vocabulary is rounded up to a multiple of 64, as nanoGPT does it.
    """

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(-(-shape.vocab_size // 64) * 64, shape.d_model)
        self.position_embedding = nn.Embedding(shape.max_seq_len, shape.d_model)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.n_layers))
        self.final_norm = nn.LayerNorm(shape.d_model, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Mean loss in nats of predicting each label from the tokens up to its place, both int64 (B, T)."""
        places = torch.arange(input_ids.shape[1])
        x = self.dropout(self.token_embedding(input_ids) + self.position_embedding(places))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.token_embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
