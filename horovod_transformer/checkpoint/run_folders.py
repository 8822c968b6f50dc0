"""Where the files of a run lie, and which runs there are; no torch is imported here, so listing is quick.

    runs/NAME/run.json        when it began, and how many updates it is to have
    runs/NAME/checkpoints/    last.pt, best_model.pt, update_00000500.pt
    runs/NAME/logs/           train_rank0.log
    runs/NAME/tables/         train.csv, val.csv, config.yaml, samples.txt, report.html
    runs/NAME/                TensorBoard's events

These names are links: `checkpoints/last.pt`, `checkpoints/best_model.pt` and `logs/train_rank0.log` name the
run that wrote a checkpoint last, `runs/structured/NAME` a run's tables. What `paths` in the config names goes
there instead, for all runs alike, and gets no links. Until commit efaa3e3 all runs wrote where the links are.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from horovod_transformer.config_sections import TABLES, PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.system.files import partial_of, sync_folder, write_text
from horovod_transformer.system.locks import SILENCE_S

RUNS, RECORD = "runs", "run.json"
LAST, BEST = "last.pt", "best_model.pt"
# Names the launch (a Slurm job, say) that began or resumed the run last; beside its checkpoints.
LAUNCH = ".launch"


@dataclass(frozen=True)
class RunPaths:
    """Where the files of one run lie.

    Attributes:
        name: Of the run.
        own: The folder that is this run's alone; None where every path is shared with other runs.
        checkpoints: `update_N.pt`, `last.pt`, `best_model.pt`.
        logs: `train_rank0.log`, one file per rank.
        tables: `train.csv` and what lies beside it.
        events: TensorBoard's.
    """

    name: str
    own: Path | None
    checkpoints: Path
    logs: Path
    tables: Path
    events: Path

    @property
    def locked(self) -> list[Path]:
        """The folders that this run alone may write to while it is trained; those in others are left out."""
        own_tables = self.own is not None and self.own in self.tables.parents
        return [folder for folder in (self.own, None if own_tables else self.tables) if folder]


def lock_file(folder: Path) -> Path:
    """The file that says who writes to a run's folder: beside it, since the folder may be renamed."""
    return folder.with_name(f".{folder.name}.lock")


def run_paths(paths: PathsConfig, name: str) -> RunPaths:
    """Where a run of this name writes: to a folder of its own, but for what the config places elsewhere."""
    own = Path(paths.output_dir, RUNS, name)
    events, tables = own, own / "tables"
    if paths.tensorboard_dir is not None:
        shared = Path(paths.output_dir, paths.tensorboard_dir)
        events, tables = shared / name, shared / TABLES / name
    checkpoints = explicit(paths, paths.checkpoint_dir) or own / "checkpoints"
    logs = explicit(paths, paths.log_dir) or own / "logs"
    everything = (checkpoints, logs, tables)
    return RunPaths(
        name, own if any(own in path.parents for path in everything) else None, *everything, events
    )


def shared_paths(paths: PathsConfig, name: str) -> RunPaths:
    """Where a run of commit efaa3e3 wrote: checkpoints and logs in folders that all runs shared."""
    runs = Path(paths.output_dir, paths.tensorboard_dir or RUNS)
    return RunPaths(
        name,
        None,
        explicit(paths, paths.checkpoint_dir) or Path(paths.output_dir, "checkpoints"),
        explicit(paths, paths.log_dir) or Path(paths.output_dir, "logs"),
        runs / TABLES / name,
        runs / name,
    )


def explicit(paths: PathsConfig, value: str | None) -> Path | None:
    """A path of the config, if it is set."""
    return None if value is None else Path(paths.output_dir, value)


def shown_checkpoints(paths: PathsConfig) -> Path:
    """The folder where `last.pt` and `best_model.pt` are promised to be found."""
    return explicit(paths, paths.checkpoint_dir) or Path(paths.output_dir, "checkpoints")


def has_shared_checkpoints(paths: PathsConfig) -> bool:
    """Whether `checkpoints/` holds files of a run of commit efaa3e3, not just links."""
    folder = Path(paths.output_dir, "checkpoints")
    files = [folder / LAST, folder / BEST, *folder.glob("update_*.pt")]
    return paths.checkpoint_dir is None and any(path.is_file() and not path.is_symlink() for path in files)


def own_folders(runs: Path) -> Iterator[Path]:
    """The folders of runs below `runs/`, in the order of their names; names may have slashes."""
    for folder in sorted(path for path in _folders_in(runs) if not path.name.startswith(".")):
        if (folder / RECORD).is_file():
            yield folder
        elif folder != runs / TABLES:
            yield from own_folders(folder)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:  # not there, or not ours to look into
        return []


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
        began: When its first update was made; None if that is not known.
        update: Of its newest checkpoint; 0 without one.
        updates: How many it is to have; None if that is not known.
        validation_loss: The lowest so far, nats; None before the first validation.
        bytes: On the disk, whatever has several names counted once.
        is_running: Somebody has touched its lock a moment ago.
        is_replaced: A new run has taken its name.
    """

    name: str
    folder: Path
    began: datetime | None
    update: int
    updates: int | None
    validation_loss: float | None
    bytes: int
    is_running: bool
    is_replaced: bool

    @property
    def is_finished(self) -> bool:
        """Whether every update that it was to have is in a checkpoint."""
        return self.updates is not None and self.update >= self.updates


def mark_replaced(own: Path) -> None:
    """Record that a new run has taken this one's name: `--resume auto` does not mean it any more."""
    write_text(own / RECORD, json.dumps({**_read_record(own), "replaced": True}) + "\n")


def write_record(own: Path, updates: int) -> None:
    """Record how many updates a run is to have, and when it began unless that is known."""
    began = _read_record(own).get("began") or datetime.now().isoformat()
    write_text(own / RECORD, json.dumps({"began": began, "updates": updates}) + "\n")


def status_of(own: Path, runs: Path) -> RunStatus:
    """Look at a run; what is damaged or missing is not known."""
    record = _read_record(own)
    try:
        began = datetime.fromisoformat(str(record.get("began")))
    except ValueError:
        began = None
    updates = record.get("updates")
    name = own.relative_to(runs).as_posix()
    tables = own / "tables"
    return RunStatus(
        name,
        own,
        began,
        newest_update(own / "checkpoints"),
        updates if isinstance(updates, int) else None,
        _lowest_loss((tables if tables.is_dir() else runs / TABLES / name) / "val.csv"),
        _bytes_in(own),
        is_touched(lock_file(own)),
        record.get("replaced") is True,
    )


def newest_update(checkpoints: Path) -> int:
    """The update of the newest periodic checkpoint, by its name; 0 if there is none."""
    names = (path.stem.removeprefix("update_") for path in checkpoints.glob("update_*.pt"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def is_touched(lock: Path) -> bool:
    """Whether the owner of a lock has shown itself a moment ago."""
    try:
        return time.time() - lock.stat().st_mtime < SILENCE_S
    except OSError:
        return False


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
    found = [run for run in found if run.update and not run.is_replaced]
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
    """The run that this launch has begun or resumed last, if any."""
    runs = Path(paths.output_dir, RUNS)
    begun = [own for own in own_folders(runs) if read_launch(own / "checkpoints") == launch]
    newest = max(begun, key=lambda own: (own / "checkpoints" / LAUNCH).stat().st_mtime, default=None)
    return newest.relative_to(runs).as_posix() if newest else None


def run_of_checkpoint(paths: PathsConfig, checkpoint: Path) -> str | None:
    """The run in whose own folder a checkpoint lies, whatever links lead there."""
    runs, folder = Path(paths.output_dir, RUNS), checkpoint.resolve().parent
    for own in own_folders(runs):
        if (own / "checkpoints").resolve() == folder:
            return own.relative_to(runs).as_posix()
    return None


def delete_run(run: RunStatus, paths: PathsConfig) -> None:
    """Remove a run's own folder, and the links that have led to it.

    Raises:
        UserError: The run is being trained, or its files cannot be removed.
    """
    if run.is_running:
        raise UserError(f"{run.folder}: is being trained; end that first")
    # Renamed first: what a kill leaves is no run any more.
    doomed = run.folder.with_name(f".{run.folder.name}.deleted")
    try:
        run.folder.rename(doomed)
        shutil.rmtree(doomed)
        for link in _links(paths, run.name):
            if is_our_link(link) and not link.exists():
                link.unlink()
    except OSError as error:
        raise UserError(f"{error.filename or run.folder}: cannot be removed: {error.strerror}") from None


def _links(paths: PathsConfig, name: str) -> list[Path]:
    """The names that may lead to a run."""
    shown, output = shown_checkpoints(paths), Path(paths.output_dir)
    logs = (output / "logs").glob("train_rank*.log")
    return [output / RUNS / TABLES / name, shown / LAST, shown / BEST, *logs]


def is_our_link(path: Path) -> bool:
    """Whether a name was made by `make_link`: what it leads to is a run's own."""
    return path.is_symlink() and RUNS in Path(os.readlink(path)).parts


def make_link(link: Path, target: Path) -> None:
    """Let a name stand for a file or folder, in place of the link that may be there.

    It is relative: the folder that holds both can be moved.

    Raises:
        OSError: It cannot be made, or the name is a file's or a folder's own.
    """
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is no link")
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(link)
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(os.path.relpath(target, link.parent))
        os.replace(partial, link)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(link.parent)
