"""Print the update of a run's newest checkpoint, 0 if there is none: has a start made progress?

Takes the arguments of `python -m src.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.checkpoint.run_folders import newest_update, own_folders, read_launch
from horovod_transformer.checkpoint.run_paths import (
    RUNS,
    has_shared_checkpoints,
    run_paths,
    shown_checkpoints,
)
from horovod_transformer.commands.command_line import parse_with_config, run_command
from horovod_transformer.commands.train import make_parser
from horovod_transformer.config_sections import PathsConfig
from horovod_transformer.system.launch_environment import this_process


def main(arguments: Sequence[str]) -> int:
    """Look for the checkpoints that training with these arguments would write."""
    options, config = parse_with_config(make_parser(), arguments)
    paths = config.with_paths_in(options.output_dir).paths if options.output_dir else config.paths
    folders = checkpoint_folders(paths, options.run_name, this_process().job)
    print(max(map(newest_update, folders), default=0))
    return 0


def checkpoint_folders(paths: PathsConfig, name: str | None, job: str | None) -> list[Path]:
    """Where the run of this name writes; without a name, the runs that this job has begun or resumed."""
    if name is not None or paths.checkpoint_dir is not None:
        return [run_paths(paths, name or "unnamed").checkpoints]
    folders = [own / "checkpoints" for own in own_folders(Path(paths.output_dir, RUNS))]
    folders = [folder for folder in folders if (read_launch(folder) or "").partition("\n")[0] == job]
    return folders + ([shown_checkpoints(paths)] if has_shared_checkpoints(paths) else [])


if __name__ == "__main__":
    sys.exit(run_command(main))
