"""`plan --sweep`: several runs that differ in a few values, here or as a Slurm job array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.errors import UserError
from horovod_transformer.planning.sweep import run_here, sweep_runs, write_job_array
from horovod_transformer.system.console import counted


def sweep(config: str, given: Sequence[str], script: str | None) -> None:
    """Write a job array, or train all combinations here.

    Args:
        config: Path of the YAML config that the runs share.
        given: As on the command line, such as `training.learning_rate=1e-3,3e-3`.
        script: The job array to write; None trains here.

    Raises:
        UserError: A key or value does not hold, or a run has failed.
    """
    values: dict[str, list[str]] = {}
    for text in given:
        key, equals, some = text.partition("=")
        if not equals or key in values:
            raise UserError(f"--sweep {text}: should be KEY=VALUE,VALUE,..., each key once")
        values[key] = some.split(",")
    runs = sweep_runs(config, values)
    if script is None:
        run_here(config, runs)
        print("next: horovod-transformer report runs (all of them, the best first)")
        return
    write_job_array(Path(script), config, runs)
    print(f"written: {script}, a job array of {counted(len(runs), 'run')}")
    print(f"next: scripts/submit.sh {script}")
