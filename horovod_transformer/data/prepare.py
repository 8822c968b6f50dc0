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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from horovod_transformer.config import Config
from horovod_transformer.data.manifest import (
    FORMAT_VERSION,
    SPLITS,
    find_damage,
    find_prepared,
    first_difference,
    settings_of,
    write_manifest,
)
from horovod_transformer.data.output_folder import clear_leftovers, lock_for, new_folder
from horovod_transformer.data.packing import PackedSplit, save_splits, token_dtype
from horovod_transformer.data.readers import ReadOptions
from horovod_transformer.data.selection import (
    Survey,
    choose_tokenizer_sample,
    choose_validation,
    kept_books,
    survey_books,
)
from horovod_transformer.data.sources import Book, Books, open_books
from horovod_transformer.data.tokenizer_choice import chosen_tokenizer
from horovod_transformer.errors import UserError
from horovod_transformer.paths import user_path
from horovod_transformer.progress_bar import ProgressBar
from horovod_transformer.tokenizer import Tokenizer, train_bpe

# Characters encoded at a time: enough to keep all threads busy, little enough to forget.
_BATCH_CHARACTERS = 8 << 20
_TITLES_LISTED = 10_000
_BAD_LISTED = 1000


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
    data_dir = user_path(config.data.data_dir, "data.data_dir")
    tokenizer = chosen_tokenizer(config)
    books = open_books(config.data.source, ReadOptions.from_config(config))
    existing = _usable(data_dir, config, tokenizer, books, force)
    if existing:
        say(f"{data_dir}: already prepared with these settings")
        return existing
    _say_what_is_read(books, say)
    with lock_for(data_dir, say) as lock:
        clear_leftovers(data_dir, say)
        # Another process may have been at work until now, or a killed one's data has come back.
        existing = _usable(data_dir, config, tokenizer, books, force)
        if existing:
            say(f"{data_dir}: was prepared meanwhile")
            return existing
        with new_folder(data_dir, find_prepared(data_dir) is not None, lock.require) as folder:
            manifest = _fill(folder, config, tokenizer, books, progress)
            manifest["seconds"] = round(time.monotonic() - started, 1)
            write_manifest(folder, manifest)
    say(summary(manifest, data_dir))
    return manifest


def _usable(
    data_dir: Path, config: Config, tokenizer: Tokenizer | None, books: Books, force: bool
) -> dict[str, Any] | None:
    """Return the manifest of prepared data that is what is wanted; None if it is to be made.

    Raises:
        UserError: Something else is there, and it was not said that it may go.
    """
    existing = find_prepared(data_dir)
    if existing is None or force:
        return None
    difference = first_difference(existing, settings_of(config, tokenizer), books)
    if difference:
        raise UserError(
            f"{data_dir}: was prepared differently: {difference}; use --force to replace it, or another "
            "--data.data_dir"
        )
    damage = find_damage(existing, data_dir)
    if damage:
        raise UserError(f"{data_dir}: {damage}; use --force to prepare it again")
    return existing


def _say_what_is_read(books: Books, say: Callable[[str], None]) -> None:
    taken = ", ".join(f"{count:,} {kind}" for kind, count in sorted(books.taken.items()))
    if taken:
        say(f"reading {taken}")
    if books.passed_over:
        left = ", ".join(f"{count:,} {kind}" for kind, count in sorted(books.passed_over.items()))
        say(f"passed over: {left}")


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
    for key, what in (("unreadable", "skipped"), ("reencoded", "re-encoded")):
        if manifest[key]["count"]:
            lines.append(f"  {what:<10} {manifest[key]['count']:,} {key} (listed in manifest.json)")
    lines += [f"  note       {note}" for note in manifest["notes"]]
    return "\n".join(lines)


def _fill(
    folder: Path, config: Config, tokenizer: Tokenizer | None, books: Books, progress: bool
) -> dict[str, Any]:
    """Write both splits into an empty folder and return all of the manifest but the time it took."""
    fraction = config.data.validation_fraction
    bar = ProgressBar("reading", books.count, unit="book") if progress and books.count else None
    try:
        skip_bad = config.data.on_bad_book == "skip"
        survey = survey_books(books, config.data.min_book_characters, bar, skip_bad)
    finally:
        if bar:
            bar.close()
    validation = choose_validation(survey, fraction, config.data.split_seed)
    _warn_if_disk_is_small(folder, survey, config, progress)

    settings = settings_of(config, tokenizer)
    if tokenizer is None:
        sample = choose_tokenizer_sample(
            survey, validation, config.data.tokenizer_characters, config.data.split_seed
        )
        if progress:
            _print(
                f"training a byte-level BPE of {config.model.vocab_size:,} entries on {len(sample):,} of the "
                "training books"
            )
        training = (
            book.text
            for split, book in kept_books(books, survey, validation, fraction, sample)
            if split == "train"
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
        "source": {
            "given": config.data.source,
            "files": books.files,
            "taken": dict(books.taken),
            "passed_over": dict(books.passed_over),
        },
        "settings": settings,
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
        "unreadable": {
            "count": len(survey.unreadable),
            "first": [str(bad) for bad in survey.unreadable[:_BAD_LISTED]],
        },
        "reencoded": {"count": len(survey.reencoded), "first": survey.reencoded[:_BAD_LISTED]},
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
