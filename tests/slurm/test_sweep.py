"""A sweep as a job array, through `scripts/submit.sh`, on a real Slurm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from slurm_cluster import Submitter, tiny_run, wait_for

from horovod_transformer.planning.sweep import sweep_runs, write_job_array

pytestmark = [pytest.mark.slurm, pytest.mark.more]


def test_two_runs_and_one_of_them_again(root: Path, submitter: Submitter, prepared_data: Path) -> None:
    checkout, slurm = submitter.checkout, submitter.slurm
    shutil.copy(root / "tests/slurm/made_up_site.sh", checkout)
    runs = sweep_runs(checkout / "configs/config.yaml", {"training.learning_rate": [1e-3, 3e-4]})
    write_job_array(checkout / "sweep.sh", "configs/config.yaml", runs, output_dir="results", at_once=1)

    def submit(*options: str, updates: int) -> str:
        words = ["scripts/submit.sh", "--parsable", *options, "sweep.sh", *tiny_run(prepared_data, updates)]
        environment = {**slurm.environment, "OMP_NUM_THREADS": "1", "SITE": "./made_up_site.sh"}
        finished = subprocess.run(words, cwd=checkout, env=environment, text=True, capture_output=True)
        assert finished.returncode == 0, finished.stderr
        job = finished.stdout.strip()
        wait_for("the sweep to end", lambda: not slurm.run("squeue", "-h", f"--jobs={job}"), timeout=600)
        return job

    def updates(name: str) -> list[int]:
        lines = (checkout / f"results/runs/{name}/tables/train.csv").read_text().splitlines()
        place = lines[0].split(",").index("update")
        return [int(line.split(",")[place]) for line in lines[1:]]

    job = submit(updates=3)
    output = "".join(path.read_text() for path in checkout.glob(f"slurm-{job}_*.out"))
    assert output.count("done: 3 updates") == 2, output
    for run in runs:
        assert updates(run.name) == [1, 2, 3]
        environment = json.loads((checkout / f"results/runs/{run.name}/tables/environment.json").read_text())
        assert environment["world_size"] == 2
    submit("--array=1", updates=5)
    assert (updates(runs[0].name), updates(runs[1].name)) == ([1, 2, 3], [1, 2, 3, 4, 5])
