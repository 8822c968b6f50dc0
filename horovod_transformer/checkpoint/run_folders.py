"""Which runs there are and how far each has come; no torch is imported here, so listing is quick."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from horovod_transformer.checkpoint.run_links import links_into
from horovod_transformer.checkpoint.run_paths import (
    BEST,
    DEMO_OUTPUT,
    LAST,
    LAUNCH,
    RECORD,
    REWIND,
    RUNS,
    lock_file,
)
from horovod_transformer.config_sections import TABLES, PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.files import write_text
from horovod_transformer.system.lock_owner import Life, LockOwner
from horovod_transformer.system.locks import SILENCE_S, FolderLock


def own_folders(runs: Path) -> Iterator[Path]:
    """The folders of runs below `runs/`, in the order of their names; names may have slashes.

    Raises:
        UserError: The file system does not answer.
    """
    for folder in _folders_in(runs):
        if is_run(folder):
            if not folder.is_symlink() or _leads_out_of(folder, runs):
                yield folder
        elif folder != runs / TABLES and not folder.is_symlink():
            yield from own_folders(folder)


def _leads_out_of(link: Path, runs: Path) -> bool:
    """Whether a link stands for a run that was moved to another disk, and not for one that is here."""
    target = os.path.abspath(link.parent / os.readlink(link))
    return RUNS not in Path(os.path.relpath(target, runs.parent)).parts[:1] and not (
        link.resolve().is_relative_to(runs.resolve())
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's own: it has a record, or checkpoints, which a record may have been lost to.

    A run whose folder is renamed while it is trained goes on writing checkpoints under the old name.
    """
    try:
        return (folder / RECORD).is_file() or has_checkpoints(folder / "checkpoints")
    except PermissionError:
        return False  # somebody else's, as far as can be seen


def has_checkpoints(folder: Path) -> bool:
    """Whether a run can be resumed from a folder, if its files are good."""
    return (folder / REWIND).is_file() or any(folder.glob("*.pt"))


def _folders_in(folder: Path) -> list[Path]:
    """The folders in one, sorted, without hidden ones; none if it is not ours to look into."""
    try:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    except OSError as error:
        # Taken for an empty folder, it would have a run begin anew instead of being resumed.
        raise UserError(f"{folder}: cannot be looked into: {error.strerror}") from None


def read_launch(checkpoints: Path) -> str | None:
    """The launch that began or resumed the run of these checkpoints last."""
    try:
        return (checkpoints / LAUNCH).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class RunStatus:
    """How far a run has come.

    Attributes:
        name: Of the run.
        folder: Its own.
        tables: Where its `val.csv` lies.
        began: When its first update was made; None if that is not known.
        update: Of its newest checkpoint; 0 without one.
        updates: How many it is to have; None if that is not known.
        is_running: The owner of its lock lives, as far as can be seen.
        is_replaced: A new run has taken its name.
        has_checkpoints: It can be resumed, if they are good.
    """

    name: str
    folder: Path
    tables: Path
    began: datetime | None
    update: int
    updates: int | None
    is_running: bool
    is_replaced: bool
    has_checkpoints: bool

    @property
    def is_finished(self) -> bool:
        """Whether every update that it was to have is in a checkpoint."""
        return self.updates is not None and self.update >= self.updates

    def lowest_validation_loss(self) -> float | None:
        """In nats, so far; None before the first validation. Reads the whole table."""
        return _lowest_loss(self.tables / "val.csv")

    def bytes_on_disk(self) -> int:
        """What its folder takes, whatever has several names counted once."""
        return _bytes_in(self.folder)


def mark_replaced(own: Path, archived_as: str | None = None) -> None:
    """Record that a new run takes this one's name: `--resume auto` does not mean it any more.

    Args:
        own: Its folder.
        archived_as: What the folder is about to be called. One that is called otherwise, because that has
            not happened or was undone, is not replaced.
    """
    record = {**_read_record(own), "replaced": archived_as or own.name}
    write_text(own / RECORD, json.dumps(record) + "\n")


def write_record(own: Path, updates: int | None, name: str | None = None) -> None:
    """Record how many updates a run is to have, its name, and when it began unless that is known."""
    began = _read_record(own).get("began") or datetime.now().isoformat()
    write_text(own / RECORD, json.dumps({"name": name, "began": began, "updates": updates}) + "\n")


def status_of(own: Path, runs: Path) -> RunStatus:
    """Look at a run; what is damaged or missing is not known."""
    record = _read_record(own)
    try:
        began = datetime.fromisoformat(str(record.get("began"))).replace(tzinfo=None)
    except ValueError:
        began = None
    updates = record.get("updates")
    name = own.relative_to(runs).as_posix()
    tables = own / "tables"
    return RunStatus(
        name,
        own,
        tables if tables.is_dir() else runs / TABLES / name,
        began,
        newest_update(own / "checkpoints"),
        updates if isinstance(updates, int) else None,
        is_held(lock_file(own)),
        record.get("replaced") == own.name,
        has_checkpoints(own / "checkpoints"),
    )


def newest_update(checkpoints: Path) -> int:
    """The update of the newest periodic checkpoint, by its name; 0 if there is none."""
    names = (path.stem.removeprefix("update_") for path in checkpoints.glob("update_*.pt"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def is_held(lock: Path) -> bool:
    """Whether the owner of a lock lives; one that cannot be seen, if it has shown itself a moment ago."""
    try:
        life = LockOwner.from_text(lock.read_text(encoding="utf-8", errors="replace")).life()
        silent = time.time() - lock.stat().st_mtime
    except OSError:
        return False
    return life is Life.LIVES or (life is Life.UNSEEN and silent < SILENCE_S)


def _read_record(own: Path) -> dict[str, Any]:
    try:
        record = json.loads((own / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _lowest_loss(table: Path) -> float | None:
    losses = []
    try:
        with open(table, newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                try:
                    losses.append(float(row.get("loss") or "nan"))
                except ValueError:
                    continue
    except (OSError, csv.Error):
        return None
    return min((loss for loss in losses if math.isfinite(loss)), default=None)


def _bytes_in(folder: Path) -> int:
    seen: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(parent, name))
            except OSError:  # gone in the meantime
                continue
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def run_to_resume(paths: PathsConfig) -> str | None:
    """The run that `--resume auto` means where none is named: the only unfinished one, else the only one.

    Returns:
        Its name; None if there is no run yet.

    Raises:
        UserError: There are several.
    """
    runs = Path(paths.output_dir, RUNS)
    found = [status_of(own, runs) for own in own_folders(runs)]
    found = [run for run in found if run.has_checkpoints and not run.is_replaced]
    unfinished = [run for run in found if not run.is_finished]
    chosen = unfinished or found
    if len(chosen) > 1:
        names = ", ".join(run.name for run in chosen[:5]) + (", ..." if len(chosen) > 5 else "")
        what = "unfinished runs" if unfinished else "runs, all of them finished"
        raise UserError(
            f"--resume auto: {runs} holds {len(chosen)} {what}: {names}; say which with --run_name, or "
            "leave --resume out to start another"
        )
    return chosen[0].name if chosen else None


def run_of_launch(paths: PathsConfig, launch: str) -> str | None:
    """The run that this launch has begun or resumed last, if any; not a copy of it, if it is there itself."""
    runs = Path(paths.output_dir, RUNS)
    begun = [own for own in own_folders(runs) if read_launch(own / "checkpoints") == launch]

    def rank(own: Path) -> tuple[bool, float]:
        is_itself = _read_record(own).get("name") == own.relative_to(runs).as_posix()
        return is_itself, (own / "checkpoints" / LAUNCH).stat().st_mtime

    newest = max(begun, key=rank, default=None)
    return newest.relative_to(runs).as_posix() if newest else None


def run_of_checkpoint(paths: PathsConfig, checkpoint: Path) -> str | None:
    """The run in whose own folder a checkpoint lies, whatever links lead there."""
    runs, folder = Path(paths.output_dir, RUNS), checkpoint.resolve().parent
    for own in own_folders(runs):
        if (own / "checkpoints").resolve() == folder:
            return own.relative_to(runs).as_posix()
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to write text from of the run that wrote one last, runs of the demo among them.

    Args:
        folder: That runs write to.

    Returns:
        Its best_model.pt; without one last.pt, or the newest of the periodic ones; None if there is no run.
    """
    outputs = (folder, folder / DEMO_OUTPUT)
    places = [output / "checkpoints" for output in outputs]
    places += [own / "checkpoints" for output in outputs for own in own_folders(output / RUNS)]
    found: list[tuple[float, Path]] = []
    for place in places:
        periodic = sorted(place.glob("update_*.pt"), reverse=True)
        for path in (place / BEST, place / LAST, *periodic):
            if path.is_file():
                found.append((path.stat().st_mtime, path))
                break
    return max(found, default=(0.0, None))[1]


def delete_run(run: RunStatus, paths: PathsConfig) -> None:
    """Remove a run's own folder, and the links that have led to it.

    Raises:
        UserError: The run is being trained, it holds another, or its files cannot be removed.
    """
    folder = run.folder
    if run.is_running:
        raise UserError(f"{folder}: is being trained; end that first")
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link; remove the link, or what it leads to, by hand")
    if (other := next(own_folders(folder), None)) is not None:
        raise UserError(f"{folder}: holds another run, {other}; move that first")
    lock = FolderLock(lock_file(folder), str(folder))
    try:
        lock.acquire(tell)  # nobody begins to train it meanwhile
        try:
            links = links_into(paths, run.name, folder)
            finish_deletion(folder)
            # Renamed first: what a kill leaves is no run any more.
            folder.rename(deleted_name(folder))
            finish_deletion(folder)
            for link in links:
                link.unlink()
        finally:
            lock.release()
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be removed: {error.strerror}") from None
    _remove_empty(folder.parent, Path(paths.output_dir, RUNS))


def deleted_name(folder: Path) -> Path:
    """What a run's folder is called while it is being deleted."""
    return folder.with_name(f".{folder.name}.deleted")


def finish_deletion(folder: Path) -> bool:
    """Remove what a deletion has left that was cut short; return whether there was anything."""
    doomed = deleted_name(folder)
    if not doomed.is_dir():
        return False
    shutil.rmtree(doomed)
    return True


def _remove_empty(folder: Path, above: Path) -> None:
    """Remove folders that only led to a run, `runs/tests` of `runs/tests/first`, once nothing is in them."""
    with suppress(OSError):
        while folder != above:
            folder.rmdir()
            folder = folder.parent
