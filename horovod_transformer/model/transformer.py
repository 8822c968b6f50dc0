"""TransformerLM: a decoder-only transformer in the manner of GPT-2, or of Llama.

Pre-norm layers of causal self-attention and a GELU feed-forward layer, learned token embeddings
shared with the output projection, and fixed sinusoidal positions (Vaswani et al. 2017,
arXiv:1706.03762, section 3.5) or, on request, learned or rotary ones. Initialisation is GPT-2's (Radford et
al. 2019, section 2.3). With `architecture: llama` it is other layers (model/llama.py), and rotary positions.

Shapes in comments: B sequences, T tokens, C = d_model, H heads, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from horovod_transformer.config_sections import GenerationConfig, ModelConfig, RopeScaling
from horovod_transformer.model.cache import KeyValueCache
from horovod_transformer.model.compilation import compile_for_fixed_shapes
from horovod_transformer.model.cpu.linear import Linear, linear
from horovod_transformer.model.cpu.recomputation import checkpointed
from horovod_transformer.model.cpu.rms_norm import RMSNorm
from horovod_transformer.model.cpu.tied_embedding import embed
from horovod_transformer.model.decoding import Decoder
from horovod_transformer.model.layer import Dropout, TransformerLayer, run_layer
from horovod_transformer.model.llama import LlamaLayer
from horovod_transformer.model.losses import IGNORED_LABEL, chunked_cross_entropy
from horovod_transformer.model.rotary import rotary_table

INITIAL_STD = 0.02
# Sines and cosines have a root mean square of 1/sqrt(2). This brings the table to the size of
# a fresh token embedding, so that neither drowns the other. The factor stands on the table and
# not (as in the 2017 paper) on the embedding: the tied output projection is then the embedding
# itself, and an export to GPT-2's format is a plain copy. docs/log.md has the comparison.
POSITION_SCALE = INITIAL_STD * math.sqrt(2)


class TransformerLM(nn.Module):
    """A GPT-style language model; the defaults have 123,653,376 parameters.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream; even, and a multiple of `n_heads`, unless it is a Llama with
            `head_dim`.
        n_heads: Attention heads per layer.
        n_layers: Number of layers.
        d_ff: Width inside the feed-forward layers.
        max_seq_len: Longest input, in tokens.
        dropout: Probability of dropping an activation while training.
        pad_token_id: Fills rows that ended early in `generate`; None uses the end-of-text token.
        gradient_checkpointing: Recompute each layer in the backward pass instead of keeping its
            activations.
        positions: `sinusoidal`, a fixed table that is added to the embedding; `learned`, an embedding of
            `max_seq_len` rows; or `rotary`, which turns queries and keys (model/rotary.py).
        rope_theta: Of rotary positions: the larger, the slower the slowest pair of numbers turns.
        architecture: `gpt2`, or `llama`, whose positions are rotary. What follows is for `llama` alone.
        n_kv_heads: Heads of keys and values; each serves as many of `n_heads`. None: as many as those.
        head_dim: Numbers of a head, even; None: `d_model / n_heads`.
        qk_norm: Normalise each head's queries and keys, as Qwen3 does.
        tie_embeddings: The token embedding is the output projection, too.
        rms_norm_eps: Added to the mean square that a norm divides by.
        rope_scaling: Llama 3's way to a longer context.

    Raises:
        ValueError: The shape does not fit together.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 50257,
        d_model: int = 768,
        n_heads: int = 12,
        n_layers: int = 12,
        d_ff: int = 3072,
        max_seq_len: int = 512,
        dropout: float = 0.0,
        pad_token_id: int | None = None,
        gradient_checkpointing: bool = False,
        positions: str = "sinusoidal",
        rope_theta: float = 10000.0,
        architecture: str = "gpt2",
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        qk_norm: bool = False,
        tie_embeddings: bool = True,
        rms_norm_eps: float = 1e-6,
        rope_scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        llama = architecture == "llama"
        if llama and positions != "rotary":
            raise ValueError(f"a Llama has rotary positions, not {positions}")
        if not (llama and head_dim) and (d_model % n_heads or d_model % 2):
            raise ValueError(f"d_model must be even and a multiple of n_heads, not {d_model} with {n_heads}")
        self.head_dim = (head_dim if llama else None) or d_model // n_heads
        if positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need heads of even width, not {self.head_dim}")
        self.architecture = architecture
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = (n_kv_heads if llama else None) or n_heads
        self.max_seq_len = max_seq_len
        self.pad_token_id = pad_token_id
        self.gradient_checkpointing = gradient_checkpointing
        self.positions = positions
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.tie_embeddings = tie_embeddings or not llama
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        if positions == "learned":
            self.position_embedding = nn.Embedding(max_seq_len, d_model)
        self.make_position_table(self.token_embedding.weight.device)
        self.dropout = Dropout(dropout)
        # Checkpoint files know the layers as "blocks".
        if llama:
            self.blocks = nn.ModuleList(
                LlamaLayer(
                    d_model, n_heads, self.n_kv_heads, self.head_dim, d_ff, qk_norm, rms_norm_eps, dropout
                )
                for _ in range(n_layers)
            )
            self.final_norm: nn.Module = RMSNorm(d_model, rms_norm_eps)
        else:
            self.blocks = nn.ModuleList(
                TransformerLayer(d_model, n_heads, d_ff, dropout) for _ in range(n_layers)
            )
            self.final_norm = nn.LayerNorm(d_model)
        # None: the token embedding itself. For writing it may be replaced by one in smaller numbers.
        self.output_projection: Any = None
        if not self.tie_embeddings:
            self.output_projection = Linear(d_model, vocab_size, bias=False)
        self._run_layer: Callable[[nn.Module, Tensor, Tensor | None, Tensor | None], Tensor] = run_layer
        self._compiled = False
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("output.weight"):
                # Each layer adds twice to the residual stream: keep the sum's variance in bounds.
                nn.init.normal_(parameter, std=INITIAL_STD / math.sqrt(2 * len(self.blocks)))
            elif "norm" not in name:
                nn.init.normal_(parameter, std=INITIAL_STD)

    def make_position_table(self, device: torch.device | str) -> None:
        """Compute the table of positions that are not learned: it follows from the shape."""
        if self.positions == "learned":
            return
        if self.positions == "rotary":
            three = self.architecture == "gpt2"
            table = rotary_table(self.max_seq_len, self.head_dim, self.rope_theta, self.rope_scaling, three)
        else:
            table = sinusoidal_positions(self.max_seq_len, self.d_model)
        # No part of the state dict.
        self.register_buffer("position_table", table.to(device), persistent=False)

    @property
    def position_vectors(self) -> Tensor | None:
        """What is added to the embedding of a token at each position, float (`max_seq_len`, C)."""
        if self.positions == "rotary":
            return None
        if self.positions == "learned":
            return self.position_embedding.weight
        return self.get_buffer("position_table")

    @property
    def output_weight(self) -> Tensor:
        """The output projection's weight as it was trained, float (V, C)."""
        return (self.token_embedding if self.tie_embeddings else self.output_projection).weight

    def compile_layers(self) -> None:
        """From now on run layers and loss as code made by `torch.compile`, made when first needed.

        Parameters, their hooks and the state dict stay as they are. Text generation, whose shapes
        change with each token, and masked input are not compiled. With dropout on a GPU the random
        numbers are others than without compiling.
        """
        self._run_layer = compile_for_fixed_shapes(run_layer)
        self._compiled = True

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute all logits and, with labels, the mean next-token loss.

        Args:
            input_ids: Token ids, int64 (B, T), T at most `max_seq_len`.
            attention_mask: Bool or whole numbers, (B, T), 1 for tokens and 0 for padding on either
                side; positions count tokens only. Labels at masked positions do not count, and
                logits there mean nothing. None: all are tokens.
            labels: Usually `input_ids` itself, int64 (B, T): the model does the shift, position t
                is scored on label t + 1. -100 is left out.

        Returns:
            Logits, float (B, T, V), and the mean loss in nats (float32 scalar; None without
            labels; 0 where no label counts).

        Raises:
            ValueError: The input is longer than `max_seq_len`.
        """
        hidden = self._hidden(self.token_embedding(input_ids), attention_mask)
        logits = self._logits(hidden)
        if labels is None:
            return logits, None
        targets = _shifted(labels, attention_mask)
        total = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
        return logits, total / (targets != IGNORED_LABEL).sum().clamp(min=1)

    def loss_sums(
        self, input_ids: Tensor, labels: Tensor, gradient_scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The training path: the same loss as `forward`, summed, without materialising all logits.

        Args:
            input_ids: Token ids, int64 (B, T), T at most `max_seq_len`; no padding but at the
                end, where labels are -100.
            labels: As in `forward`.
            gradient_scale: See `chunked_cross_entropy`.

        Returns:
            Summed loss in nats (float32 scalar), tokens that count and tokens predicted right
            (int64 scalars).
        """
        if self.tie_embeddings:
            vectors, projection = embed(input_ids, self.token_embedding.weight)
        else:
            vectors, projection = self.token_embedding(input_ids), self.output_weight
        hidden = self._hidden(vectors)
        with record_function("head"):  # for torch's profiler
            return chunked_cross_entropy(
                hidden.flatten(0, 1),
                projection,
                _shifted(labels).flatten(),
                gradient_scale,
                self._compiled,
            )

    def _hidden(self, vectors: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Final hidden states, (B, T, C), of these tokens' vectors, (B, T, C)."""
        length = vectors.shape[1]
        self._check_length(length)
        mask: Tensor | None = None
        positions: slice | Tensor = slice(0, length)
        if attention_mask is not None:
            mask = _causal_mask(attention_mask)
            positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        x, rotation = self._placed(vectors, positions)
        run = self._run_layer if mask is None else run_layer
        checkpointing = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.blocks:
            if checkpointing:
                x = checkpointed(run, layer, x, mask, rotation, self._compiled)
            else:
                x = run(layer, x, mask, rotation)
        return self.final_norm(x)

    def _placed(self, vectors: Tensor, positions: slice | int | Tensor) -> tuple[Tensor, Tensor | None]:
        """Tell tokens where they stand.

        Args:
            vectors: Of the tokens, float (B, T, C).
            positions: Index of the T positions: the same in all texts, or int64 (B, T).

        Returns:
            What the first layer sees, float (B, T, C), and the rotation for each layer, or None.
        """
        added = self.position_vectors
        if added is None:
            return self.dropout(vectors), self.get_buffer("position_table")[positions]
        return self.dropout(vectors + added[positions]), None

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.output_projection is not None:
            return self.output_projection(hidden)
        return linear(hidden, self.token_embedding.weight)

    def _check_length(self, length: int) -> None:
        if length > self.max_seq_len:
            raise ValueError(f"{length} tokens do not fit into a context of {self.max_seq_len}")

    def new_cache(self, batch_size: int, room: int | None = None) -> KeyValueCache:
        """Make an empty cache for `batch_size` texts of up to `room` tokens; None: of a whole context."""
        parameter = self.token_embedding.weight
        shape = (batch_size, self.n_kv_heads, room or self.max_seq_len, self.head_dim)
        return KeyValueCache(parameter, len(self.blocks), shape)

    def cached_logits(
        self,
        input_ids: Tensor,
        cache: KeyValueCache,
        rows: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits after each row's last token, with keys and values of earlier tokens from the cache.

        Args:
            input_ids: Int64. With `lengths`, or into an empty cache: (R, T), whole texts, the
                shorter ones padded at their end with any tokens. Otherwise (R, 1), the next
                token of each text.
            cache: Extended in place.
            rows: Which of the cache's rows these R are; None: all, in order.
            lengths: How many of the T are tokens, for each row; None: all of them.

        Returns:
            Logits, float (R, V).
        """
        rows = list(range(cache.batch_size)) if rows is None else list(rows)
        length = input_ids.shape[1]
        if lengths is None and not any(cache.lengths[row] for row in rows):
            lengths = [length] * len(rows)
        if lengths is not None:
            cache.begin_prefill(rows, lengths, length)
            last = torch.tensor(lengths, device=input_ids.device) - 1
            hidden = self._cached_hidden(input_ids, cache)
            hidden = hidden[torch.arange(len(rows), device=input_ids.device), last]
        else:
            assert length == 1, "texts in the cache grow by one token at a time"
            cache.begin_decode(rows)
            hidden = self._cached_hidden(input_ids, cache)[:, -1]
        cache.finish()
        return self._logits(hidden)

    def _cached_hidden(self, input_ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Final hidden states, (R, T, C), of new tokens, int64 (R, T), whose pass the cache has begun."""
        self._check_length(cache.longest)
        x, rotation = self._placed(self.token_embedding(input_ids), cache.new_positions())
        mask = cache.mask()
        for index, layer in enumerate(self.blocks):
            x = layer(x, mask, cache, index, rotation)
        return self.final_norm(x)

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        eos_token_id: int | None = None,
        *,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each row of `input_ids`.

        Once the context is full the model continues from the newest half of it, so text of any
        length can be written at a bounded cost per token.

        Args:
            input_ids: Prompts of one length, int64 (B, T) with T >= 1; any length.
            max_new_tokens: How many tokens to add at most.
            temperature: Divides the logits; 0 takes the likeliest token. `model.sampling` has more.
            top_k: Keep the k likeliest tokens; 0 keeps all.
            top_p: Keep this probability mass; 1 keeps all.
            eos_token_id: A row that draws this token has ended and is filled with padding; when
                all rows have ended, so does the call.
            use_cache: Keep keys and values of earlier tokens. False recomputes them, for tests.
            generator: Source of randomness; None uses torch's own.

        Returns:
            Prompt and continuation, int64 (B, T + new).

        Raises:
            ValueError: A setting is out of its range, or there is no token to start from.
        """
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p
        )
        return self.continue_rows(input_ids, settings, eos_token_id, use_cache=use_cache, generator=generator)

    def continue_rows(
        self,
        input_ids: Tensor,
        settings: GenerationConfig,
        eos_token_id: int | None = None,
        *,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`generate` with settings that have been checked."""
        decoder = Decoder(
            self, input_ids.tolist(), settings, eos_token_id, generator=generator, use_cache=use_cache
        )
        while decoder.rows:
            decoder.step()
        padding = self.pad_token_id if self.pad_token_id is not None else eos_token_id or 0
        longest = max(map(len, decoder.texts))
        return torch.tensor(
            [text + [padding] * (longest - len(text)) for text in decoder.texts], device=input_ids.device
        )


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Fixed position vectors, float32 (length, d_model), scaled to an embedding's initial size.

    Entry (p, 2i) is sin(p / 10000^(2i / d_model)), entry (p, 2i + 1) the cosine (Vaswani et al.
    2017, section 3.5).
    """
    # On the CPU whatever the default device: on the meta device this would load torch's compiler.
    positions = torch.arange(length, dtype=torch.float64, device="cpu")[:, None]
    pairs = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu")
    angles = positions * torch.exp(-math.log(10000.0) * pairs / d_model)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return (POSITION_SCALE * table).float()


def _shifted(labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Move labels so that row t holds what follows token t; the last row has nothing to predict."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    if attention_mask is None:
        return targets
    # Neither is padding a target, nor does the padding before a text predict its first token.
    counts = (attention_mask != 0) & (F.pad(attention_mask[:, 1:], (0, 1)) != 0)
    return targets.masked_fill(~counts, IGNORED_LABEL)


def _causal_mask(attention_mask: Tensor) -> Tensor:
    """Which key each query may see, bool (B, 1, T, T)."""
    length = attention_mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    mask = causal & attention_mask.bool()[:, None, :]
    # A padding query sees no token; let it see itself, for a softmax over nothing is NaN.
    mask |= torch.eye(length, dtype=torch.bool, device=attention_mask.device)
    return mask[:, None]


def build_model(config: ModelConfig) -> TransformerLM:
    """Make the model that a config's `model` section describes, with fresh weights."""
    return TransformerLM(**dict(config))
