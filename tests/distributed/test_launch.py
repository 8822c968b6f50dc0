"""`horovod-transformer launch`: real ranks, real signals, and what the screen and the exit code say."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import psutil
import pytest

from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.distributed

LAUNCH = ["-m", "horovod_transformer", "launch", "-np", "2"]
TRAIN = ["python", "-m", "src.train", "--run_name", "run"]
ENDLESS = {"training__max_updates": 5000, "training__epochs": 5000}

ONE_RANK_FAILS = """
import sys
sys.path.insert(0, '.')
from horovod_transformer import distributed
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.errors import UserError

def main(arguments):
    _, rank, _, _ = distributed.setup_horovod(require_distributed=True)
    with distributed.lost_ranks_explained():
        if rank == 1:
            error = UserError('row 3 is bad')
            error.only_here = True
            raise error
        distributed.metric_average(1.0, 'never')
    return 0

sys.exit(run_command(main))
"""

DEAF = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
open(f"{__file__}.{os.environ['RANK']}", 'w')
time.sleep(3600)
"""

LISTEN = """
import os, signal, sys
signals = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
mine = f"{__file__}.{os.environ['RANK']}"
open(f"{mine}.ready", "w").close()
with open(mine, "w") as file:
    file.write(signal.Signals(signal.sigwait(signals)).name)
sys.exit(75)
"""


def wait_for(true, limit=PATIENCE_S):
    end = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def ranks_of(job):
    found = {}
    for process in psutil.Process(job.process.pid).children():
        if rank := process.environ().get("RANK"):
            found[int(rank)] = process
    return found


def assert_ranks_end_with(job):
    """Kill a launcher: its two ranks, which would idle on, end."""
    ranks = ranks_of(job)
    assert sorted(ranks) == [0, 1]
    job.process.kill()
    _, alive = psutil.wait_procs(ranks.values(), timeout=60)
    for process in alive:
        process.kill()
    assert not alive


def test_a_signal_is_a_clean_stop_of_all_ranks(write_config, start_job, outcome_of, tmp_path):
    config = write_config(tmp_path / "config.yaml", **ENDLESS)
    arguments = [*TRAIN, "--config", str(config), "--output_dir", str(tmp_path)]
    table = tmp_path / "runs" / "structured" / "run" / "train.csv"
    with start_job(1, *LAUNCH, "--max-restarts", "3", "--", *arguments) as job:
        wait_for(lambda: table.exists() and len(table.read_text().splitlines()) > 3)
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait() == 75, job.stderr
    assert "(SIGUSR1)" in job.stdout
    assert "Traceback" not in job.stderr and "launch:" not in job.stderr
    outcome = outcome_of(tmp_path)
    assert int(outcome.rows[-1]["update"]) == outcome.state["progress"]["update"] < 5000


def test_every_signal_reaches_all_ranks(start_job, tmp_path):
    # Training treats them alike (tests/system/test_signals.py); these ranks only say which came.
    # A closed terminal (SIGHUP) reaches the ranks as SIGTERM.
    received = {"TERM": "TERM", "USR1": "USR1", "USR2": "USR2", "INT": "INT", "HUP": "TERM"}
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if all tests run under nohup
    with ExitStack() as jobs:
        jobs.callback(signal.signal, signal.SIGHUP, before)
        started = {}
        for sent in received:  # all at once: most of it is starting up
            (tmp_path / sent).mkdir()
            script = tmp_path / sent / "listen.py"
            script.write_text(LISTEN)
            words = [*LAUNCH, "--max-restarts", "3", "--", "python", str(script)]
            started[sent] = jobs.enter_context(start_job(1, *words))
        for sent, job in started.items():
            wait_for(lambda sent=sent: len(list((tmp_path / sent).glob("*.ready"))) == 2)
            job.process.send_signal(getattr(signal, f"SIG{sent}"))
        for sent, job in started.items():
            assert job.wait() == 75, job.stderr
            told = [(tmp_path / sent / f"listen.py.{rank}").read_text() for rank in (0, 1)]
            assert told == [f"SIG{received[sent]}"] * 2
            assert job.stderr == ""


def test_a_shell_between_does_not_keep_the_ranks_from_saving(write_config, start_job, outcome_of, tmp_path):
    # It dies of the signal that its rank obeys.
    config = write_config(tmp_path / "config.yaml", **ENDLESS)
    script = f"python -m src.train --config {config} --output_dir {tmp_path} --run_name run; true"
    table = tmp_path / "runs" / "structured" / "run" / "train.csv"
    with start_job(1, *LAUNCH, "--", "sh", "-c", script) as job:
        wait_for(lambda: table.exists() and len(table.read_text().splitlines()) > 3)
        ranks = [rank for shell in ranks_of(job).values() for rank in shell.children()]
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() == 75, job.stderr
        assert len(ranks) == 2
        _, alive = psutil.wait_procs(ranks, timeout=PATIENCE_S)
        assert not alive
    outcome = outcome_of(tmp_path)
    assert int(outcome.rows[-1]["update"]) == outcome.state["progress"]["update"] < 5000


def test_under_nohup_a_closed_terminal_ends_nothing(start_job, tmp_path):
    script = tmp_path / "listen.py"
    script.write_text(LISTEN)
    words = [sys.executable, *LAUNCH, "--", "python", str(script)]
    ignore = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with start_job(1, "-c", f"{ignore}; os.execv(sys.argv[1], sys.argv[1:])", *words) as job:
        wait_for(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
        job.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait() == 75, job.stderr
    assert [(tmp_path / f"listen.py.{rank}").read_text() for rank in (0, 1)] == ["SIGUSR1"] * 2


def test_a_requeued_job_starts_the_same_launch(run_job):
    words = [*LAUNCH, "--", "sh", "-c", "echo $TORCHELASTIC_RUN_ID"]
    names = [run_job(1, *words, **job).stdout for job in ({"SLURM_JOB_ID": "7"},) * 2 + ({},) * 2]
    assert names[0] == names[1] == "7\n"
    assert len(set(names)) == 3 and "\n" not in names


def test_each_start_has_a_secret_of_its_own(run_job):
    # Not in a command line, which all users of a machine can read.
    script = "echo $HOROVOD_TRANSFORMER_SECRET; cat /proc/$$/cmdline /proc/$PPID/cmdline >&2; exit 3"
    words = [*LAUNCH, "--max-restarts", "1", "--", "sh", "-c", script]
    job = run_job(1, *words, HOROVOD_TRANSFORMER_SECRET="of who has started the launcher")
    secrets = job.stdout.split()
    assert len(set(secrets)) == 2 and all(re.fullmatch("[0-9a-f]{64}", secret) for secret in secrets)
    assert "launch" in job.stderr and not any(secret in job.stderr for secret in secrets)


def test_a_mistake_is_the_one_line_and_is_not_started_again(write_config, run_job, tmp_path):
    config = write_config(tmp_path / "config.yaml")
    arguments = ["--config", str(config), "--output_dir", str(tmp_path), "--data.data_dir", "nowhere"]
    job = run_job(1, *LAUNCH, "--max-restarts", "3", "--", *TRAIN, *arguments)
    assert job.process.returncode == 2
    assert re.fullmatch(r"error: nowhere: no prepared data here; .*\n", job.stderr)


def test_the_first_failing_ranks_line_is_the_last_on_the_screen(run_job, tmp_path):
    script = tmp_path / "one_rank_fails.py"
    script.write_text(ONE_RANK_FAILS)
    job = run_job(1, *LAUNCH, "--max-restarts", "3", "--", "python", str(script))
    assert job.process.returncode == 2
    told = [line for line in job.stderr.splitlines() if not line.startswith("[")]
    assert told == [
        "error: another process of this job has ended; what it printed tells why",
        "rank 1: error: row 3 is bad",
    ]


def test_the_exit_code_comes_through(start_job):
    expected = [
        ("exit 7", 0, 7, ["launch: rank 0 ended with exit code 7"]),
        ("kill -KILL $$", 0, 137, ["launch: rank 0 was ended by SIGKILL"]),
        ("kill -40 $$", 0, 168, ["launch: rank 0 was ended by signal 40"]),  # of no name
        # Not worth another start, as are 2 and 75 (above).
        ("exit 0", 3, 0, []),
    ]
    with ExitStack() as jobs:
        started = []
        for command, restarts, code, _ in expected:  # all at once: most of it is starting up
            seconds = 1 if code == 0 else 3600  # after a failure nobody waits for the other rank
            script = f"[ $RANK = 1 ] && exec sleep {seconds}; {command}"
            words = [*LAUNCH, "--max-restarts", str(restarts), "--", "sh", "-c", script]
            started.append(jobs.enter_context(start_job(1, *words)))
        for job, (_, _, code, told) in zip(started, expected, strict=True):
            assert (job.wait(), job.stderr.splitlines()) == (code, told)


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("nowhere", 2)])
def test_the_exit_code_is_the_same_if_nobody_reads(root, command, code):
    words = [sys.executable, *LAUNCH, "--", *(["sh", "-c", command] if " " in command else [command])]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(words, cwd=root, env=environment, stdout=writer, stderr=writer, timeout=PATIENCE_S)
    os.close(writer)
    assert done.returncode == code


def test_a_failure_is_started_again_after_a_pause(run_job):
    script = "echo attempt $TORCHELASTIC_RESTART_COUNT; [ $TORCHELASTIC_RESTART_COUNT = 2 ] || exit 3"
    job = run_job(1, *LAUNCH, "--max-restarts", "5", "--", "sh", "-c", script)
    assert job.process.returncode == 0
    assert job.stdout.split() == ["attempt", "0", "attempt", "1", "attempt", "2"]  # of rank 0 alone
    assert job.stderr.count("exit code 3") == 2 and "starting again in 2 s (2 of 5)" in job.stderr


@pytest.mark.parametrize(
    ("gpus", "ranks"),
    [
        ("4 3", "4 3"),  # one fell off the bus: a rank without one could only fail again
        ("8 7", "4 4"),  # enough are left
        ("1 1", "4 4"),  # these ranks use CPUs
        ("0 0", "4 4"),
        ("4 0", "4 4"),  # the ranks say best what is wrong with all of them
    ],
)
def test_fewer_ranks_where_fewer_gpus_are_left(run_job, tmp_path, gpus, ranks):
    # A PyTorch that sees these GPUs, fewer each time it is asked.
    (tmp_path / "torch.py").write_text(
        f"import pathlib; left = pathlib.Path({str(tmp_path / 'left')!r})\n"
        "now, _, later = left.read_text().partition(' '); left.write_text(later or now)\n"
        "class cuda: device_count = lambda: int(now)\n"
    )
    (tmp_path / "left").write_text(gpus)
    script = "echo $WORLD_SIZE; [ $TORCHELASTIC_RESTART_COUNT = 1 ] || exit 3"
    launch = (
        "from horovod_transformer.launch import gpus, launcher; gpus.DRIVER_FILES = ('/dev/null',); "
        f"raise SystemExit(launcher.Launcher(4, ['sh', '-c', {script!r}], 1).run())"
    )
    job = run_job(1, "-c", launch, PYTHONPATH=f"{tmp_path}:.")
    assert job.process.returncode == 0, job.stderr
    assert job.stdout.split() == ranks.split()
    assert ("of 4 GPUs 3 are left: starting 3 ranks, not 4" in job.stderr) == (ranks == "4 3")


def test_the_second_ctrl_c_ends_at_once(start_job, tmp_path):
    script = tmp_path / "deaf.py"
    script.write_text(DEAF)
    with start_job(1, *LAUNCH, "--max-restarts", "3", "--", "python", str(script)) as job:
        wait_for(lambda: len(list(tmp_path.glob("deaf.py.*"))) == 2)
        job.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert job.process.poll() is None
        job.process.send_signal(signal.SIGINT)
        assert job.wait() == 130


def test_ranks_end_with_their_launcher(start_job, idle_ranks):
    with start_job(1, *LAUNCH, "--", "python", str(idle_ranks)) as job:
        wait_for(lambda: job.stdout == "2 0 0 False 0.5\n")  # rank 0 alone is heard
        assert_ranks_end_with(job)


def test_rank_0_has_the_terminal(root):
    ours, theirs = pty.openpty()
    script = "import sys; print(sys.stderr.isatty(), sys.stdout.isatty())"
    command = [sys.executable, *LAUNCH, "--", "python", "-c", script]
    subprocess.run(command, cwd=root, stdout=theirs, stderr=theirs, check=True, timeout=PATIENCE_S)
    assert os.read(ours, 1000).decode().strip() == "True True"


def test_a_rank_that_hangs_before_the_first_update_ends_the_job(write_config, run_job, tmp_path):
    # In Horovod's own start-up, where nothing else watches a stopped process.
    config = write_config(tmp_path / "config.yaml", distributed__stall_timeout=5.0)
    script = tmp_path / "hang.py"
    script.write_text(
        "import os, runpy, signal, sys\n"
        "import horovod.torch as hvd\n"
        "init = hvd.init\n"
        "def stop(**sets):\n"
        "    os.kill(os.getpid(), signal.SIGSTOP) if os.environ['RANK'] == '1' else init(**sets)\n"
        "hvd.init = stop\n"
        "sys.path.insert(0, '.')\n"
        "runpy.run_module('src.train', run_name='__main__')\n"
    )
    arguments = ["--config", str(config), "--output_dir", str(tmp_path)]
    job = run_job(1, *LAUNCH, "--", "python", str(script), *arguments, HOROVOD_START_TIMEOUT="3")
    assert job.process.returncode == 137
    assert "no progress for 6 s (in the start-up" in job.stderr
    assert re.search(r"launch: rank \d was ended by SIGKILL$", job.stderr.strip())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-np", "0", "--", "true"], "error: -np 0: should be from 1 to 4096"),
        (["-np", "5000", "--", "true"], "error: -np 5000: should be from 1 to 4096"),
        (
            ["-np", "2", "--max-restarts", "-1", "--", "true"],
            "error: --max-restarts -1: should be at least 0",
        ),
        (["-np", "2"], "error: no command to start"),
        (["-np", "2", "--", "no-such-program"], "error: no-such-program: no such program"),
    ],
)
def test_mistakes_on_the_command_line(capsys, monkeypatch, arguments, told):
    from horovod_transformer.commands.command_line import run_command
    from horovod_transformer.commands.launch import main

    assert run_command(main, arguments) == 2
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("content", ["echo no first line\n", "#!/no/such/interpreter\n"])
def test_a_script_that_cannot_be_started_is_one_line(capsys, tmp_path, content):
    from horovod_transformer.commands.command_line import run_command
    from horovod_transformer.commands.launch import main

    script = tmp_path / "script"
    script.write_text(content)
    script.chmod(0o700)
    assert run_command(main, ["-np", "2", "--", str(script)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {script}: cannot be started as 2 processes here: ")
