"""The steps of a preparation and what they share: source, place, shards, and who does the work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from horovod_transformer.books.find_files import describe_kinds, how_to_convert
from horovod_transformer.books.readers import ReadOptions
from horovod_transformer.books.sources import open_books
from horovod_transformer.data.manifest import FORMAT_VERSION, find_damage, find_prepared
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.assembly import assemble, select_books, train_tokenizer
from horovod_transformer.prepare.figures import write_report
from horovod_transformer.prepare.manifest import first_difference, write_manifest
from horovod_transformer.prepare.settings import PrepareSettings
from horovod_transformer.prepare.shards import Shard, plan_shards
from horovod_transformer.prepare.tokenizer_choice import chosen_tokenizer
from horovod_transformer.prepare.workers import Job, build_shards
from horovod_transformer.prepare.writer import token_dtype
from horovod_transformer.system.console import ProgressBar, narrate, tell
from horovod_transformer.system.files import write_text
from horovod_transformer.system.folders import new_folder
from horovod_transformer.system.locks import FolderLock
from horovod_transformer.system.machine import installed_version, usable_cores
from horovod_transformer.system.paths import readable, user_path
from horovod_transformer.tokenizer import Tokenizer, tokenizer_from_dict

_ABOUT_LISTED = 1000


def shards_folder(data_dir: Path) -> Path:
    """Return where shards lie until the data is assembled.

    Raises:
        UserError: There is no place beside it.
    """
    target = data_dir.resolve()
    if not target.name:
        raise UserError(f"{data_dir}: is the root of the file system; name a folder in it (data.data_dir)")
    return target.with_name(f"{target.name}.units")


class Preparation:
    """What the steps share.

    Args:
        settings: What is to be made.
        progress, workers, executor: See `prepare.prepare`.
        shard_bytes: There `unit_bytes`.
    """

    def __init__(
        self,
        settings: PrepareSettings,
        progress: bool,
        workers: int | None,
        executor: Executor | None,
        shard_bytes: int | None,
    ) -> None:
        self.settings = settings
        self.say = narrate if progress else _silence
        self.tell_result = tell if progress else _silence
        data = settings.data
        self.data_dir = user_path(data.data_dir, "data.data_dir")
        self.folder = shards_folder(self.data_dir)
        self.chosen = chosen_tokenizer(data.tokenizer, settings.vocab_size)
        self.recorded = settings.recorded(self.chosen)
        self.options = ReadOptions.of(data)
        self.books = open_books(data.source, self.options, shard_bytes)
        self.shards = plan_shards(
            self.books.ranges, self.books.range_bytes, self.options, data.min_book_characters
        )
        self._progress, self._workers, self._executor = progress, workers or usable_cores(), executor
        self._training_seconds: float | None = None

    def usable(self, force: bool) -> dict[str, Any] | None:
        """Return the manifest of prepared data that is what is wanted; None if it is to be made.

        Raises:
            UserError: Something else is there, and it was not said that it may go.
        """
        existing = find_prepared(self.data_dir)
        if existing is None or force:
            return None
        difference = first_difference(existing, self.recorded, self.books.files)
        if difference:
            raise UserError(
                f"{self.data_dir}: was prepared differently: {difference}; use --force to replace it, or "
                "another --data.data_dir"
            )
        damage = find_damage(existing, self.data_dir)
        if damage:
            raise UserError(f"{self.data_dir}: {damage}; use --force to prepare it again")
        return existing

    def is_prepared(self) -> bool:
        """Whether what is wanted is there; other data is `--assemble`'s to replace or refuse."""
        with contextlib.suppress(UserError):
            return self.usable(force=False) is not None
        return False

    def say_what_is_read(self) -> None:
        """Print how many files of which kind are read and passed over."""
        taken = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.books.taken.items()))
        if taken:
            self.say(f"reading {taken}")
        if self.books.passed_over:
            left = describe_kinds(self.books.passed_over, {"about": self.books.about})
            self.say(f"passed over: {left}")
            for hint in how_to_convert(self.books.passed_over):
                self.say(f"note: {hint}")

    @contextmanager
    def shards_kept(self) -> Iterator[None]:
        """Make the folder of shards; leave none that is empty."""
        self.folder.mkdir(exist_ok=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def check_disk(self) -> None:
        """Compare the disk with what is likely needed, shards that are there taken off.

        Raises:
            UserError: There is not even half of it.
        """
        there = sum(path.stat().st_size for path in self.folder.glob("*.tokens"))
        # English has about 4 bytes per token, small vocabularies make more tokens of it. Once in the shards,
        # once in the data.
        itemsize = token_dtype(self.settings.vocab_size).itemsize
        likely = sum(shard.text_bytes for shard in self.shards) / 3.5 * 2 * itemsize - there
        free = shutil.disk_usage(self.folder).free
        if likely > 2 * free:
            raise UserError(
                f"{self.data_dir}: this needs about {likely / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
                "make room, or choose another place (data.data_dir)"
            )
        if likely > free:
            self.say(f"note: this may need {likely / 1e6:,.0f} MB for a while, {free / 1e6:,.0f} MB are free")

    def survey(self) -> Job:
        """The job that reads books without tokenizing them."""
        return Job(self.folder, self.options, self.settings.data.min_book_characters)

    def tokenizing(self, tokenizer: Tokenizer) -> Job:
        """The job that tokenizes books."""
        return Job.tokenizing(self.folder, self.options, self.settings.data.min_book_characters, tokenizer)

    def known_tokenizer(self) -> Tokenizer | None:
        """The chosen tokenizer, or the one that an earlier run trained for these books and settings."""
        if self.chosen is not None:
            return self.chosen
        try:
            kept = json.loads(self._tokenizer_file().read_text(encoding="utf-8"))
            self._training_seconds = kept.get("training_seconds")
            return tokenizer_from_dict(kept)
        except (OSError, ValueError):
            return None

    def train_tokenizer(self) -> Tokenizer:
        """Train a tokenizer on the training books, all of which are surveyed, and keep it with the shards."""
        selected = select_books(self.settings, self.shards, self.survey())
        began = time.monotonic()
        tokenizer = train_tokenizer(self.settings, selected, self.say)
        self._training_seconds = round(time.monotonic() - began, 1)
        kept = {**tokenizer.to_dict(), "training_seconds": self._training_seconds}
        write_text(self._tokenizer_file(), json.dumps(kept))
        return tokenizer

    def _tokenizer_file(self) -> Path:
        said = json.dumps([self.recorded, [shard.key for shard in self.shards]], sort_keys=True)
        return self.folder / f"tokenizer-{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"

    def build(self, job: Job, shards: list[Shard]) -> list[Shard]:
        """Build those of these shards that are missing; return those that another process is at."""
        with self._bar("tokenizing" if job.tokenizer else "reading", shards) as done:
            return build_shards(job, shards, self._workers, self._executor, done)

    def require_whole(self, busy: list[Shard], job: Job) -> None:
        """Make sure that all shards are finished.

        Raises:
            UserError: Another process is at some, or some are missing.
        """
        missing = [shard for shard in self.shards if not job.files_of(shard).finished()]
        if missing and not busy:
            raise UserError(
                f"{self.folder}: {len(missing):,} of {len(self.shards):,} units are missing (other files or "
                "settings than they were made with?); run --units for all shares first"
            )
        if missing:
            raise UserError(
                f"{self.folder}: another process is at {len(busy)} of {len(self.shards)} units; run this "
                "again when that has ended"
            )

    def assemble(self, tokenizer: Tokenizer, lock: FolderLock, started: float) -> dict[str, Any]:
        """Put finished shards together, into their place, and remove them; return the manifest."""
        selected = select_books(self.settings, self.shards, self.tokenizing(tokenizer))
        replace = find_prepared(self.data_dir) is not None
        with new_folder(self.data_dir, "data.data_dir", replace, lock.require) as folder:
            with self._bar("assembling", self.shards) as done:
                described = assemble(folder, self.settings.block_size, selected, tokenizer, done)
            if self._training_seconds is not None:
                described["step_seconds"]["train_tokenizer"] = self._training_seconds
            manifest = {
                "format_version": FORMAT_VERSION,
                "package_version": installed_version("horovod_transformer") or "not installed",
                "source": {
                    "given": self.settings.data.source,
                    "files": self.books.files,
                    "taken": dict(self.books.taken),
                    "passed_over": dict(self.books.passed_over),
                    "about": [readable(name) for name in self.books.about[:_ABOUT_LISTED]],
                },
                "settings": self.recorded,
                "tokenizer": tokenizer.to_dict(),
                **described,
                "seconds": round(time.monotonic() - started, 1),
            }
            write_report(folder, manifest, selected.books, selected.splits, selected.longest())
            write_manifest(folder, manifest)
        shutil.rmtree(self.folder)
        return manifest

    @contextmanager
    def _bar(self, title: str, shards: list[Shard]) -> Iterator[Callable[[Shard], None]]:
        """Show shards as they are done, by their text."""
        total = max(1, sum(shard.text_bytes for shard in shards) // 1_000_000)
        bar = ProgressBar(title, total, unit="MB") if self._progress else None
        text = 0

        def done(shard: Shard) -> None:
            nonlocal text
            text += shard.text_bytes
            if bar:
                bar.advance(min(total, text // 1_000_000))

        try:
            yield done
        finally:
            if bar:
                bar.close()


def _silence(text: str) -> None:
    pass
