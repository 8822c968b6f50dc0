"""A whole evaluation: a model measured on books, how well it predicts them and how it writes beside them."""

from __future__ import annotations

import sys
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
from horovod_transformer.evaluation.baselines import (
    OtherModel,
    bits_of_frequencies,
    bits_of_guessing,
    score_with,
)
from horovod_transformer.evaluation.book_scores import (
    XZ_DICTIONARY,
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
from horovod_transformer.system.console import tell
from horovod_transformer.system.files import make_writable
from horovod_transformer.tokenizer import Tokenizer

# A prompt of this many tokens, or of a quarter of the context where that is less.
PROMPT_TOKENS = 32
# Training blocks in which copies are looked for: 100 million tokens of 512 each, 0.8 GB in memory.
COPY_BLOCKS = 200_000
# What `xz -9` takes of books, roughly; what would take longer than this is only done if it is asked for.
XZ_BYTES_PER_SECOND = 500_000
XZ_SECONDS_UNASKED = 600


@dataclass(frozen=True)
class EvaluationSettings:
    """What decides the result, beside the model and the books.

    Attributes:
        generation: How tokens are drawn, and how many at most.
        samples: Prompts to continue: none, or two at least.
        seed: Decides which prompts, and the draws.
        most_books: Score only this many of the books, evenly spread; None scores all.
        xz: Also compress the books, given the training text; None does so where it takes minutes at most.
    """

    generation: GenerationConfig
    samples: int = 20
    seed: int = 0
    most_books: int | None = None
    xz: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: everything that goes into the report.

    Attributes:
        model: Facts about the model and its checkpoint, by name.
        settings: What decided the result: sampling, seed, numbers of books and samples.
        books: How many books were scored.
        score: Their score.
        guessing: Bits per byte of a guess: each token has the same chance.
        frequencies: Bits per byte of a unigram model, which knows only how often each token comes.
        counted_in: Where that was counted: `training blocks`, or `the books themselves` without any.
        xz_bits_per_byte: What `xz -9` needs for them; None if it was left out.
        quality: From `measure_samples`; empty if there are no samples.
        samples: The samples.
        interval: Ends of the 95 % interval of the bits per byte over books, see `interval`.
        extremes: Bits per byte of the book predicted best and of the one predicted worst.
        copies: For each sample the longest run of tokens copied from the training text, and where
            in the sample it begins; None if there was no training text to look in.
        others: Checkpoints of other models, and their scores on the same books.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    books: int
    score: BookScore
    guessing: float
    frequencies: float
    counted_in: str
    xz_bits_per_byte: float | None
    quality: dict[str, dict[str, Value]]
    samples: Sequence[Sample]
    interval: tuple[float, float] | None = None
    extremes: tuple[float, float] | None = None
    copies: Sequence[tuple[int, int]] | None = None
    others: Sequence[tuple[str, BookScore]] = ()


def evaluate(
    checkpoint: str,
    model: TransformerLM,
    tokenizer: Tokenizer,
    books: Sequence[np.ndarray],
    source: str,
    data: PreparedData | None,
    settings: EvaluationSettings,
    folder: Path,
    others: Sequence[OtherModel] = (),
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
        others: Other models, which are scored on the same books.

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
            books, settings.samples, prompt_tokens, generation.max_new_tokens, settings.seed, tokenizer
        )
    if rank == 0:
        try:
            make_writable(folder)
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written to: {error.strerror}") from None

    device = model.token_embedding.weight.device
    # A score is the same on every CPU, whether or not it has units for bf16.
    precision = common_precision("fp32" if device.type == "cpu" else "auto", device).name
    mine = books[rank::world_size]
    shares = gather_objects(
        [
            score_each(model, mine, tokenizer, precision, progress=rank == 0),
            *(score_with(other, mine, tokenizer, precision) for other in others),
        ],
        "scores",
        known=(BookScore,),
    )
    if rank > 0:
        return None
    of_models = [
        [shares[place % world_size][which][place // world_size] for place in range(len(books))]
        for which in range(1 + len(others))
    ]
    scores = of_models[0]
    score = add_up(scores)
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
    training = None if data is None else data.train
    xz = None
    if data is not None and _is_worth_compressing(settings.xz, data, score):
        xz = xz_given_training_text(data.train, books, tokenizer)
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
        score=score,
        guessing=bits_of_guessing(score, tokenizer.vocab_size),
        frequencies=bits_of_frequencies(books, tokenizer, score, training),
        counted_in="the books themselves" if training is None else "training blocks",
        xz_bits_per_byte=xz,
        quality=quality,
        samples=written,
        interval=interval(scores),
        extremes=lowest_and_highest(scores),
        copies=copies,
        others=[
            (other.checkpoint, add_up(found)) for other, found in zip(others, of_models[1:], strict=True)
        ],
    )


def _is_worth_compressing(asked: bool | None, data: PreparedData, score: BookScore) -> bool:
    """Whether to compress the books; how long that will take is said beforehand."""
    if asked is False:
        return False
    known = data.manifest.get("splits", {}).get("train", {}).get("bytes")
    # The training text is compressed alone and with the books after it, on two cores at once.
    size = min(XZ_DICTIONARY, XZ_DICTIONARY if known is None else known) + score.bytes
    seconds = size / XZ_BYTES_PER_SECOND
    about = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
    if asked is None and seconds > XZ_SECONDS_UNASKED:
        tell(f"without xz -9, which would take some {about} here: --xz", sys.stderr)
        return False
    if seconds >= 5:
        tell(
            f"compressing the books with xz -9, given the training books: some {about} (--no-xz: without)",
            sys.stderr,
        )
    return True


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
