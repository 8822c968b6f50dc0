"""The checkpoints of one run: written in the background, pruned, archived, found again.

A folder holds `update_00000500.pt` (the newest few), `last.pt` (the newest of all, the same file
under a second name) and `best_model.pt` (lowest validation loss). What is in nobody's way any more
is archived: moved to a subfolder `previous-<time>`, never deleted.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.checkpoint.run_links import is_our_link
from horovod_transformer.checkpoint.run_paths import BEST, LAST, LAUNCH, REWIND, is_run_name
from horovod_transformer.checkpoint.snapshot import Snapshots
from horovod_transformer.errors import UserError
from horovod_transformer.system.files import (
    archive_path,
    link_or_copy,
    make_writable,
    partial_of,
    remove_partials,
    sync_folder,
    write_text,
)


@dataclass(frozen=True)
class Takeover:
    """What a run will change in its folder once it has made an update; until then nothing is moved.

    Attributes:
        archived: Checkpoints that are to be archived.
        resumed: The checkpoint that the run resumes; None for a fresh run.
        update: Updates done in it.
        rewinds: Make that checkpoint the newest of the folder.
        is_best: Give it the name `best_model.pt`, too.
    """

    archived: tuple[Path, ...] = ()
    resumed: Path | None = None
    update: int = 0
    rewinds: bool = False
    is_best: bool = False


class CheckpointManager:
    """The checkpoints of one run, on rank 0.

    Args:
        folder: Where they lie; made when first written to.
        keep: How many periodic checkpoints to keep.
        keep_every: Keep those of every so many updates for ever.

    Attributes:
        folder: As given.
        has_written: A checkpoint has been written since this began.
    """

    def __init__(self, folder: str | Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder = Path(folder)
        self._keep = keep
        self._keep_every = keep_every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._snapshots = Snapshots()
        self.has_written = False

    def save(self, contents: dict[str, Any], update: int, periodic: bool, best: bool) -> OSError | None:
        """Copy the state to memory, and write it in the background.

        Waits for the previous write first: there is one copy in memory at most.

        Args:
            contents: As for `save_checkpoint`.
            update: Updates done.
            periodic: Write `update_N.pt` and `last.pt`.
            best: Write `best_model.pt`.

        Returns:
            Why the previous write failed, if it did; the files before it are untouched.
        """
        failure = self.wait()
        copied, finish_copy = self._snapshots.take(contents)

        def write() -> None:
            finish_copy()
            self._write(copied, update, periodic, best)

        self._pending = self._thread.submit(write)
        return failure

    def wait(self) -> OSError | None:
        """Wait until the last write has ended; return why it failed, told once."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except OSError as error:
            return error
        return None

    def poll(self) -> OSError | None:
        """As `wait`, but leave a write that has not ended alone."""
        return self.wait() if self._pending is not None and self._pending.done() else None

    def _write(self, contents: dict[str, Any], update: int, periodic: bool, best: bool) -> None:
        if not periodic:
            save_checkpoint(self.folder / BEST, contents)
            self.has_written = True
            return
        newest = self._numbered(update)
        save_checkpoint(newest, contents)
        for name in [LAST, BEST] if best else [LAST]:
            _give_second_name(newest, self.folder / name)
        self.has_written = True
        self._prune()

    def _numbered(self, update: int) -> Path:
        return self.folder / f"update_{update:08d}.pt"

    def _prune(self) -> None:
        numbered = numbered_checkpoints(self.folder)
        for update, path in numbered[: -self._keep]:
            if not (self._keep_every and update % self._keep_every == 0):
                path.unlink(missing_ok=True)

    def clear_leftovers(self) -> None:
        """Remove what a killed process was still writing; for the owner of the folder."""
        remove_partials(self.folder)

    def make_folder(self) -> None:
        """Make the folder, and find out now whether checkpoints can be written to it.

        Raises:
            UserError: Nothing can be written there.
        """
        try:
            make_writable(self.folder)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write checkpoints here: {error.strerror}") from None

    def archive(self, files: Iterable[Path] | None = None) -> Path | None:
        """Move checkpoints into a subfolder, so that nothing is overwritten or lost.

        Args:
            files: Which; None moves all.

        Returns:
            The subfolder, or None if there was nothing to move.
        """
        chosen = [path for path in self.folder.glob("*.pt") if files is None or path in files]
        if not chosen:
            return None
        target = archive_path(self.folder / "previous", chosen)
        target.mkdir(parents=True)
        for path in chosen:
            if is_our_link(path):
                path.unlink()
            else:
                path.rename(target / path.name)
        return target

    def fresh_start(self) -> Takeover:
        """What a fresh run takes over: an earlier run's checkpoints, all of them."""
        return Takeover(tuple(self.folder.glob("*.pt")))

    def resume(self, path: Path, update: int, rewinds: bool) -> Takeover:
        """What a run takes over that resumes a checkpoint.

        Args:
            path: The checkpoint, in this folder or elsewhere.
            update: Updates done in it.
            rewinds: Archive all that is later or of another run. Otherwise it is the newest good one, and
                periodic ones of later updates are broken.
        """
        if rewinds:
            archived = self._others(path, update)
        else:
            archived = [file for n, file in numbered_checkpoints(self.folder) if n > update]
        return Takeover(tuple(archived), path, update, rewinds)

    def take_over(self, takeover: Takeover) -> Path | None:
        """Carry out what was planned, and lose nothing whenever this is killed.

        A rewind is written down first. A process that is killed in between leaves the note, and
        `finish_rewind` carries it out: the abandoned later checkpoints never come back.

        Returns:
            The subfolder that checkpoints went to, or None.
        """
        path, update = takeover.resumed, takeover.update
        if path is None:
            # A rewind of an earlier run that was cut short is not carried out any more.
            (self.folder / REWIND).unlink(missing_ok=True)
        if path is not None and takeover.rewinds:
            write_text(self.folder / REWIND, json.dumps({"path": str(path.absolute()), "update": update}))
            archived = self._rewind(path, update, takeover.archived)
        else:
            archived = self.archive(takeover.archived)
        if path is not None and takeover.is_best:
            _give_second_name(path, self.folder / BEST)
        return archived

    def record_launch(self, launch: str | None) -> None:
        """Remember which launch has begun or resumed the run: its later starts carry on from here."""
        if launch is not None:
            write_text(self.folder / LAUNCH, launch)

    def best_loss(self, without: Iterable[Path] = ()) -> float:
        """Validation loss of `best_model.pt`, nats; infinite if there is none or it is broken.

        Args:
            without: Files that are about to be archived.
        """
        best = self.folder / BEST
        progress = None if best in without else progress_of(best)
        loss = progress.get("best_validation_loss") if progress else None
        return loss if isinstance(loss, float) else math.inf

    def finish_rewind(self) -> None:
        """Carry out a rewind that was cut short, if one was.

        Raises:
            UserError: Its note is damaged, or its checkpoint has gone.
        """
        note = self.folder / REWIND
        if not note.is_file():
            return
        try:
            wanted = json.loads(note.read_text(encoding="utf-8"))
            path, update = Path(wanted["path"]), int(wanted["update"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{note}: a resume from an older checkpoint was cut short and its note is damaged; remove "
                "the file and say again --resume PATH"
            ) from None
        # Once it is linked in, the file it came from is no longer needed.
        path = path if path.is_file() else self._numbered(update)
        if not path.is_file():
            raise UserError(
                f"{wanted['path']}: no such checkpoint file, and a resume from it was cut short; remove "
                f"{note} to resume from the newest checkpoint instead"
            )
        self._rewind(path, update, self._others(path, update))

    def _others(self, path: Path, update: int) -> list[Path]:
        """The checkpoints that are later than the one to be resumed, or of another run."""
        numbered, last = self._numbered(update), self.folder / LAST
        if not (self.folder.is_dir() and path.absolute().parent.samefile(self.folder)):
            # Another run's checkpoint: nothing here belongs to it but what an earlier try linked in.
            kept = [file for file in (numbered, last) if file.is_file() and file.samefile(path)]
            return [file for file in self.folder.glob("*.pt") if file not in kept]
        numbered_ones = numbered_checkpoints(self.folder)
        others = [file for n, file in numbered_ones if n > update and not file.samefile(path)]
        if numbered.is_file() and not numbered.samefile(path):
            others.append(numbered)
        # last.pt and best_model.pt do not tell their update by their name; broken ones tell none.
        others += [
            file
            for file in (last, self.folder / BEST)
            if file.is_file() and not file.samefile(path) and update_of(file) not in range(update + 1)
        ]
        return others

    def _rewind(self, path: Path, update: int, others: Iterable[Path]) -> Path | None:
        numbered, last = self._numbered(update), self.folder / LAST
        archived = self.archive(others)
        if not numbered.is_file():
            _give_second_name(path, numbered)
        _give_second_name(numbered, last)
        (self.folder / REWIND).unlink()
        sync_folder(self.folder)
        return archived

    def newest_good(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """Find the checkpoint to resume from, passing over broken ones.

        Returns:
            Path, contents and one line for each newer file that was broken; None if the folder has
            no checkpoint at all.

        Raises:
            UserError: There are checkpoints but none is good. Starting afresh is for the user to say.
        """
        complaints: list[str] = []
        # last.pt is the newest numbered one under another name, unless a kill came between the two.
        numbered = [path for _, path in reversed(numbered_checkpoints(self.folder))]
        candidates = [*numbered[:1], self.folder / LAST, *numbered[1:], self.folder / BEST]
        for path in candidates:
            if not path.is_file() or is_our_link(path):
                continue
            try:
                return path, load_checkpoint(path), complaints
            except UserError as error:
                complaints.append(str(error))
        if complaints:
            raise UserError(f"{self.folder}: no checkpoint here is good; the newest: {complaints[0]}")
        return None


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The periodic checkpoints of a folder with their updates, oldest first."""
    found = []
    for path in folder.glob("update_*.pt"):
        match = re.fullmatch(r"update_(\d+)\.pt", path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def update_of(path: Path) -> int | None:
    """Updates done in a checkpoint, read without its tensors; None if the file is broken."""
    update = (progress_of(path) or {}).get("update")
    return update if isinstance(update, int) else None


def progress_of(path: Path) -> dict[str, Any] | None:
    """A checkpoint's `progress`, read without its tensors; None if the file is broken."""
    return _part_of(path, "progress")


def _part_of(path: Path, key: str) -> dict[str, Any] | None:
    try:
        part = torch.load(path, map_location="cpu", mmap=True, weights_only=True)[key]
    except Exception:  # torch raises half a dozen types for a damaged file
        return None
    return part if isinstance(part, dict) else None


def _give_second_name(path: Path, name: Path) -> None:
    """Make `name` the same file as `path`, replacing in one step what it was."""
    partial = partial_of(name)
    partial.unlink(missing_ok=True)
    try:
        link_or_copy(path, partial)
        os.replace(partial, name)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(name.parent)


def run_name_of(checkpoint: Path) -> str | None:
    """The run that wrote a checkpoint, by its own record; None if that is broken, or no folder's name."""
    name = (progress_of(checkpoint) or {}).get("run_name")
    return name if isinstance(name, str) and is_run_name(name) else None


def run_name_in(folder: Path) -> str | None:
    """The run that wrote the newest good checkpoint of a folder."""
    return next((name for name in map(run_name_of, _newest_first(folder)) if name), None)


def planned_updates(folder: Path) -> int | None:
    """How many updates the run of a folder was to have, by its newest good checkpoint; None if not known."""
    for path in _newest_first(folder):
        training = (_part_of(path, "config") or {}).get("training")
        aimed_at = (_part_of(path, "scheduler") or {}).get("decay_updates")
        if isinstance(training, dict) and isinstance(aimed_at, int):
            # The schedule ends with the run, unless the config says where.
            return training.get("max_updates") if training.get("lr_decay_updates") else aimed_at
    return None


def _newest_first(folder: Path) -> list[Path]:
    newest = [path for _, path in reversed(numbered_checkpoints(folder))]
    return [path for path in (*newest, folder / LAST, folder / BEST) if not path.is_symlink()]
