"""Books in, blocks out: the whole preparation.

    manifest = prepare(load_config("configs/quickstart.yaml"))

Books are cut into shards of work (`shards`), processes tokenize these (`workers`), and what they leave is put
together (`assembly`). A shard that is finished is not made again, however a run ends.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from horovod_transformer.config import Config
from horovod_transformer.data.manifest import REPORT_PAGE, splits_of
from horovod_transformer.prepare.settings import PrepareSettings
from horovod_transformer.prepare.steps import Preparation
from horovod_transformer.system.folders import clear_leftovers, explained, lock_for


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
    work = Preparation(settings_of(config), progress, workers, executor, unit_bytes)
    existing = work.usable(force)
    if existing and not work.folder.exists():
        work.tell_result(f"{work.data_dir}: already prepared with these settings")
        return existing
    work.say_what_is_read()
    with lock_for(work.data_dir, "data.data_dir", work.say) as lock:
        clear_leftovers(work.data_dir, "data.data_dir", work.say)
        # Another process may have been at work until now, or a killed one's data has come back.
        existing = work.usable(force)
        if existing:
            shutil.rmtree(work.folder, ignore_errors=True)
            work.tell_result(f"{work.data_dir}: was prepared meanwhile")
            return existing
        with work.shards_kept():
            work.check_disk()
            tokenizer = work.known_tokenizer()
            if tokenizer is None:
                work.require_whole(work.build(work.survey(), work.shards), work.survey())
                tokenizer = work.train_tokenizer()
            job = work.tokenizing(tokenizer)
            work.require_whole(work.build(job, work.shards), job)
            manifest = work.assemble(tokenizer, lock, started)
    work.tell_result(summary(manifest, work.data_dir))
    return manifest


def prepare_shards(
    config: Config,
    node: int,
    nodes: int,
    progress: bool = True,
    workers: int | None = None,
    executor: Executor | None = None,
    unit_bytes: int | None = None,
    force: bool = False,
) -> None:
    """Do one node's share of `prepare`: build every `nodes`-th shard, from the `node`-th on.

    When all shares are done, `assemble_shards` puts them together. With `data.tokenizer = bpe` both are done
    twice: the first time books are read and the tokenizer is trained.

    Args:
        config: The same on all nodes.
        node: From 1 to `nodes`.
        nodes: How many there are.
        progress, workers, executor, unit_bytes: See `prepare`.
        force: Also where good data lie already, which `assemble_shards` is going to replace.

    Raises:
        UserError: See `prepare`.
    """
    work = Preparation(settings_of(config), progress, workers, executor, unit_bytes)
    if work.is_prepared() and not force:
        work.tell_result(f"{work.data_dir}: already prepared with these settings")
        return
    work.say_what_is_read()
    with explained(work.data_dir, "data.data_dir"):
        work.folder.mkdir(exist_ok=True)
        work.check_disk()
        tokenizer = work.known_tokenizer()
        job = work.survey() if tokenizer is None else work.tokenizing(tokenizer)
        mine = work.shards[node - 1 :: nodes]
        busy = work.build(job, mine)
        if busy:
            work.say(f"{work.folder}: another process is at {len(busy)} of these units")
        made = "read" if tokenizer is None else "tokenized"
        work.tell_result(f"{work.folder}: share {node} of {nodes}: {len(mine) - len(busy):,} units {made}")


def assemble_shards(
    config: Config, force: bool = False, progress: bool = True, unit_bytes: int | None = None
) -> dict[str, Any] | None:
    """Put together what `prepare_shards` built; with `data.tokenizer = bpe` first train the tokenizer.

    Args:
        config: The same as the shards'.
        force: Replace prepared data that was made with other settings, or make it anew.
        progress, unit_bytes: See `prepare`.

    Returns:
        The manifest; None if it was the tokenizer that was made, and the shards are to be tokenized now.

    Raises:
        UserError: Shards are missing, and see `prepare`.
    """
    started = time.monotonic()
    work = Preparation(settings_of(config), progress, None, None, unit_bytes)
    with lock_for(work.data_dir, "data.data_dir", work.say) as lock:
        clear_leftovers(work.data_dir, "data.data_dir", work.say)
        existing = work.usable(force)
        if existing:
            shutil.rmtree(work.folder, ignore_errors=True)  # of a try that was killed when all else was done
            work.tell_result(f"{work.data_dir}: already prepared with these settings")
            return existing
        with work.shards_kept():
            tokenizer = work.known_tokenizer()
            if tokenizer is None:
                work.require_whole([], work.survey())
                work.train_tokenizer()
                work.say(
                    "the tokenizer is trained; now `prepare --units` again for all shares, and --assemble"
                )
                return None
            work.require_whole([], work.tokenizing(tokenizer))
            manifest = work.assemble(tokenizer, lock, started)
    work.tell_result(summary(manifest, work.data_dir))
    return manifest


def settings_of(config: Config) -> PrepareSettings:
    """Take from a config what a preparation needs of it; nothing behind this door sees the rest."""
    return PrepareSettings(config.data, config.model.max_seq_len, config.model.vocab_size)


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
    lines.append(f"  report     {data_dir / REPORT_PAGE}")
    return "\n".join(lines)
