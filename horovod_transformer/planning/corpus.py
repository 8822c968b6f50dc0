"""How much text there is to train on: counted in prepared data, or estimated from a sample of the books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from horovod_transformer.books.ranges import FileRange, read_range
from horovod_transformer.books.readers import ReadOptions, Unreadable
from horovod_transformer.books.sources import open_books
from horovod_transformer.config_sections import DataConfig
from horovod_transformer.data.manifest import read_manifest
from horovod_transformer.errors import UserError
from horovod_transformer.tokenizer import SMALLEST_VOCAB_SIZE, Tokenizer, gpt2_tokenizer, train_bpe

# What is read of a source, about, in so many places.
SAMPLE_CHARACTERS = 4_000_000
FEWEST_PLACES, MOST_PLACES = 64, 4_000
# What text that is not UTF-8 is taken for: of western books most are.
OTHER_ENCODING = "cp1252"
# Above this much text GPT-2's vocabulary is taken: its rows are seen often enough to be learned.
BYTES_FOR_GPT2 = 200_000_000
# A vocabulary of the books' own has an entry for each so many bytes of text, within these bounds.
BYTES_PER_ENTRY, SMALLEST, LARGEST = 1_000, 512, 16_384


@dataclass(frozen=True)
class Corpus:
    """Books as a plan sees them.

    Attributes:
        source: `data.source`, or the folder of prepared data.
        books: Number of them; None if only reading all of them would tell.
        text_bytes: UTF-8 bytes of text of the training split.
        tokens: Of the training split.
        vocab_size: Ids of the tokenizer.
        tokenizer: As `data.tokenizer`.
        encoding: As `data.encoding`: what some books are taken for; None: all in the sample are UTF-8.
        block_size: Tokens of a block if they are prepared, else None: a plan may choose.
        counted: Whether these figures were counted, rather than estimated from a sample.
    """

    source: str
    books: int | None
    text_bytes: int
    tokens: int
    vocab_size: int
    tokenizer: str
    block_size: int | None
    counted: bool
    encoding: str | None = None


def prepared_corpus(data_dir: str | Path) -> Corpus:
    """Read the figures of prepared data.

    Raises:
        UserError: There is none, or it has no manifest that `prepare` has written.
    """
    manifest = read_manifest(Path(data_dir))
    try:
        train: dict[str, Any] = manifest["splits"]["train"]
        tokenizer = manifest["tokenizer"]
        return Corpus(
            source=str(data_dir),
            books=train["books"],
            text_bytes=train["bytes"],
            tokens=train["tokens"],
            vocab_size=manifest["settings"]["model.vocab_size"],
            tokenizer="gpt2" if tokenizer["kind"] == "gpt2" else "bpe",
            block_size=manifest["block_size"],
            counted=True,
        )
    except (KeyError, TypeError):
        raise UserError(
            f"{data_dir}: no prepared data with a manifest here; run `prepare` first, or name books with "
            "--data.source"
        ) from None


def estimate_corpus(data: DataConfig) -> Corpus:
    """Estimate how many tokens `prepare` would make of `data.source`, from some 4 MB of its text.

    Which tokenizer fits is decided here, by the amount of text: a vocabulary of the books' own, or GPT-2's.

    Raises:
        UserError: There are no books there, or none that can be read.
    """
    books = open_books(data.source, replace(ReadOptions.of(data), skip_bad=True))
    options = books.options
    texts, bad = _sample(books.ranges, options)
    if options.encoding is None and any("UTF-8" in book.reason for book in bad):
        options = replace(options, encoding=OTHER_ENCODING)
        texts, bad = _sample(books.ranges, options)
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise UserError(f"data.source = {data.source}: a sample of it has no text that can be read")
    whole = sum(each.text_bytes for each in books.ranges)
    name, tokenizer = _tokenizer_for(whole, texts)
    tokens = sum(len(ids) for ids in tokenizer.encode_books(texts))
    share = 1 - data.validation_fraction - data.test_fraction
    source = data.source if isinstance(data.source, str) else ", ".join(data.source)
    return Corpus(
        source=source,
        books=books.count,
        text_bytes=round(whole * share),
        tokens=max(1, round(whole * share * tokens / size)),
        vocab_size=tokenizer.vocab_size,
        tokenizer=name,
        block_size=None,
        counted=False,
        encoding=options.encoding,
    )


def _sample(ranges: Sequence[FileRange], options: ReadOptions) -> tuple[list[str], list[Unreadable]]:
    """The beginnings of ranges that lie evenly over the source, and what of it cannot be read."""
    whole = sum(each.text_bytes for each in ranges)
    places = len(ranges) * SAMPLE_CHARACTERS // max(whole, 1)
    places = min(max(places, FEWEST_PLACES), MOST_PLACES)
    chosen = ranges[:: max(1, len(ranges) // places)]
    texts, bad = [], []
    for place in chosen:
        left = SAMPLE_CHARACTERS // len(chosen)
        for book in read_range(place, options):
            if isinstance(book, Unreadable):
                bad.append(book)
                continue
            texts.append(book.text[:left])
            left -= len(texts[-1])
            if left <= 0:
                break
    return texts, bad


def _tokenizer_for(text_bytes: int, texts: Sequence[str]) -> tuple[str, Tokenizer]:
    if text_bytes >= BYTES_FOR_GPT2:
        return "gpt2", gpt2_tokenizer()
    size = min(max(2 ** (text_bytes // BYTES_PER_ENTRY).bit_length() // 2, SMALLEST), LARGEST)
    # `prepare` makes it of the training books alone: let it be one that four fifths of the text can fill.
    part = [text[: len(text) * 4 // 5] for text in texts]
    while size > SMALLEST_VOCAB_SIZE:
        try:
            return "bpe", train_bpe(part, size)
        except UserError:  # the text has too few pairs that come twice
            size = max(size // 2, SMALLEST_VOCAB_SIZE)
    return "bpe", train_bpe(part, size)
