"""What a run has left behind, read for a report; all of it untrusted, and any of it may be missing."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from horovod_transformer.checkpoint.run_folders import own_folders
from horovod_transformer.checkpoint.run_paths import RECORD, RUNS
from horovod_transformer.errors import UserError
from horovod_transformer.system.yaml_text import read_yaml

EVALUATION = "evaluation.json"
_SAMPLE = re.compile(r"^=== update (\d{1,18}), prompt (.*) ===$", re.M)
_STARTED = re.compile(r" run (.+): [\d,]+ parameters\b")
_STALL = re.compile(r"checkpoints held training up for (\d{1,18}(?:\.\d+)?) s of (\d{1,18}(?:\.\d+)?) s")
# No figure of a run comes near it; sums and differences of larger ones could overflow.
_LARGEST = 1e100


@dataclass
class RunRecords:
    """One run.

    Attributes:
        name: Of its folder.
        train: Columns of `train.csv`; a value that is not a finite number is None.
        validation: Columns of `val.csv`.
        config: Flat, by dotted key.
        environment: Of `environment.json`.
        samples: Update, prompt and text of each sample.
        stall: Seconds that checkpoints held training up, and of how many; None if not known.
        evaluation: The numbers of `evaluation.json`, if the run was evaluated.
        evaluation_file: Where that lies.
    """

    name: str
    train: dict[str, list[float | None]]
    validation: dict[str, list[float | None]]
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[int, str, str]] = field(default_factory=list)
    stall: tuple[float, float] | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    evaluation_file: Path | None = None

    @property
    def restarts(self) -> list[float]:
        """Updates after which the run was started again: there its clock goes back."""
        updates, seconds = self.train["update"], self.train.get("seconds", [])
        return [
            float(updates[place] or 0)
            for place in range(len(seconds) - 1)
            if (seconds[place + 1] or 0) < (seconds[place] or 0)
        ]

    @property
    def skipped(self) -> list[float]:
        """Updates whose gradients were not finite."""
        updates, counts = self.train["update"], self.train.get("skipped_updates", [])
        return [
            float(updates[place] or 0)
            for place in range(len(counts))
            if (counts[place] or 0) > ((counts[place - 1] or 0) if place else 0)
        ]

    @property
    def waiting_share(self) -> float | None:
        """The share of its updates that rank 0 waited for other processes' gradients; None if not known."""
        sums = {
            phase: sum(value or 0.0 for value in self.train.get(f"time_{phase}", []))
            for phase in ("data", "forward", "backward", "gradient_wait", "optimizer")
        }
        whole = sum(sums.values())
        return sums["gradient_wait"] / whole if whole > 0 else None

    @property
    def seconds(self) -> float:
        """Time spent training, over all starts."""
        clock = [value or 0.0 for value in self.train.get("seconds", [])]
        ends = [clock[i] for i in range(len(clock)) if i + 1 == len(clock) or clock[i + 1] < clock[i]]
        return sum(ends)


def read_run(path: str | Path) -> RunRecords:
    """Read a run's records.

    Args:
        path: `runs/NAME`, `runs/structured/NAME`, or a folder above it that holds one run only, such as its
            output folder.

    Raises:
        UserError: There is no run, there are several, or its table cannot be read.
    """
    found = find_runs(Path(path))
    if len(found) > 1:
        raise UserError(f"{path}: holds {len(found)} runs; name one, such as {found[-1]}")
    folder = found[0]
    own = _own_folder(folder)
    config = _flat(_read(folder / "config.yaml", read_yaml))
    run = RunRecords(
        (own or folder).name, read_table(folder / "train.csv"), _read_validations(folder / "val.csv"), config
    )
    run.environment = _read(folder / "environment.json", json.loads)
    samples = _text(folder / "samples.txt")
    heads = list(_SAMPLE.finditer(samples))
    ends = [head.start() for head in heads[1:]] + [len(samples)]
    run.samples = [
        (int(head[1]), head[2], samples[head.end() : end].strip("\n"))
        for head, end in zip(heads, ends, strict=False)
    ]
    output = Path(str(config.get("paths.output_dir") or ""))
    logs, checkpoints = config.get("paths.log_dir"), config.get("paths.checkpoint_dir")
    log = _text((output / str(logs) if logs else (own or output) / "logs") / "train_rank0.log")
    run.stall = _stall_in(log, run.name, is_own=own is not None and not logs)
    shared = output / str(checkpoints) if checkpoints else output / "checkpoints"
    evaluations = []
    for file, is_own in _evaluations(own, [shared.parent, shared, output]):
        evaluation = _read(file, json.loads)
        # Elsewhere lie those of several runs; a run's own folder may have been renamed.
        model = evaluation.get("model")
        if isinstance(model, dict) and (is_own or _ends_with(str(model.get("run")), run.name)):
            evaluations.append((file, evaluation))
    # One on the run's own held-out books says more of it than one on another text.
    evaluations.sort(key=lambda pair: evaluated_on(pair[1]) != str(config.get("data.data_dir")))
    if evaluations:
        run.evaluation_file, run.evaluation = evaluations[0]
    return run


def evaluated_on(evaluation: dict[str, Any]) -> str | None:
    """The data or the texts of an evaluation, as it names them."""
    settings = evaluation.get("settings")
    return str(settings.get("data")) if isinstance(settings, dict) else None


def read_runs(paths: Sequence[str | Path], say: Callable[[str], None]) -> list[RunRecords]:
    """Read the records of all runs in some folders.

    Args:
        paths: See `read_run`; a folder may hold several runs, of which those without an update are left out.
        say: Told which are left out.

    Raises:
        UserError: There is no run in one of them, or none that has begun.
    """
    runs: dict[Path, RunRecords] = {}
    for path in map(Path, paths):
        found = find_runs(path)
        for folder in found:
            try:
                runs.setdefault(folder.resolve(), read_run(folder))
            except UserError as error:
                if len(found) == 1:
                    raise
                say(f"left out: {error}")
    if not runs:
        raise UserError(f"{paths[0]}: none of its runs has made an update yet")
    return list(runs.values())


def last_known(column: Sequence[float | None] | None) -> float | None:
    """The last value of a column that is a number."""
    return next((value for value in reversed(column or []) if value is not None), None)


def best_validation(run: RunRecords) -> tuple[float | None, float | None]:
    """Lowest validation loss, and its update."""
    pairs = zip(run.validation.get("loss", []), run.validation.get("update", []), strict=False)
    known = [(loss, update) for loss, update in pairs if loss is not None and update is not None]
    return min(known, default=(None, None))


def _evaluations(own: Path | None, folders: Sequence[Path]) -> list[tuple[Path, bool]]:
    """Where a run's evaluation may lie, the likeliest first, and whether that folder is the run's own.

    `evaluate` writes beside the checkpoint's folder, wherever that has been moved to, or where it is told to.
    """
    files = [] if own is None else [(own / "evaluation" / EVALUATION, True)]
    for folder in ([] if own is None else [own]) + list(folders):
        beside = folder / "evaluation"
        try:
            others = sorted(beside.glob(f"*/{EVALUATION}"), key=lambda file: -file.stat().st_mtime)
        except (OSError, ValueError):  # a config's path may have a NUL character
            others = []
        files += [(file, False) for file in (beside / EVALUATION, *others)]
    return files


def _stall_in(log: str, name: str, is_own: bool) -> tuple[float, float] | None:
    """What a log says that checkpoints cost the latest start of a run; it may hold several runs, too."""
    starts = list(_STARTED.finditer(log))
    ends = [start.start() for start in starts[1:]] + [len(log)]
    parts = [
        log[start.end() : end]
        for start, end in zip(starts, ends, strict=False)
        if is_own or _ends_with(start[1], name)
    ]
    stalls = _STALL.findall(parts[-1]) if parts else []
    return (float(stalls[-1][0]), float(stalls[-1][1])) if stalls else None


def _ends_with(name: str, last: str) -> bool:
    """Whether a run's name, which may have slashes, is that of a folder."""
    return f"/{name}".endswith(f"/{last}")


def _own_folder(tables: Path) -> Path | None:
    """The folder that a run has to itself, if these are its tables."""
    own = tables.resolve().parent
    return own if (own / RECORD).is_file() else None


def find_runs(path: Path) -> list[Path]:
    """The folders of tables of all runs in a folder, or of the one run that it belongs to.

    Raises:
        UserError: There is none.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; a run's records are in runs/structured/NAME")
    for folder in (path, path / "tables"):
        if (folder / "train.csv").is_file():
            return [folder]
    patterns = ("*/train.csv", "structured/**/train.csv", "runs/structured/**/train.csv")
    tables = [table.parent for pattern in patterns for table in path.glob(pattern)]
    # `runs` itself, the folder that holds it, or one below it, as runs called `sweep/a` and `sweep/b` have.
    for runs in (path / RUNS, path):
        tables += [own / "tables" for own in own_folders(runs) if (own / "tables/train.csv").is_file()]
    found = sorted({folder.resolve(): folder for folder in tables}.values())
    if not found:
        raise UserError(f"{path}: holds no run; name a folder with train.csv, such as runs/structured/NAME")
    return found


def _read_validations(path: Path) -> dict[str, list[float | None]]:
    """The table of validations, of which there may be none yet."""
    try:
        return read_table(path)
    except UserError:
        return {}


def _text(path: Path) -> str:
    try:
        # Another's folder may hold a pipe, or a link to a device, which has no end.
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except (OSError, ValueError):  # its name may come from a config and have a NUL character
        return ""


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """A file's keys and values; what is missing or damaged is left out of the report."""
    try:
        values = parse(_text(path) or "{}")
    except Exception:  # `!!bool maybe` is a KeyError in YAML, `!!timestamp now` an AttributeError
        return {}
    return values if isinstance(values, dict) else {}


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in config.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }


def read_table(path: Path) -> dict[str, list[float | None]]:
    """Read a table's columns.

    Rows that a kill cut off are left out. A value that is not a finite number is None.

    Raises:
        UserError: There is no such table, it cannot be read, or it has no rows.
    """
    if not path.exists():
        raise UserError(f"{path}: no such table; has the run started?")
    if not path.is_file():
        raise UserError(f"{path}: cannot be read: it is a directory, a pipe or a device")
    try:
        # With the mark that spreadsheets put in front of a table.
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    # A row that was cut off has fewer columns.
    rows = [row for row in rows if None not in row.values() and (row.get("update") or "").isdigit()]
    if not rows:
        raise UserError(f"{path}: holds no updates yet; has the run started?")
    return {column: [_number(row[column]) for row in rows] for column in rows[0] if column}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < _LARGEST else None  # NaN neither
