"""Books in, blocks out: the whole preparation.

    manifest = prepare(load_config("configs/quickstart.yaml"))

Needs, whatever the size of the corpus: 0.3 GB of memory, and the longest book about eight times
over or, of parquet files, the largest row group three times over. On disk 2 bytes per token (4 with
more than 65,536 entries in the vocabulary), and twice that while it runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from horovod_transformer.config import Config
from horovod_transformer.data.manifest import (
    FORMAT_VERSION,
    SPLITS,
    find_prepared,
    first_difference,
    settings_of,
    write_manifest,
)
from horovod_transformer.data.output_folder import clear_leftovers, new_folder
from horovod_transformer.data.packing import PackedSplit, save_splits, token_dtype
from horovod_transformer.data.selection import Survey, choose_validation, kept_books, survey_books
from horovod_transformer.data.sources import Book, Books, open_books
from horovod_transformer.errors import UserError
from horovod_transformer.progress_bar import ProgressBar
from horovod_transformer.tokenizer import (
    GPT2_VOCAB_SIZE,
    SMALLEST_VOCAB_SIZE,
    Tokenizer,
    gpt2_tokenizer,
    train_bpe,
)

# Characters encoded at a time: enough to keep all threads busy, little enough to forget.
_BATCH_CHARACTERS = 8 << 20
_TITLES_LISTED = 10_000


def prepare(config: Config, force: bool = False, progress: bool = True) -> dict[str, Any]:
    """Turn the books of `data.source` into blocks of tokens in `data.data_dir`.

    `data.data_dir` gets a Hugging Face `DatasetDict` (splits `train` and `validation`, column
    `input_ids` of `model.max_seq_len` ids) and `manifest.json`. It appears when it is complete and
    not before. Prepared data with the same settings and source files is left as it is.

    Args:
        config: Sections `data` and `model` are used.
        force: Replace prepared data that was made with other settings, or make it anew.
        progress: Whether to print what is done, with a bar on a terminal.

    Returns:
        The manifest. `splits.train` and `splits.validation` hold counts of books, characters, UTF-8
        bytes, tokens (one end-of-text per book included), blocks, and `padding`: end-of-text tokens
        that fill the last block.

    Raises:
        UserError: Books cannot be read, settings do not fit, the place is taken or the disk full.
    """
    started = time.monotonic()
    say = _print if progress else _silence
    data_dir = Path(config.data.data_dir).expanduser()
    _check_vocabulary(config)
    books = open_books(config.data.source)
    clear_leftovers(data_dir, say)
    existing = find_prepared(data_dir)
    if existing and not force:
        difference = first_difference(existing, config, books, data_dir)
        if difference:
            raise UserError(
                f"{data_dir}: was prepared differently: {difference}; use --force to replace it, or another "
                "--data.data_dir"
            )
        say(f"{data_dir}: already prepared with these settings")
        return existing

    with new_folder(data_dir, replace=existing is not None) as folder:
        manifest = _fill(folder, config, books, progress)
        manifest["seconds"] = round(time.monotonic() - started, 1)
        write_manifest(folder, manifest)
    say(summary(manifest, data_dir))
    return manifest


def summary(manifest: dict[str, Any], data_dir: Path) -> str:
    """Say in a few lines what was prepared."""
    tokens = sum(manifest["splits"][name]["tokens"] for name in SPLITS)
    speed = tokens / max(manifest["seconds"], 0.1)
    lines = [
        f"prepared {data_dir}: {tokens:,} tokens in {manifest['seconds']:.1f} s ({speed:,.0f} per second)"
    ]
    for name in SPLITS:
        split = manifest["splits"][name]
        lines.append(
            f"  {name:<10} {split['books']:,} books, {split['tokens']:,} tokens, {split['blocks']:,} blocks "
            f"of {manifest['block_size']}, {split['bytes'] / split['tokens']:.2f} bytes per token"
        )
    dropped = manifest["dropped"]
    if any(dropped["counts"].values()):
        counts = ", ".join(
            f"{n:,} {reason.replace('_', ' ')}" for reason, n in dropped["counts"].items() if n
        )
        lines.append(f"  dropped    {counts} (names in manifest.json)")
    lines += [f"  note       {note}" for note in manifest["notes"]]
    return "\n".join(lines)


def _check_vocabulary(config: Config) -> None:
    size = config.model.vocab_size
    if config.data.tokenizer == "gpt2" and size < GPT2_VOCAB_SIZE:
        raise UserError(
            f"model.vocab_size = {size}: the GPT-2 tokenizer has {GPT2_VOCAB_SIZE} entries; set it to "
            "that or more, or data.tokenizer to bpe"
        )
    if config.data.tokenizer == "bpe" and size < SMALLEST_VOCAB_SIZE:
        raise UserError(
            f"model.vocab_size = {size}: a byte-level vocabulary has at least {SMALLEST_VOCAB_SIZE} entries "
            "(256 bytes and end-of-text); set it to that or more"
        )


def _fill(folder: Path, config: Config, books: Books, progress: bool) -> dict[str, Any]:
    """Write both splits into an empty folder and return all of the manifest but the time it took."""
    fraction = config.data.validation_fraction
    bar = ProgressBar("reading", books.count, unit="book") if progress and books.count else None
    try:
        survey = survey_books(books, config.data.min_book_characters, bar)
    finally:
        if bar:
            bar.close()
    validation = choose_validation(survey, fraction, config.data.split_seed)
    _warn_if_disk_is_small(folder, survey, config, progress)

    if config.data.tokenizer == "gpt2":
        tokenizer = gpt2_tokenizer()
    else:
        if progress:
            _print(f"training a byte-level BPE of {config.model.vocab_size:,} entries on the training books")
        training = (
            book.text for split, book in kept_books(books, survey, validation, fraction) if split == "train"
        )
        tokenizer = train_bpe(training, config.model.vocab_size)

    flat = folder / "flat"
    flat.mkdir()
    splits, counts, titles = _pack(flat, config, books, survey, validation, tokenizer, progress)
    block_size = config.model.max_seq_len
    digests = ":".join([str(block_size), *(splits[name].sha256 for name in SPLITS)])
    fingerprint = hashlib.sha256(digests.encode()).hexdigest()
    save_splits(splits, folder, fingerprint)
    shutil.rmtree(flat)
    notes = []
    if not validation:
        notes.append("there is only one book: its end is the validation split")
    return {
        "format_version": FORMAT_VERSION,
        "package_version": _package_version(),
        "source": {"given": config.data.source, "files": books.files},
        "settings": settings_of(config),
        "tokenizer": tokenizer.to_dict(),
        "block_size": block_size,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "splits": {
            name: {
                "books": split.books,
                **counts[name],
                "tokens": split.tokens,
                "blocks": split.blocks,
                "padding": split.padding,
                "sha256": split.sha256,
            }
            for name, split in splits.items()
        },
        "words": survey.words,
        "dropped": {"counts": survey.dropped, "first_titles": survey.dropped_names},
        "validation_books": titles,
        "notes": notes,
        "fingerprint": fingerprint,
    }


def _pack(
    flat: Path,
    config: Config,
    books: Books,
    survey: Survey,
    validation: set[int],
    tokenizer: Tokenizer,
    progress: bool,
) -> tuple[dict[str, PackedSplit], dict[str, dict[str, int]], list[str]]:
    """Encode all kept books; return the packed splits, their counts and the validation titles."""
    counts = {name: {"characters": 0, "bytes": 0} for name in SPLITS}
    titles: list[str] = []
    # A single book has two parts.
    total = max(2, len(survey.digests))
    bar = ProgressBar("tokenizing", total, unit="book") if progress else None
    began, done, tokens = time.monotonic(), 0, 0
    with ExitStack() as stack:
        splits = {
            name: stack.enter_context(
                PackedSplit(
                    flat / name, config.model.max_seq_len, tokenizer.vocab_size, tokenizer.eos_token_id
                )
            )
            for name in SPLITS
        }
        if bar:
            stack.callback(bar.close)
        kept = kept_books(books, survey, validation, config.data.validation_fraction)
        for batch in _batches(kept):
            encoded = tokenizer.encode_books([book.text for _, book in batch])
            for (name, book), ids in zip(batch, encoded, strict=True):
                splits[name].add_book(ids)
                counts[name]["characters"] += len(book.text)
                counts[name]["bytes"] += len(book.text.encode())
                tokens += len(ids) + 1
                if name == "validation" and len(titles) < _TITLES_LISTED:
                    titles.append(book.title)
            done += len(batch)
            if bar:
                bar.advance(done, speed=f"{tokens / (time.monotonic() - began):,.0f} tokens/s")
    return splits, counts, titles


def _batches(books: Iterator[tuple[str, Book]]) -> Iterator[list[tuple[str, Book]]]:
    batch: list[tuple[str, Book]] = []
    characters = 0
    for split, book in books:
        batch.append((split, book))
        characters += len(book.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _warn_if_disk_is_small(folder: Path, survey: Survey, config: Config, progress: bool) -> None:
    # English has about 4 bytes per token, small vocabularies make more tokens of it.
    likely = survey.bytes / 3.5 * 2 * token_dtype(config.model.vocab_size).itemsize
    free = shutil.disk_usage(folder).free
    if progress and likely > free:
        _print(f"note: this may need {likely / 1e9:.1f} GB for a while, {free / 1e9:.1f} GB are free")


def _package_version() -> str:
    try:
        return importlib.metadata.version("horovod_transformer")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _print(text: str) -> None:
    print(text, flush=True)


def _silence(text: str) -> None:
    pass
