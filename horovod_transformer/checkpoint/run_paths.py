"""Where the files of a run lie.

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

from dataclasses import dataclass
from pathlib import Path

from horovod_transformer.config_sections import TABLES, PathsConfig

RUNS, RECORD = "runs", "run.json"
LAST, BEST = "last.pt", "best_model.pt"
# Where the demo's run writes.
DEMO_OUTPUT = "demo/run"
# Names the launch (a Slurm job, say) that began or resumed the run last; beside its checkpoints.
LAUNCH = ".launch"
# Names the checkpoint that the run is being rewound to, while that takes; there, too.
REWIND = ".rewind.json"


def is_run_name(name: str) -> bool:
    """Whether a name stands for a folder below `runs/`, and not for one that has another purpose."""
    parts = name.split("/")
    sound = all(part.strip() and not part.startswith(".") and part.isprintable() for part in parts)
    return sound and parts[0] != TABLES


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
