"""A user's mistake under horovodrun: one line, from one rank, and nobody waits."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.distributed

SCRIPT = """
import sys
from horovod_transformer.command_line import run_command
from src.utils.distributed import setup_horovod
def main(arguments):
    print(setup_horovod(require_distributed=True))
    return 0
sys.exit(run_command(main))
"""


def lines_of_ours(job):
    """What the ranks printed on stderr, without horovodrun's own words."""
    return re.findall(r"^\[(\d)\]<stderr>:(.*)$", job.stderr, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.data_dir", "nowhere"], "error: nowhere: no prepared data here; run"),
        (["--training.epochs", "many"], "error: command line: training.epochs = 'many'"),
        (
            ["--training.global_batch_size", "1"],
            "error: training.global_batch_size = 1: 2 processes cannot share",
        ),
        (["--resume", "missing.pt"], "error: missing.pt: no such checkpoint file"),
    ],
    ids=["data", "config", "batch", "checkpoint"],
)
def test_all_ranks_make_the_same_mistake(write_config, run_job, tmp_path, arguments, told):
    config = write_config(tmp_path / "config.yaml")
    command = ["-m", "src.train", "--config", str(config), "--output_dir", str(tmp_path), *arguments]
    job = run_job(2, *command, timeout=60)
    assert job.process.returncode != 0
    (only,) = lines_of_ours(job)
    assert only[0] == "0" and only[1].startswith(told)


@pytest.mark.parametrize(("split", "loaders"), [("train", 0), ("train", 2), ("validation", 2)])
def test_a_row_that_one_rank_alone_meets(make_corpus, write_config, run_job, tmp_path, split, loaders):
    # Validation block 1 is rank 1's; training block 0 is met by whoever the order gives it to.
    data = make_corpus(tmp_path / "data", bad_row=1, bad_split=split)
    config = write_config(tmp_path / "config.yaml", data__data_dir=str(data), data__num_workers=loaders)
    job = run_job(2, "-m", "src.train", "--config", str(config), "--output_dir", str(tmp_path), timeout=60)
    assert job.process.returncode != 0
    errors = [text for _, text in lines_of_ours(job) if text.startswith("error: ")]
    assert errors == [
        f"error: {data}/{split}, row 1: token id 55 is outside the vocabulary of 48; was the data prepared with "
        "another tokenizer, or damaged?"
    ]
    assert "Traceback" not in "".join(text for _, text in lines_of_ours(job))


def test_a_bug_on_one_rank_ends_the_job_with_its_traceback(run_job, tmp_path):
    script = tmp_path / "bug.py"
    script.write_text(
        "import sys\nsys.path.insert(0, '.')\n"
        "from horovod_transformer import distributed\n"
        "_, rank, _, _ = distributed.setup_horovod()\n"
        "def act():\n    if rank == 1:\n        raise ZeroDivisionError('a bug')\n"
        "distributed.together(act)\n"
    )
    job = run_job(2, str(script), timeout=30 + 30)
    assert job.process.returncode != 0
    assert ("1", "ZeroDivisionError: a bug") in lines_of_ours(job)


def test_a_lone_process_is_told_how_to_be_launched(run_job):
    job = run_job(1, "-c", SCRIPT)
    assert job.process.returncode == 2
    assert re.fullmatch(
        r"error: this is a single process, .*`horovodrun -np 2 python \.\.\.`.*\n", job.stderr
    )


@pytest.mark.parametrize(
    ("variable", "launcher"),
    [
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("PMI_SIZE", "mpiexec"),
        ("SLURM_STEP_NUM_TASKS", "srun"),
        ("WORLD_SIZE", "torchrun"),
    ],
)
def test_other_launchers_are_refused(run_job, variable, launcher):
    job = run_job(1, "-c", SCRIPT.replace("True", "False"), **{variable: "4"})
    assert job.process.returncode == 2
    assert job.stderr.startswith(
        f"error: {launcher} started 4 processes ({variable}) that Horovod does not know of"
    )
    assert job.stderr.count("\n") == 1
    alone = run_job(1, "-c", SCRIPT.replace("True", "False"), **{variable: "1"})
    assert alone.stdout == "(1, 0, 0, False)\n"
