"""A user's mistake under horovodrun: one line, from one rank, and nobody waits."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.distributed

SCRIPT = """
import sys
from horovod_transformer.commands.command_line import run_command
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
    ],
    ids=["data", "config"],
)
def test_all_ranks_make_the_same_mistake(write_config, run_job, tmp_path, arguments, told):
    config = write_config(tmp_path / "config.yaml")
    command = ["-m", "src.train", "--config", str(config), "--output_dir", str(tmp_path), *arguments]
    job = run_job(2, *command)
    assert job.process.returncode != 0
    rank, text = lines_of_ours(job)[0]
    assert rank == "0" and text.startswith(told)
    # "Terminated" is the word of horovodrun's shell for the rank that let the other speak first.
    assert [text for _, text in lines_of_ours(job)[1:]] in ([], ["Terminated"])


@pytest.mark.parametrize(("split", "loaders"), [("train", 2), ("validation", 0)])
def test_a_row_that_one_rank_alone_meets(make_corpus, write_config, run_job, tmp_path, split, loaders):
    # Validation block 1 is rank 1's; whose training block 1 is, the order decides.
    data = make_corpus(tmp_path / "data", bad_row=1, bad_split=split)
    config = write_config(tmp_path / "config.yaml", data__data_dir=str(data), data__num_workers=loaders)
    job = run_job(2, "-m", "src.train", "--config", str(config), "--output_dir", str(tmp_path))
    assert job.process.returncode != 0
    told = [text for _, text in lines_of_ours(job) if text.startswith("error: ")]
    row = f"error: {data}/{split}, row 1: token id 55 is outside the vocabulary of 48; was the data prepared"
    assert len([text for text in told if text.startswith(row)]) == 1
    # The rank that was left alone may still get to say so.
    assert all(text.startswith((row, "error: another process of this job has ended")) for text in told)
    assert "Traceback" not in "".join(text for _, text in lines_of_ours(job))


def test_a_bug_on_one_rank_ends_the_job_with_its_traceback(run_job, tmp_path):
    script = tmp_path / "bug.py"
    script.write_text(
        "import sys\nsys.path.insert(0, '.')\n"
        "from horovod_transformer import distributed\n"
        "_, rank, _, _ = distributed.setup_horovod()\n"
        "def act():\n    if rank == 1:\n        raise ZeroDivisionError('a bug')\n"
        "distributed.raise_on_all_ranks(act)\n"
    )
    job = run_job(2, str(script))
    assert job.process.returncode != 0
    assert ("1", "ZeroDivisionError: a bug") in lines_of_ours(job)


def test_a_lone_process_is_told_how_to_be_launched(run_job):
    job = run_job(1, "-c", SCRIPT)
    assert job.process.returncode == 2
    assert re.fullmatch(
        r"error: this is a single process, .*`horovodrun -np 2 python \.\.\.`.*\n", job.stderr
    )


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a host name needs root"
)


@pytest.fixture
def nowhere(root, tmp_path):
    """`nowhere(words, **variables)` runs a command on a host whose own name has an address of yesterday."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n192.0.2.99 nowhere\n")
    script = 'mount --bind "$1" /etc/hosts; shift; hostname nowhere; exec "$@"'
    elsewhere = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh", str(tmp_path / "hosts")]

    def run(words, **variables):
        return subprocess.run(
            [*elsewhere, *words],
            env={**os.environ, **variables},
            cwd=root,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    return run


@needs_root
def test_a_host_name_that_leads_nowhere_is_one_line(nowhere):
    """Where no interface is named, Gloo would end the process in C++."""
    with socket.create_server(("127.0.0.1", 0)) as horovodrun:
        address, port = horovodrun.getsockname()
        ranks = {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}
        ranks |= {"HOROVOD_GLOO_RENDEZVOUS_ADDR": address, "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port)}
        done = nowhere([sys.executable, "-c", SCRIPT], **ranks)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: host nowhere: its own name stands for no address of that machine")


@needs_root
@pytest.mark.parametrize("launcher", ["launch", "horovodrun"])
def test_ranks_of_one_machine_do_not_need_its_name(nowhere, tmp_path, launcher):
    """A laptop, a container: there is always the loopback interface."""
    script = tmp_path / "sum.py"
    script.write_text(
        "import sys; sys.path.insert(0, '.')\nfrom horovod_transformer import distributed\n"
        "distributed.setup_horovod(require_distributed=True)\n"
        "print(distributed.metric_average(float(distributed.get_rank()), 'mean'))\n"
    )
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2"]
    launch = [sys.executable, "-m", "horovod_transformer", "launch", "-np", "2", "--"]
    words = launch if launcher == "launch" else horovodrun
    done = nowhere([*words, sys.executable, str(script)])
    assert done.returncode == 0, done.stderr
    assert "0.5" in done.stdout
