"""Books in, blocks out: the whole preparation.

    manifest = prepare(load_config("configs/quickstart.yaml"))

Books are cut into units of work (`units`), processes tokenize these (`workers`), and what they leave is put
together (`assembly`). A unit that is finished is not made again, however a run ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from horovod_transformer.config import Config
from horovod_transformer.cores import usable_cores
from horovod_transformer.data.assembly import assemble, select_books, train_tokenizer
from horovod_transformer.data.manifest import (
    FORMAT_VERSION,
    find_damage,
    find_prepared,
    first_difference,
    settings_of,
    splits_of,
    write_manifest,
)
from horovod_transformer.data.output_folder import clear_leftovers, lock_for, new_folder
from horovod_transformer.data.packing import token_dtype
from horovod_transformer.data.readers import ReadOptions
from horovod_transformer.data.sources import open_books
from horovod_transformer.data.tokenizer_choice import chosen_tokenizer
from horovod_transformer.data.units import Unit, make_units
from horovod_transformer.data.workers import Job, make_units_on
from horovod_transformer.errors import UserError
from horovod_transformer.files import write_text
from horovod_transformer.folder_lock import FolderLock
from horovod_transformer.paths import user_path
from horovod_transformer.progress_bar import ProgressBar
from horovod_transformer.tokenizer import Tokenizer, tokenizer_from_dict


def prepare(
    config: Config,
    force: bool = False,
    progress: bool = True,
    workers: int | None = None,
    executor: Executor | None = None,
    unit_bytes: int | None = None,
) -> dict[str, Any]:
    """Turn the books of `data.source` into blocks of tokens in `data.data_dir`.

    `data.data_dir` gets a Hugging Face `DatasetDict` (splits `train` and `validation`, column
    `input_ids` of `model.max_seq_len` ids) and `manifest.json`. It appears when it is complete and
    not before. Prepared data with the same settings and source files is left as it is. What a run that was
    stopped has finished lies beside it, in a folder of the same name with `.units`, and is used.

    Args:
        config: Sections `data` and `model` are used.
        force: Replace prepared data that was made with other settings, or make it anew.
        progress: Whether to print what is done, with a bar on a terminal.
        workers: Processes that tokenize; by default one for each core this process may use. A script that
            has more than one needs `if __name__ == "__main__":`.
        executor: Tokenizes instead, for example Dask's. Its processes see the same files by the same
            names, and have this package. They are the caller's to end.
        unit_bytes: Text that a process takes at a time; by default 64 MB, or less where there is little.

    Returns:
        The manifest. `splits.train` and `splits.validation` hold counts of books, characters, UTF-8
        bytes, tokens (one end-of-text per book included), blocks, and `padding`: end-of-text tokens
        that fill the last block.

    Raises:
        UserError: Books cannot be read, settings do not fit, the place is taken or the disk full.
    """
    started = time.monotonic()
    work = _Preparation(config, progress, workers, executor, unit_bytes)
    existing = work.usable(force)
    if existing and not work.folder.exists():
        work.say(f"{work.data_dir}: already prepared with these settings")
        return existing
    work.say_what_is_read()
    with lock_for(work.data_dir, work.say) as lock:
        clear_leftovers(work.data_dir, work.say)
        # Another process may have been at work until now, or a killed one's data has come back.
        existing = work.usable(force)
        if existing:
            shutil.rmtree(work.folder, ignore_errors=True)
            work.say(f"{work.data_dir}: was prepared meanwhile")
            return existing
        with work.units_kept():
            work.check_disk()
            tokenizer = work.known_tokenizer()
            if tokenizer is None:
                work.make(work.survey(), "reading")
                tokenizer = work.train_tokenizer()
            work.make(work.tokenizing(tokenizer), "tokenizing")
            manifest = work.assemble(tokenizer, lock, started)
    work.say(summary(manifest, work.data_dir))
    return manifest


def units_folder(data_dir: Path) -> Path:
    """Return where units lie until the data is assembled."""
    target = data_dir.resolve()
    return target.with_name(f"{target.name}.units")


class _Preparation:
    """What the steps share: the source, the place, the units, and who does the work."""

    def __init__(
        self,
        config: Config,
        progress: bool,
        workers: int | None,
        executor: Executor | None,
        unit_bytes: int | None,
    ) -> None:
        self.config = config
        self.say = _print if progress else _silence
        self.data_dir = user_path(config.data.data_dir, "data.data_dir")
        self.folder = units_folder(self.data_dir)
        self.chosen = chosen_tokenizer(config)
        self.settings = settings_of(config, self.chosen)
        self.options = ReadOptions.from_config(config)
        self.books = open_books(config.data.source, self.options, unit_bytes)
        self.units = make_units(
            self.books.parts, self.books.part_bytes, self.options, config.data.min_book_characters
        )
        self._progress, self._workers, self._executor = progress, workers or usable_cores(), executor

    def usable(self, force: bool) -> dict[str, Any] | None:
        """Return the manifest of prepared data that is what is wanted; None if it is to be made.

        Raises:
            UserError: Something else is there, and it was not said that it may go.
        """
        existing = find_prepared(self.data_dir)
        if existing is None or force:
            return None
        difference = first_difference(existing, self.settings, self.books)
        if difference:
            raise UserError(
                f"{self.data_dir}: was prepared differently: {difference}; use --force to replace it, or "
                "another --data.data_dir"
            )
        damage = find_damage(existing, self.data_dir)
        if damage:
            raise UserError(f"{self.data_dir}: {damage}; use --force to prepare it again")
        return existing

    def say_what_is_read(self) -> None:
        """Print how many files of which kind are read and passed over."""
        taken = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.books.taken.items()))
        if taken:
            self.say(f"reading {taken}")
        if self.books.passed_over:
            left = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.books.passed_over.items()))
            self.say(f"passed over: {left}")

    @contextmanager
    def units_kept(self) -> Iterator[None]:
        """Make the folder of units; leave none that is empty."""
        self.folder.mkdir(exist_ok=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def check_disk(self) -> None:
        """Compare the disk with what is likely needed, units that are there taken off.

        Raises:
            UserError: There is not even half of it.
        """
        there = sum(path.stat().st_size for path in self.folder.glob("*.tokens"))
        # English has about 4 bytes per token, small vocabularies make more tokens of it. Once in the units,
        # once in the data.
        itemsize = token_dtype(self.config.model.vocab_size).itemsize
        likely = sum(unit.text_bytes for unit in self.units) / 3.5 * 2 * itemsize - there
        free = shutil.disk_usage(self.folder).free
        if likely > 2 * free:
            raise UserError(
                f"{self.data_dir}: this needs about {likely / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "make room, or choose another place (data.data_dir)"
            )
        if likely > free:
            self.say(f"note: this may need {likely / 1e9:.1f} GB for a while, {free / 1e9:.1f} GB are free")

    def survey(self) -> Job:
        """The job that reads books without tokenizing them."""
        return Job(self.folder, self.options, self.config.data.min_book_characters)

    def tokenizing(self, tokenizer: Tokenizer) -> Job:
        """The job that tokenizes books."""
        return Job.tokenizing(self.folder, self.options, self.config.data.min_book_characters, tokenizer)

    def known_tokenizer(self) -> Tokenizer | None:
        """The chosen tokenizer, or the one that an earlier run trained for these books and settings."""
        if self.chosen is not None:
            return self.chosen
        try:
            return tokenizer_from_dict(json.loads(self._tokenizer_file().read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def train_tokenizer(self) -> Tokenizer:
        """Train a tokenizer on the training books, all of which are surveyed, and keep it with the units."""
        selected = select_books(self.config, self.units, self.survey())
        tokenizer = train_tokenizer(self.config, selected, self.say)
        write_text(self._tokenizer_file(), json.dumps(tokenizer.to_dict()))
        return tokenizer

    def _tokenizer_file(self) -> Path:
        said = json.dumps([self.settings, [unit.key for unit in self.units]], sort_keys=True)
        return self.folder / f"tokenizer-{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"

    def make(self, job: Job, title: str) -> None:
        """Make the units that are missing.

        Raises:
            UserError: Another process is at one of them.
        """
        with self._bar(title) as done:
            busy = make_units_on(job, self.units, self._workers, self._executor, done)
        if busy:
            raise UserError(
                f"{self.folder}: another process is at {len(busy)} of {len(self.units)} units; run this "
                "again when that has ended"
            )

    def assemble(self, tokenizer: Tokenizer, lock: FolderLock, started: float) -> dict[str, Any]:
        """Put finished units together, into their place, and remove them; return the manifest."""
        selected = select_books(self.config, self.units, self.tokenizing(tokenizer))
        with new_folder(self.data_dir, find_prepared(self.data_dir) is not None, lock.require) as folder:
            with self._bar("assembling") as done:
                described = assemble(folder, self.config, selected, tokenizer, done)
            manifest = {
                "format_version": FORMAT_VERSION,
                "package_version": _package_version(),
                "source": {
                    "given": self.config.data.source,
                    "files": self.books.files,
                    "taken": dict(self.books.taken),
                    "passed_over": dict(self.books.passed_over),
                },
                "settings": self.settings,
                "tokenizer": tokenizer.to_dict(),
                **described,
                "seconds": round(time.monotonic() - started, 1),
            }
            write_manifest(folder, manifest)
        shutil.rmtree(self.folder)
        return manifest

    @contextmanager
    def _bar(self, title: str) -> Iterator[Callable[[Unit], None]]:
        """Show units as they are done, by their text."""
        total = max(1, sum(unit.text_bytes for unit in self.units) // 1_000_000)
        bar = ProgressBar(title, total, unit="MB") if self._progress else None
        text = 0

        def done(unit: Unit) -> None:
            nonlocal text
            text += unit.text_bytes
            if bar:
                bar.advance(min(total, text // 1_000_000))

        try:
            yield done
        finally:
            if bar:
                bar.close()


def summary(manifest: dict[str, Any], data_dir: Path) -> str:
    """Say in a few lines what was prepared."""
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    speed = tokens / max(manifest["seconds"], 0.1)
    lines = [
        f"prepared {data_dir}: {tokens:,} tokens in {manifest['seconds']:.1f} s ({speed:,.0f} per second)"
    ]
    for name in splits_of(manifest):
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
    cut = {step: found for step, found in manifest["cleaned"].items() if found["books"]}
    if cut:
        said = ", ".join(
            f"{step} from {found['books']:,} books ({found['characters']:,} characters)"
            for step, found in cut.items()
        )
        lines.append(f"  cleaned    {said} (data.clean)")
    lines += [f"  note       {note}" for note in manifest["notes"]]
    return "\n".join(lines)


def _package_version() -> str:
    try:
        return importlib.metadata.version("horovod_transformer")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _print(text: str) -> None:
    print(text, flush=True)


def _silence(text: str) -> None:
    pass
