"""The models that a plan chooses from, each with the settings of training that suit it."""

from __future__ import annotations

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.planning.corpus import Corpus
from horovod_transformer.planning.machine import Machine

# Layers, width, heads. Small ones are shallow: in the time there is a wide model learns more than a deep one
# (docs/log.md, 2026-11-29); from 124M on they are GPT-2's (Radford et al. 2019).
SHAPES = (
    (2, 96, 4),
    (2, 128, 4),
    (2, 192, 4),
    (2, 256, 4),
    (4, 256, 4),
    (4, 384, 6),
    (6, 512, 8),
    (12, 768, 12),
    (24, 1024, 16),
    (36, 1280, 20),
    (48, 1600, 25),
)
# What was tuned: Muon at a width of 256 (docs/log.md, 2026-11-29). The rates of other widths are a guess.
TUNED_RATE, TUNED_WIDTH = 1.1e-2, 256
# Decay where the books are read several times, and where they are not.
DECAY_OF_REPEATED, DECAY = 0.7, 0.1
# An update has about a two-thousandth of a run's tokens, within these bounds.
UPDATES_OF_A_RUN = 2_000
LEAST_BATCH, LARGEST_BATCH = 2_048, 524_288
# Tokens of a micro-batch: on a CPU what stays near its caches, on a GPU what fills it.
PASS_ON_CPU, PASS_ON_GPU = 1_024, 32_768
# Micro-batches of an update on as many cores, or processes with the same bits.
MOST_PASSES = 8


def context_of(corpus: Corpus) -> int:
    """Tokens of a block: as prepared, else more where there is more text. Only 256, for plays, was tried."""
    if corpus.block_size is not None:
        return corpus.block_size
    return 256 if corpus.tokens < 20_000_000 else 512 if corpus.tokens < 200_000_000 else 1024


def model_of(shape: tuple[int, int, int], corpus: Corpus) -> ModelConfig:
    """A model with rotary positions for these books."""
    layers, width, heads = shape
    return ModelConfig(
        vocab_size=corpus.vocab_size,
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        d_ff=4 * width,
        max_seq_len=context_of(corpus),
        positions="rotary",
    )


def training_of(model: ModelConfig, corpus: Corpus, tokens: int, machine: Machine) -> TrainingConfig:
    """How to train this model on so many tokens of these books.

    Args:
        model: Its width decides the rate.
        corpus: Tells how often the books are read.
        tokens: That the run reads.
        machine: Every process gets at least one block of an update, and every core, up to eight, a pass.
    """
    block = model.max_seq_len
    wanted = min(max(tokens // UPDATES_OF_A_RUN, LEAST_BATCH), LARGEST_BATCH)
    blocks = max(2 ** round_down_log2(wanted // block), machine.processes)
    updates = max(1, tokens // (blocks * block))
    epochs = -(-tokens // corpus.tokens)
    shares = max(machine.processes, min(machine.cores, MOST_PASSES))
    piece = max(1, min((PASS_ON_GPU if machine.on_gpu else PASS_ON_CPU) // block, blocks // shares))
    interval = max(1, updates // 20)
    return TrainingConfig(
        epochs=epochs,
        max_updates=updates,
        optimizer="muon",
        learning_rate=float(f"{TUNED_RATE * (TUNED_WIDTH / model.d_model) ** 0.5:.2g}"),
        weight_decay=DECAY_OF_REPEATED if epochs > 1 else DECAY,
        schedule="linear",
        min_learning_rate_ratio=0.0,
        global_batch_size=blocks,
        per_gpu_batch_size=piece,
        exact_up_to=min(MOST_PASSES, max(1, blocks // piece)),
        log_interval=max(1, updates // 200),
        eval_interval=interval,
        save_interval=interval,
    )


def round_down_log2(number: int) -> int:
    """The exponent of the largest power of two that is not above a number; 0 below 2."""
    return max(1, number).bit_length() - 1
