"""A whole evaluation: a model measured on books, how well it predicts them and how it writes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.data.dataset import PreparedData
from horovod_transformer.distributed import common_precision, gather_objects, get_rank, get_world_size
from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.book_scores import (
    BookScore,
    add_up,
    interval,
    lowest_and_highest,
    score_each,
    xz_given_training_text,
)
from horovod_transformer.evaluation.copied_text import longest_copies, overlapping_chunks
from horovod_transformer.evaluation.text_quality import (
    Sample,
    Value,
    draw_passages,
    measure_samples,
    write_samples,
)
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.system.files import make_writable
from horovod_transformer.tokenizer import Tokenizer

# A prompt of this many tokens, or of a quarter of the context where that is less.
PROMPT_TOKENS = 32
# Training blocks in which copies are looked for: 100 million tokens of 512 each, 0.8 GB in memory.
COPY_BLOCKS = 200_000


@dataclass(frozen=True)
class EvaluationSettings:
    """What decides the result, beside the model and the books.

    Attributes:
        generation: How tokens are drawn, and how many at most.
        samples: Prompts to continue: none, or two at least.
        seed: Decides which prompts, and the draws.
        most_books: Score only this many of the books, evenly spread; None scores all.
        xz: Also compress the books, given the training text.
    """

    generation: GenerationConfig
    samples: int = 20
    seed: int = 0
    most_books: int | None = None
    xz: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: everything that goes into the report.

    Attributes:
        model: Facts about the model and its checkpoint, by name.
        settings: What decided the result: sampling, seed, numbers of books and samples.
        books: How many books were scored.
        score: Their score.
        xz_bits_per_byte: What `xz -9` needs for them, if that was asked for.
        quality: From `measure_samples`; empty if there are no samples.
        samples: The samples.
        interval: Ends of the 95 % interval of the bits per byte over books, see `interval`.
        extremes: Bits per byte of the book predicted best and of the one predicted worst.
        copies: For each sample the longest run of tokens copied from the training text, and where
            in the sample it begins; None if there was no training text to look in.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    books: int
    score: BookScore
    xz_bits_per_byte: float | None
    quality: dict[str, dict[str, Value]]
    samples: Sequence[Sample]
    interval: tuple[float, float] | None = None
    extremes: tuple[float, float] | None = None
    copies: Sequence[tuple[int, int]] | None = None


def evaluate(
    checkpoint: str,
    model: TransformerLM,
    tokenizer: Tokenizer,
    books: Sequence[np.ndarray],
    source: str,
    data: PreparedData | None,
    settings: EvaluationSettings,
    folder: Path,
) -> Evaluation | None:
    """Measure a model on books; *collective*: each rank scores its share of them, rank 0 does the rest.

    Args:
        checkpoint: The file the model comes from.
        model: From `load_model_for_generation`.
        tokenizer: The one the model was trained with.
        books: Token ids of each book, without end-of-text.
        source: Where the books come from, for the report.
        data: Prepared data, if there are any: copies are looked for in their training text, which `xz`
            needs, too.
        settings: What decides the result.
        folder: Where the report will go; that it can be written to is seen to before anything is scored.

    Returns:
        What was found; None on ranks other than 0.

    Raises:
        UserError: The books have too few places for a prompt, or the folder cannot be written to.
    """
    rank, world_size = get_rank(), get_world_size()
    limit, generation = settings.most_books, settings.generation
    if limit is not None and limit < len(books):
        books = [books[place * len(books) // limit] for place in range(limit)]
    prompt_tokens = max(1, min(PROMPT_TOKENS, model.max_seq_len // 4))
    passages = []
    if settings.samples:
        passages = draw_passages(
            books, settings.samples, prompt_tokens, generation.max_new_tokens, settings.seed
        )
    if rank == 0:
        try:
            make_writable(folder)
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written to: {error.strerror}") from None

    device = model.token_embedding.weight.device
    # A score is the same on every CPU, whether or not it has units for bf16.
    precision = common_precision("fp32" if device.type == "cpu" else "auto", device).name
    mine = score_each(model, books[rank::world_size], tokenizer, precision, progress=rank == 0)
    shares = gather_objects(mine, "scores", known=(BookScore,))
    if rank > 0:
        return None
    scores = [shares[place % world_size][place // world_size] for place in range(len(books))]
    facts = _facts(checkpoint, model)
    written: Sequence[Sample] = []
    quality: dict[str, dict[str, Value]] = {}
    copies = None
    if passages:
        written = write_samples(model, tokenizer, passages, generation, settings.seed, progress=True)
        quality = measure_samples(model, tokenizer, books, written)
    if written and data is not None and _may_be_trained_on(data, facts["data"]):
        longest = max(len(sample.model) for sample in written)
        blocks = data.train.rows(range(min(len(data.train), COPY_BLOCKS)))
        copies = longest_copies([s.model for s in written], overlapping_chunks(blocks, longest))
    xz = xz_given_training_text(data.train, books, tokenizer) if settings.xz and data is not None else None
    return Evaluation(
        model=facts,
        settings={
            "data": source,
            "samples": settings.samples,
            "prompt_tokens": prompt_tokens,
            "max_new_tokens": generation.max_new_tokens,
            "temperature": generation.temperature,
            "top_k": generation.top_k,
            "top_p": generation.top_p,
            "seed": settings.seed,
        },
        books=len(books),
        score=add_up(scores),
        xz_bits_per_byte=xz,
        quality=quality,
        samples=written,
        interval=interval(scores),
        extremes=lowest_and_highest(scores),
        copies=copies,
    )


def _may_be_trained_on(data: PreparedData, trained_on: str | None) -> bool:
    """Whether these are the data of the checkpoint's training, as far as both say what they are."""
    fingerprint = data.manifest.get("fingerprint")
    return fingerprint is None or trained_on is None or fingerprint == trained_on


def _facts(checkpoint: str, model: TransformerLM) -> dict[str, Any]:
    # The checkpoint has proved itself before; mapped, its tensors are not read a second time.
    progress = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["progress"]
    known = progress if isinstance(progress, dict) else {}
    updates, run, identity = known.get("update"), known.get("run_name"), known.get("identity")
    return {
        "checkpoint": checkpoint,
        "run": run if isinstance(run, str) else None,
        "data": identity.get("data") if isinstance(identity, dict) else None,
        "updates": updates if isinstance(updates, int) else "an unknown number of",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "context": model.max_seq_len,
    }
