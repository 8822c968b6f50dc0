"""The size of a model by arithmetic, without torch: parameters, operations, the disk of checkpoints."""

from __future__ import annotations

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.errors import UserError
from horovod_transformer.system.machine import memory_bytes


def count_parameters(model: ModelConfig) -> int:
    """Number of parameters of the model, by arithmetic: even a model too large to build has one."""
    width = model.d_model
    if model.architecture == "llama":
        qkv = (model.n_heads + 2 * model.kv_heads) * model.head_width
        attention = width * (qkv + model.n_heads * model.head_width)
        norms = 2 * width + (2 * model.head_width if model.qk_norm else 0)
        embeddings = (1 if model.tie_embeddings else 2) * model.vocab_size * width
        return embeddings + model.n_layers * (attention + 3 * width * model.d_ff + norms) + width
    attention = 4 * width * width + 4 * width
    feed_forward = 2 * width * model.d_ff + model.d_ff + width
    positions = model.max_seq_len * width if model.positions == "learned" else 0
    layers = model.n_layers * (attention + feed_forward + 4 * width)
    return model.vocab_size * width + positions + layers + 2 * width


def require_memory(model: ModelConfig) -> None:
    """Refuse a model that this machine cannot hold: to find out by building it takes minutes, or for ever.

    Raises:
        UserError: Its weights are larger than the memory.
    """
    parameters, has = count_parameters(model), memory_bytes()
    needs = 4 * (parameters + model.max_seq_len * model.d_model)  # positions, learned or not
    if needs > has:
        raise UserError(
            f"a model of {parameters:,} parameters takes {needs / 1e9:,.0f} GB, this machine has "
            f"{has / 1e9:,.0f} GB of memory; make it smaller (model.n_layers, d_model, d_ff, vocab_size), or "
            f"its context of {model.max_seq_len:,} tokens (max_seq_len)"
        )


def flops_per_token(model: ModelConfig, parameters: int, block_size: int) -> float:
    """Floating-point operations of a forward and backward pass, per token.

    6 per parameter, and 12 x layers x width of all heads x length for attention's two products (Chowdhery et
    al. 2022, arXiv:2204.02311, appendix B). The tied embedding counts once, as the output
    projection that it is; an embedding apart from that is looked up, which takes none.

    Args:
        model: Shape.
        parameters: Number of them.
        block_size: Tokens that attend to each other: a prepared block may be shorter than the context.
    """
    if not model.tie_embeddings:
        parameters -= model.vocab_size * model.d_model
    return 6.0 * parameters + 12.0 * model.n_layers * model.n_heads * model.head_width * block_size


def _kept_numbers(model: ModelConfig) -> int:
    """Numbers that a layer keeps of each token for the backward pass, if attention keeps no scores.

    34 bytes in half precision for each number of GPT-2's width (Korthikanti et al. 2022, arXiv:2205.05198,
    section 4.1); for Llama the same count with its widths, which nothing was measured for.
    """
    if model.architecture == "gpt2":
        return 17 * model.d_model
    heads = 2 * model.n_heads + 2 * model.kv_heads
    return 5 * model.d_model + heads * model.head_width + 3 * model.d_ff


def flops_per_update(model: ModelConfig, training: TrainingConfig, ranks: int) -> float:
    """Floating-point operations of an update, all ranks together, as far as the config tells.

    Args:
        model: Shape; blocks of tokens are taken to be as long as the context.
        training: How many blocks an update has.
        ranks: Number of processes.
    """
    steps = training.gradient_accumulation_steps or 1
    blocks = training.global_batch_size or training.per_gpu_batch_size * steps * ranks
    length = model.max_seq_len
    return blocks * length * flops_per_token(model, count_parameters(model), length)


def pass_bytes(model: ModelConfig, tokens: int) -> int:
    """Memory that a forward and backward pass takes on a CPU beside the weights, roughly.

    A layer keeps its numbers in float32. The gradients of all parameters come at the end, those of a chunk of
    logits with them.

    Args:
        model: Shape.
        tokens: In the pass.
    """
    kept = 4 * _kept_numbers(model) * tokens
    layers = kept + 4 * model.d_model * tokens * model.n_layers
    if not model.gradient_checkpointing:
        layers = kept * model.n_layers
    return layers + 4 * count_parameters(model) + 3 * 4 * 512 * model.vocab_size


def gpu_bytes(model: ModelConfig, tokens: int, accumulates: bool, memory: int) -> int:
    """Memory that training takes on a GPU in bf16 or fp16, compiled, roughly.

    Weights, gradients and two moments in float32, and a second copy of the gradients where several
    micro-batches add up. A layer keeps 36 bytes for each token and each number of its width: 34 by
    Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), and what fits the measurements of docs/gpu.md
    within 2 % at 16,384 to 65,536 tokens. Checkpointed, it keeps its input, in float32, and one layer at a
    time is whole; that is 12 % above the one measurement. Horovod's buffers are left out.

    Args:
        model: Shape.
        tokens: In a micro-batch.
        accumulates: An update has several micro-batches.
        memory: Of the GPU, in bytes: it decides how many logits are held at once (`chunk_size.py`).
    """
    parameters = count_parameters(model)
    kept = 2 * (_kept_numbers(model) + model.d_model) * tokens
    layers = kept + 4 * model.d_model * tokens * model.n_layers
    if not model.gradient_checkpointing:
        layers = kept * model.n_layers
    logits = min(4 * 8192 * model.vocab_size, memory // 48)
    return (5 if accumulates else 4) * 4 * parameters + layers + logits


def checkpoint_bytes(model: ModelConfig) -> int:
    """Size of one checkpoint: weights and the optimizer's moments, all float32.

    AdamW keeps two moments of every parameter (Loshchilov & Hutter 2019, arXiv:1711.05101). Muon
    keeps one of the blocks' matrices; it is counted like AdamW, as the most it can be.
    """
    return 3 * 4 * count_parameters(model)


def run_bytes(model: ModelConfig, keep: int) -> int:
    """Bytes that a run's checkpoints take at most, those of `training.keep_every` left out.

    Args:
        model: Shape.
        keep: How many periodic ones stay, `training.keep_checkpoints`.
    """
    # The newest is written before the oldest goes; the best is apart.
    return checkpoint_bytes(model) * (keep + 2)
