"""Processes that build shards: each reads its ranges, tokenizes them, and leaves tokens and book records.

What a worker imports is imported once for each of them: nothing here may need torch.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from horovod_transformer.books.ranges import read_range
from horovod_transformer.books.readers import ReadOptions, Unreadable
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.duplicates import describe_text
from horovod_transformer.prepare.shards import Shard, ShardFiles, ShardRecord
from horovod_transformer.prepare.writer import join_books, token_dtype
from horovod_transformer.system.files import PARTIAL, replacing
from horovod_transformer.system.launch_environment import this_process
from horovod_transformer.system.locks import FolderLock
from horovod_transformer.system.paths import readable
from horovod_transformer.system.processes import exit_with
from horovod_transformer.tokenizer import Tokenizer, tokenizer_from_dict

# Characters encoded at a time: enough to keep all threads busy, little enough to forget.
_BATCH_CHARACTERS = 4 << 20
_LISTED = 1000
# Of a line to look at, in characters.
_LOOKED_AT, _LOOKED_AT_BEFORE = 80, 40
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_made: dict[str, Tokenizer] = {}


@dataclass(frozen=True)
class Job:
    """What is to be done with shards; plain values, as it is sent to other processes.

    Attributes:
        folder: Where finished shards lie.
        options: How books are read.
        min_characters: Shorter books are not tokenized.
        tokenizer: `Tokenizer.to_dict` as JSON; empty for a survey, which has no tokens.
        fingerprint: The tokenizer's.
        vocab_size: Its number of ids.
        threads: Threads that tokenize one shard.
    """

    folder: Path
    options: ReadOptions
    min_characters: int
    tokenizer: str = ""
    fingerprint: str = ""
    vocab_size: int = 2
    threads: int = 1

    @classmethod
    def tokenizing(cls, folder: Path, options: ReadOptions, min_characters: int, tokenizer: Tokenizer) -> Job:
        """Make a job that tokenizes."""
        said = json.dumps(tokenizer.to_dict())
        _made.update({said: tokenizer})
        return cls(folder, options, min_characters, said, tokenizer.fingerprint, tokenizer.vocab_size)

    def files_of(self, shard: Shard) -> ShardFiles:
        """Return where this job's shard lies."""
        return ShardFiles(self.folder, shard, self.fingerprint, token_dtype(self.vocab_size))


def build_shards(
    job: Job,
    shards: Sequence[Shard],
    workers: int,
    executor: Executor | None = None,
    done: Callable[[Shard], None] = lambda shard: None,
) -> list[Shard]:
    """Build all shards that are not there yet.

    Args:
        job: What is done with them.
        shards: The shards.
        workers: Processes to do it with; with one, or for one shard, it is done in this process.
        executor: Does it instead; its processes must see the same files, and have this package.
        done: Called when a shard is there.

    Returns:
        Shards that another process was at, and that it may not have finished.

    Raises:
        UserError: A file has changed or holds no books, or a worker died.
        OSError: The disk is full, or cannot be written to.
    """
    missing = []
    for shard in shards:
        if job.files_of(shard).finished():
            done(shard)
        else:
            missing.append(shard)
    if not missing:
        return []
    if executor is not None:
        return _on_executor(executor, job, missing, done)
    workers = max(1, min(workers, len(missing) * 16))
    processes = min(workers, len(missing))
    job = Job(**{**vars(job), "threads": min(16, max(1, workers // processes))})
    if processes == 1:
        return _in_this_process(job, missing, done)
    with _process_pool(processes) as pool:
        return _on_executor(pool, job, missing, done)


def _in_this_process(job: Job, shards: Sequence[Shard], done: Callable[[Shard], None]) -> list[Shard]:
    busy = []
    for shard in shards:
        if build_shard(job, shard):
            done(shard)
        else:
            busy.append(shard)
    return busy


def _on_executor(
    executor: Executor, job: Job, shards: Sequence[Shard], done: Callable[[Shard], None]
) -> list[Shard]:
    busy = []
    waiting = {executor.submit(build_shard, job, shard): shard for shard in shards}
    try:
        for future in as_completed(waiting):
            if future.result():
                done(waiting[future])
            else:
                busy.append(waiting[future])
    except BrokenProcessPool:
        raise UserError(
            "a worker process died before its unit was done (killed for its memory?); run it again, with "
            "fewer --processes if so; a script that calls prepare() needs `if __name__ == '__main__':`"
        ) from None
    finally:
        for future in waiting:
            future.cancel()
    return busy


@contextmanager
def _process_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that end with this one, however it ends, and at once when the block raises."""
    # Not forked: libraries of this process have threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _start_worker, (reader,))
    try:
        yield pool
        pool.shutdown()
    finally:
        # The system closes this end when this process is killed.
        writer.close()
        reader.close()
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt is for the parent
    exit_with(pipe)


def build_shard(job: Job, shard: Shard) -> bool:
    """Build a shard if it is not there; return False if another process is at it.

    Raises:
        UserError: A file has changed, or holds no books.
        OSError: The disk is full, or cannot be written to.
    """
    files = job.files_of(shard)
    launch = this_process()
    lock = FolderLock(files.lock, f"unit {shard.key}", launch.job, launch.attempt)
    try:
        lock.acquire()
    except UserError:
        return False
    try:
        if not files.finished():
            for path in files.books.parent.glob(f".{files.books.stem}.*{PARTIAL}-*"):
                path.unlink(missing_ok=True)  # what a killed process was still writing
            _fill(job, shard, files)
    finally:
        lock.release()
    return True


def _fill(job: Job, shard: Shard, files: ShardFiles) -> None:
    record = ShardRecord()
    if not job.tokenizer:
        for _ in _useful_books(job, shard, record):
            pass
    else:
        with replacing(files.tokens) as file:
            for texts, places in _batches(_useful_books(job, shard, record)):
                began = time.perf_counter()
                ids, lengths = _encode(texts, job)
                file.write(ids.tobytes())
                for place, length in zip(places, lengths, strict=True):
                    record.tokens[place] = length
                _add_seconds(record, "tokenize", began)
    files.write_books(record)


def _useful_books(job: Job, shard: Shard, record: ShardRecord) -> Iterator[tuple[int, str]]:
    """Read a shard's books and record each; yield place and text of those that may be kept."""
    seen: set[bytes] = set()
    details = record.details
    for file_range in shard.ranges:
        for book in read_range(file_range, job.options):
            if isinstance(book, Unreadable):
                details["unreadable"] += 1
                if len(details["first_unreadable"]) < _LISTED:
                    details["first_unreadable"].append([book.origin, book.reason])
                continue
            began = time.perf_counter()
            place = len(record.titles)
            digest, words, size = describe_text(book.text)
            record.digests += digest
            record.characters.append(len(book.text))
            record.words.append(words)
            record.bytes.append(size)
            record.tokens.append(0)
            record.reencoded.append(book.reencoded)
            record.titles.append(book.title)
            if book.reencoded and len(details["first_reencoded"]) < _LISTED:
                details["first_reencoded"].append([place, book.origin, _line_to_look_at(book.text)])
            for step, characters in book.cut.items():
                books_before, characters_before = details["cleaned"].get(step, (0, 0))
                details["cleaned"][step] = (books_before + 1, characters_before + characters)
            _add_seconds(record, "digest", began)
            # A copy of a book of this shard is dropped, whatever other shards hold.
            if words and len(book.text) >= job.min_characters and digest not in seen:
                seen.add(digest)
                yield place, book.text


def _line_to_look_at(text: str) -> str:
    """The first line with a letter that another encoding would make another one, or some of it."""
    found = _NOT_ASCII.search(text)
    if found is None:
        return ""
    place = found.start()
    start = max(text.rfind("\n", 0, place) + 1, place - _LOOKED_AT_BEFORE)
    end = text.find("\n", place, start + _LOOKED_AT)
    return readable(text[start : end if end >= 0 else start + _LOOKED_AT].strip())


def _batches(books: Iterator[tuple[int, str]]) -> Iterator[tuple[list[str], list[int]]]:
    texts: list[str] = []
    places: list[int] = []
    characters = 0
    for place, text in books:
        texts.append(text)
        places.append(place)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield texts, places
            texts, places, characters = [], [], 0
    if texts:
        yield texts, places


def _encode(texts: list[str], job: Job) -> tuple[np.ndarray, list[int]]:
    """Return the ids of texts, each with an end-of-text token, and how many each has."""
    tokenizer = _tokenizer(job.tokenizer)
    encoded = tokenizer.encode_books(texts, job.threads)
    ids = join_books(encoded, tokenizer.vocab_size, tokenizer.eos_token_id)
    return ids, [len(book) + 1 for book in encoded]


def _tokenizer(description: str) -> Tokenizer:
    """The tokenizer of a description, made once in each process."""
    if description not in _made:
        _made[description] = tokenizer_from_dict(json.loads(description))
    return _made[description]


def _add_seconds(record: ShardRecord, step: str, began: float) -> None:
    seconds: dict[str, Any] = record.details["seconds"]
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - began
