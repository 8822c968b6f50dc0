"""Several runs that differ in a few values: as a Slurm job array, or here, one after another."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_transformer.config import load_config
from horovod_transformer.errors import StoppedError, UserError
from horovod_transformer.launch.subcommand import run_subcommand
from horovod_transformer.system.console import counted
from horovod_transformer.system.files import write_text

# Slurm's usual limit for an array is 1,001 (MaxArraySize).
MOST_RUNS = 1000

JOB_ARRAY = """\
#!/usr/bin/env bash
# {count} that differ in {keys}, a task of a job array each. From the repository's root:
#
#     SITE=mycluster scripts/submit.sh {path}              # docs/slurm.md
#     SITE=mycluster scripts/submit.sh --array=0 {path}    # one of them again: it resumes where it stopped
#
#SBATCH --job-name=sweep
#SBATCH --array={array}
#SBATCH --nodes=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
set -euo pipefail

script={name}
case ${{SLURM_ARRAY_TASK_ID:-none}} in
{cases}
  *)
    echo "$script: submit it as a job array: SITE=mycluster scripts/submit.sh" {path} >&2
    exit 2
    ;;
esac
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${{SLURM_SUBMIT_DIR:-/}}" || [[ ! -f scripts/train_slurm.sh ]]; then
  echo "$script: submit it from the root of the repository" >&2
  exit 2
fi
set -- {config} "${{run[@]}}" "$@"
# shellcheck disable=SC1091
source scripts/train_slurm.sh
"""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: For `--run_name`, made of the keys that have several values, and this run's values.
        overrides: Dotted keys of the config and their values, as text.
    """

    name: str
    overrides: Mapping[str, str]

    def arguments(self, output_dir: str | None = None) -> list[str]:
        """What `train` takes, after its config; `--resume auto` lets a run that was stopped go on."""
        words = ["--run_name", self.name, "--resume", "auto"]
        words += ["--output_dir", output_dir] if output_dir else []
        return words + [word for key, value in self.overrides.items() for word in (f"--{key}", value)]


def sweep_runs(config: str | Path, values: Mapping[str, Sequence[Any]]) -> list[SweepRun]:
    """All combinations of the values, the last key's changing fastest.

    Args:
        config: Path of the YAML config that the runs share.
        values: Dotted key -> values to try, as text or as Python's own.

    Raises:
        UserError: The config is wrong with one of the values, two runs are the same or would have one name,
            or there are none or more than `MOST_RUNS`.
    """
    texts = {key: [_text(value) for value in some] for key, some in values.items()}
    empty = [key for key, some in texts.items() if not some]
    if empty or not texts:
        raise UserError(f"a sweep needs values to try: {empty[0] if empty else 'no key is named'}")
    number = math.prod(len(some) for some in texts.values())
    if number > MOST_RUNS:
        raise UserError(f"a sweep of {number:,} runs is more than a job array takes, {MOST_RUNS:,}")
    varied = [key for key, some in texts.items() if len(some) > 1] or list(texts)
    runs: dict[str, SweepRun] = {}
    for combination in itertools.product(*texts.values()):
        overrides = dict(zip(texts, combination, strict=True))
        run = SweepRun(_name({key: overrides[key] for key in varied}), overrides)
        result = load_config(config, overrides).model_dump_json()
        if result in runs:
            raise UserError(f"{run.name} and {runs[result].name} are the same run; name each value once")
        runs[result] = run
    names = Counter(run.name for run in runs.values())
    if len(names) < len(runs):
        raise UserError(f"two of the runs would be called {names.most_common(1)[0][0]}")
    return list(runs.values())


def write_job_array(
    path: Path,
    config: str | Path,
    runs: Sequence[SweepRun],
    output_dir: str | None = None,
    at_once: int | None = None,
) -> None:
    """Write a script for `scripts/submit.sh`: a job array, each task one run through scripts/train_slurm.sh.

    Args:
        path: The script; its name should end in `.sh`, for `scripts/submit.sh` knows it by that.
        config: Path of the shared config, from the repository's root.
        runs: Of `sweep_runs`.
        output_dir: For `--output_dir`; None: the config's own.
        at_once: Most tasks that run at the same time; None: as many as Slurm starts.
    """
    cases = [
        f"  {number}) run=({shlex.join(run.arguments(output_dir))}) ;;" for number, run in enumerate(runs)
    ]
    text = JOB_ARRAY.format(
        count=counted(len(runs), "run"),
        keys=", ".join(runs[0].overrides),
        path=shlex.quote(str(path)),
        name=shlex.quote(path.name),
        array=f"0-{len(runs) - 1}" + (f"%{at_once}" if at_once else ""),
        cases="\n".join(cases),
        config=shlex.quote(str(config)),
    )
    write_text(path, text)
    path.chmod(0o755)


def run_here(
    config: str | Path, runs: Sequence[SweepRun], processes: int = 1, output_dir: str | None = None
) -> None:
    """Train one after another on this machine; a run that fails does not keep the others from running.

    Raises:
        StoppedError: A signal has stopped one; the same call goes on with it.
        UserError: Some have failed; the line names them.
    """
    failed = []
    for number, run in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {run.name}", flush=True)
        try:
            run_subcommand(processes, "train", ["--config", str(config), *run.arguments(output_dir)])
        except StoppedError:
            raise
        except UserError:
            failed.append(run.name)
    if failed:
        raise UserError(
            f"{len(failed)} of {counted(len(runs), 'run')} failed, see above: {', '.join(failed)}"
        )


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _name(overrides: Mapping[str, str]) -> str:
    last = [key.rpartition(".")[2] for key in overrides]
    keys = last if len(set(last)) == len(last) else [key.replace(".", "_") for key in overrides]
    parts = (f"{key}-{value}" for key, value in zip(keys, overrides.values(), strict=True))
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(parts))
