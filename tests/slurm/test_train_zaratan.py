"""`sbatch scripts/train_zaratan.sh configs/config.yaml`, submitted to a real Slurm."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, wait_for

from horovod_transformer.checkpoint.format import load_checkpoint

pytestmark = pytest.mark.slurm

PROMISED = ("scripts/train_zaratan.sh", "configs/config.yaml")
ONE_LINE = "train_zaratan.sh: "
# Slurm promises four GPUs that are none. Where the machine has a real one, the ranks must not fall for it:
# a module that hides it, loaded in the way of every module.
NO_GPU = {"HT_MODULES": "no-gpu", "BASH_FUNC_module%%": "() { export CUDA_VISIBLE_DEVICES=; }"}


def tiny_run(data: Path, updates: int) -> list[str]:
    """Overrides that make the default config a run of seconds on a CPU."""
    values = {
        "model.vocab_size": 300,
        "model.d_model": 32,
        "model.n_layers": 1,
        "model.n_heads": 2,
        "model.d_ff": 64,
        "model.max_seq_len": 32,
        "training.max_updates": updates,
        "training.epochs": 1000,
        "training.global_batch_size": 8,
        "training.per_gpu_batch_size": 4,
        "training.log_interval": 1,
        "training.eval_interval": 1000,
        "training.eval_blocks": 8,
        "data.data_dir": data,
        "data.num_workers": 0,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


class Submitter:
    """Submits jobs from a checkout and reads what they leave."""

    def __init__(self, slurm: SlurmCluster, checkout: Path) -> None:
        self.slurm, self.checkout = slurm, checkout

    def submit(self, *command: str, folder: Path | None = None, **variables: str) -> str:
        """Submit a job, from the checkout if no other folder is named; returns its number."""
        # Four ranks on two cores: one thread each.
        environment = {**self.slurm.environment, "OMP_NUM_THREADS": "1", **variables}
        finished = subprocess.run(
            ["sbatch", "--parsable", *command],
            cwd=folder or self.checkout,
            env=environment,
            timeout=120,
            text=True,
            capture_output=True,
        )
        assert finished.stdout, finished.stderr
        return finished.stdout.split()[0]

    def output(self, job: str, folder: Path | None = None) -> str:
        path = (folder or self.checkout) / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def updates(self, job: str) -> list[int]:
        """The updates that stand in the job's train.csv, in order."""
        path = self.checkout / "runs" / "structured" / f"slurm-{job}" / "train.csv"
        if not path.exists():
            return []
        with open(path, newline="") as file:
            return [int(row["update"]) for row in csv.DictReader(file) if row["update"]]

    def wait(self, job: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of these states; returns all about it."""
        try:
            wait_for(f"job {job}", lambda: self.slurm.job(job)["JobState"] in states)
        except TimeoutError as error:
            pytest.fail(f"{error}: {self.slurm.job(job)['JobState']}; its output:\n{self.output(job)}")
        return self.slurm.job(job)

    def warn(self, job: str) -> None:
        """Send what Slurm sends when the time limit is near."""
        self.slurm.run("scancel", "--batch", "--signal=USR1", job)


@pytest.fixture
def submitter(slurm: SlurmCluster, checkout: Path) -> Submitter:
    return Submitter(slurm, checkout)


def test_the_promised_command_trains_on_four_processes(submitter: Submitter, prepared_data: Path) -> None:
    job = submitter.submit(*PROMISED, *tiny_run(prepared_data, 4), **NO_GPU)

    assert submitter.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0", submitter.output(job)
    checkout = submitter.checkout
    for promised in ("checkpoints/best_model.pt", "checkpoints/last.pt", "logs/train_rank3.log"):
        assert (checkout / promised).exists()
    assert submitter.updates(job) == [1, 2, 3, 4]
    run = checkout / "runs" / "structured" / f"slurm-{job}"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 4
    assert "4 process(es)" in submitter.output(job)


def test_a_job_near_its_time_limit_saves_queues_itself_again_and_resumes(
    submitter: Submitter, prepared_data: Path
) -> None:
    # With Horovod waking every 10 ms, 400 updates take more than the 2 s between two signals to the ranks.
    job = submitter.submit("--gres=gpu:h100:2", *PROMISED, *tiny_run(prepared_data, 400), **NO_GPU)

    # At the worst of times: the ranks are starting up and would die of USR1, as would horovodrun.
    wait_for("the start", lambda: "start 1" in submitter.output(job))
    submitter.warn(job)
    wait_for("the second start", lambda: "start 2" in submitter.output(job))
    stopped = re.search(r"stopped after update (\d+) \(", submitter.output(job))
    assert stopped, submitter.output(job)

    other = submitter.submit(*PROMISED)
    submitter.wait(other, "FAILED")
    assert submitter.output(other).startswith(f"{ONE_LINE}job {job} writes to {submitter.checkout};")

    ended = submitter.wait(job, "COMPLETED", "FAILED")
    output = submitter.output(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), output
    assert f"resuming after update {stopped[1]}" in output
    assert submitter.updates(job) == list(range(1, 401))
    assert load_checkpoint(submitter.checkout / "checkpoints" / "last.pt")["progress"]["update"] == 400


def test_a_cancelled_job_leaves_a_checkpoint(submitter: Submitter, prepared_data: Path) -> None:
    output_dir = submitter.checkout / "other"
    job = submitter.submit(
        "--gres=gpu:h100:2",
        *PROMISED,
        *tiny_run(prepared_data, 100_000),
        f"--output_dir={output_dir}",
        **NO_GPU,
    )
    table = output_dir / "runs" / "structured" / f"slurm-{job}" / "train.csv"
    wait_for("updates", lambda: table.exists() and table.read_text().count("\n") > 3)
    submitter.slurm.run("scancel", job)
    wait_for("the end", lambda: not submitter.slurm.run("squeue", "-h", f"--jobs={job}"))

    assert submitter.slurm.job(job)["JobState"] == "CANCELLED"
    assert submitter.slurm.job(job)["Restarts"] == "0"
    stopped = load_checkpoint(output_dir / "checkpoints" / "last.pt")["progress"]["update"]
    # Why it stopped is told by rank 0: its own signal, or another rank's that was a moment earlier.
    assert f"stopped after update {stopped} (" in (output_dir / "logs" / "train_rank0.log").read_text()
    assert not (submitter.checkout / "checkpoints").exists()


@pytest.fixture
def recording_launcher(tmp_path: Path) -> Path:
    """An environment whose `horovodrun` notes its arguments and ends well as soon as its rank gets USR1."""
    launcher = tmp_path / "recording" / "bin" / "horovodrun"
    launcher.parent.mkdir(parents=True)
    rank = (
        'import signal; signal.signal(signal.SIGUSR1, lambda *_: exit()); open("ready", "w"); signal.pause()'
    )
    launcher.write_text(f"#!/bin/sh\necho \"$@\" >> arguments\nHOROVOD_RANK=0 {sys.executable} -c '{rank}'\n")
    launcher.chmod(0o755)
    (launcher.parent / "python").symlink_to(sys.executable)
    return launcher.parents[1]


def test_a_job_queued_again_forgets_what_it_was_to_begin_with(
    submitter: Submitter, recording_launcher: Path
) -> None:
    job = submitter.submit(
        *PROMISED, "--init_from", "old.pt", "--training.seed", "7", HT_VENV=str(recording_launcher)
    )
    ready = submitter.checkout / "ready"
    wait_for("the rank", ready.exists)
    ready.unlink()
    submitter.warn(job)
    wait_for("the second start", ready.exists)
    submitter.slurm.run("scancel", job)

    first, second = (submitter.checkout / "arguments").read_text().splitlines()
    common = f"-np 4 python -m src.train --config configs/config.yaml --run_name slurm-{job}"
    assert first == f"{common} --init_from old.pt --training.seed 7"
    assert second == f"{common} --training.seed 7 --resume auto"


def test_a_job_that_may_not_be_queued_again_says_how_to_resume(
    submitter: Submitter, recording_launcher: Path
) -> None:
    job = submitter.submit("--no-requeue", *PROMISED, HT_VENV=str(recording_launcher))
    wait_for("the rank", (submitter.checkout / "ready").exists)
    submitter.warn(job)

    assert submitter.wait(job, "FAILED", "COMPLETED")["ExitCode"] == "2:0"
    assert "to go on, submit it once more with --resume auto" in submitter.output(job)


def test_a_failed_job_is_not_queued_again(submitter: Submitter) -> None:
    job = submitter.submit(*PROMISED, "--training.epochs", "none", HT_PROCESSES="1")

    ended = submitter.wait(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0")
    assert "training.epochs" in submitter.output(job)
    assert "1 process(es)" in submitter.output(job)


def test_sbatch_options_and_variables_override_the_defaults(submitter: Submitter) -> None:
    default = submitter.slurm.job(submitter.submit("--hold", *PROMISED))
    other = submitter.slurm.job(
        submitter.submit(
            "--hold",
            "--account=physics",
            "--partition=gpu",
            "--gres=gpu:h100:2",
            *PROMISED,
            SBATCH_TIMELIMIT="2:00:00",
        )
    )
    for job in (default, other):
        submitter.slurm.run("scancel", job["JobId"])

    assert default["Partition"] == "gpu-h100"
    assert default["TresPerNode"].endswith("gpu:h100:4")
    assert (default["NumNodes"].split("-")[0], default["NumTasks"], default["Requeue"]) == ("1", "4", "1")
    assert other["Account"] == "physics"
    assert other["Partition"] == "gpu"
    assert other["TresPerNode"].endswith("gpu:h100:2")
    assert other["TimeLimit"] == "02:00:00"


def test_modules_are_loaded_before_the_environment_is_looked_at(submitter: Submitter) -> None:
    module = {"BASH_FUNC_module%%": '() { echo "module $*"; [ "$2" != nonsense ]; }', "HT_VENV": "/no/venv"}
    job = submitter.submit(*PROMISED, HT_MODULES="gcc/12 cuda/13", **module)
    submitter.wait(job, "FAILED")
    assert submitter.output(job).splitlines()[:2] == ["module purge", "module load gcc/12 cuda/13"]
    assert "/no/venv: no environment with Horovod here" in submitter.output(job)

    job = submitter.submit(*PROMISED, HT_MODULES="nonsense", **module)
    submitter.wait(job, "FAILED")
    assert f"{ONE_LINE}could not load the modules nonsense (HT_MODULES)" in submitter.output(job)


@pytest.mark.parametrize(
    ("options", "arguments", "variables", "complaint"),
    [
        pytest.param([], ["configs/absent.yaml"], {}, "configs/absent.yaml: no such config", id="config"),
        pytest.param([], [], {"HT_VENV": "/no/venv"}, "/no/venv: no environment with Horovod", id="venv"),
        pytest.param([], [], {"HT_PROCESSES": "many"}, "many is no number of processes", id="processes"),
        pytest.param(["--nodes=2"], [], {}, "this script uses one node, but the job has 2", id="nodes"),
    ],
)
def test_a_mistake_is_one_line(
    submitter: Submitter, options: list[str], arguments: list[str], variables: dict[str, str], complaint: str
) -> None:
    job = submitter.submit(*options, PROMISED[0], *arguments, **variables)

    assert submitter.wait(job, "FAILED")["ExitCode"] == "2:0"
    assert submitter.output(job).startswith(ONE_LINE)
    assert complaint in submitter.output(job)
    assert submitter.output(job).count("\n") == 1


def test_another_submit_folder_is_refused(submitter: Submitter, tmp_path: Path) -> None:
    script = str(submitter.checkout / PROMISED[0])
    job = submitter.submit(script, PROMISED[1], folder=tmp_path)

    submitter.wait(job, "FAILED")
    output = submitter.output(job, folder=tmp_path)
    assert output.startswith(f"{ONE_LINE}{tmp_path} is not the root of the repository")
    assert output.count("\n") == 1


def test_outside_of_slurm_it_says_how_to_submit(submitter: Submitter) -> None:
    finished = subprocess.run(
        PROMISED,
        cwd=submitter.checkout,
        env=submitter.slurm.environment,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert finished.returncode == 2
    assert "submit it with sbatch scripts/train_zaratan.sh" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_the_scripts_pass_shellcheck(root: Path) -> None:
    if shutil.which("shellcheck") is None:
        subprocess.run([root / "scripts" / "install_system_packages.sh", "shellcheck"], timeout=300)
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck here")
    scripts = sorted(str(path) for path in (root / "scripts").glob("*.sh"))
    finished = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout
