"""A training run that is killed again and again, and what can be said of it afterwards.

Everything is real: `horovodrun`, its ranks, SIGKILL. The run is compared with one that was left
alone: the same weights and optimizer state to the bit, every update in the table exactly once.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from tests.distributed.conftest import Outcome, job_environment, make_config, write_corpus

ROOT = Path(__file__).resolve().parents[2]
MARK = "HT_CHAOS_JOB"  # in the environment of every process of a job
JOB_LIMIT_S = 240
END_LIMIT_S = 30  # a job that lost a rank must be gone by then

# About 20 updates a second on one core each, and a checkpoint of 5 MB every third.
CHANGES: dict[str, Any] = {
    "model__d_model": 128,
    "model__d_ff": 512,
    "model__dropout": 0.1,
    "training__epochs": 10_000,
    "training__per_gpu_batch_size": 2,  # 8 blocks an update: two micro-batches on each of two ranks
    "training__save_interval": 3,
    "training__eval_interval": 7,
    "distributed__stall_timeout": 60.0,
}

# Who is killed, and when. Start-up kills bring a run no further, hence few of them.
PLANS = [
    ("rank 0", "training"),
    ("rank 1", "checkpoint"),
    ("horovodrun", "training"),
    ("rank 0", "checkpoint"),
    ("rank 1", "start-up"),
    ("rank 1", "training"),
    ("horovodrun", "checkpoint"),
    ("rank 0", "start-up"),
    ("rank 0", "checkpoint"),
    ("horovodrun", "start-up"),
]


@dataclass
class Kill:
    """One injected kill.

    Attributes:
        victim: `rank 0`, `rank 1` or `horovodrun`.
        moment: `start-up`, `training` or `checkpoint`.
        at_update: Last update in the table then.
        in_mid_write: An unfinished checkpoint file was left.
        end_s: Seconds until `horovodrun` had ended by itself; None if it was the victim.
        left: Processes that outlived the launcher and had to be killed.
        recomputed: Updates in the table that the next start computed again.
        recovery_s: Seconds until the next update; None if the next start was killed before it.
    """

    victim: str
    moment: str
    at_update: int
    in_mid_write: bool = False
    end_s: float | None = None
    left: int = 0
    recomputed: int | None = None
    recovery_s: float | None = None


@dataclass
class Ordeal:
    """Two runs of one config in one folder: `straight`, left alone, and `killed`.

    Args:
        folder: An empty folder.
        updates: Length of both runs.
        seed: Decides victims and moments.
        say: Gets a line now and then.
    """

    folder: Path
    updates: int
    seed: int
    say: Callable[[str], None] = print
    kills: list[Kill] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        corpus = write_corpus(self.folder / "corpus")
        config = make_config(corpus, **CHANGES, training__max_updates=self.updates)
        self.config = self.folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.random = random.Random(self.seed)
        self.table = self.folder / "killed" / "runs" / "structured" / "run" / "train.csv"
        self.checkpoints = self.folder / "killed" / "checkpoints"
        self.start_up_s = 8.0
        self._killed_at: float | None = None

    def run_straight(self) -> None:
        """Make the reference."""
        with self._job("straight") as job:
            table = self.folder / "straight" / "runs" / "structured" / "run" / "train.csv"
            wait(lambda: last_update(table) >= 1 or job.ended, JOB_LIMIT_S)
            self.start_up_s = job.age
            job.finish()
        self.say(
            f"reference: {self.updates} updates in {job.age:.0f} s, {self.start_up_s:.1f} s of it start-up"
        )

    def run_killed(self, number: int) -> None:
        """Kill the run so many times, going on after each, and let it end."""
        plans = [PLANS[i % len(PLANS)] for i in range(number)]
        self.random.shuffle(plans)
        for victim, moment in plans:
            with self._job("killed") as job:
                self._kill(job, victim, moment)
        with self._job("killed") as job:
            self._await_update(job, 0)
            job.finish()

    def _kill(self, job: Job, victim: str, moment: str) -> None:
        if moment == "start-up":
            # Not later than the first update; before the ranks exist there is only the launcher.
            time.sleep(self.random.uniform(0.3, self.start_up_s * 0.9))
        else:
            self._await_update(job, self.random.randint(1, 10))
        process = None if victim == "horovodrun" else job.rank(int(victim[-1]))
        if process is None:
            victim = "horovodrun"
        if moment == "training":
            time.sleep(self.random.uniform(0, 0.2))
        elif moment == "checkpoint":
            delay = self.random.choice([0, 0, 0.002, 0.005])
            wait(lambda: self.unfinished() or job.ended, JOB_LIMIT_S, every=0.0002)
            time.sleep(delay)
        if job.ended:
            self.complaints.append(f"a start ended before its kill:\n{job.output[-2000:]}")
            return
        os.kill(process.pid if process else job.launcher.pid, signal.SIGKILL)
        now = time.monotonic()
        kill = Kill(victim, moment, last_update(self.table))
        if victim == "horovodrun":
            kill.left = job.clean_up()
        else:
            wait(lambda: job.ended, END_LIMIT_S)
            kill.end_s = time.monotonic() - now
            if job.launcher.returncode == 0:
                self.complaints.append(f"{victim} was killed, and the job ended with 0")
            time.sleep(0.5)  # the other rank may still be on its way out
            kill.left = job.clean_up()
        kill.in_mid_write = bool(self.unfinished())
        self.kills.append(kill)
        self._killed_at = now
        self.say(
            f"kill {len(self.kills)}: {victim} in {moment}, update {kill.at_update}"
            + (", a checkpoint half written" if kill.in_mid_write else "")
        )

    def _await_update(self, job: Job, more: int) -> None:
        """Return when this start has made an update, and `more`; take down how the last kill was survived."""
        before = self.unfinished()
        wait(lambda: self._first_update(job) or job.ended, JOB_LIMIT_S)
        now, resumed = time.monotonic(), job.resumed_from
        if job.ended and last_update(self.table) < self.updates:
            self.complaints.append(f"a start failed:\n{job.output[-2000:]}")
            return
        if self.kills:
            # Every update that was in the table and not in the checkpoint is made again.
            highest = max(kill.at_update for kill in self.kills if kill.recomputed is None)
            for kill in self.kills:
                if kill.recomputed is None:
                    kill.recomputed = 0
            self.kills[-1].recomputed = max(0, highest - (resumed or 0))
            if self._killed_at is not None:
                self.kills[-1].recovery_s = now - self._killed_at
        leftovers = before & self.unfinished()
        if leftovers:
            self.complaints.append(f"a start left unfinished files: {sorted(leftovers)}")
        if "passed over a broken checkpoint" in job.output:
            self.complaints.append("a kill left a broken checkpoint under a finished one's name")
        target = (resumed or 0) + more
        wait(lambda: last_update(self.table) >= target or job.ended, JOB_LIMIT_S)

    def _first_update(self, job: Job) -> bool:
        # Only once a rank has told where it begins does the table belong to this start.
        resumed = job.resumed_from
        return resumed is not None and job.table_is_new(self.table) and last_update(self.table) > resumed

    def unfinished(self) -> set[str]:
        """Names of half-written checkpoint files."""
        try:
            return {name for name in os.listdir(self.checkpoints) if ".partial-" in name}
        except FileNotFoundError:
            return set()

    @contextmanager
    def _job(self, name: str) -> Iterator[Job]:
        job = Job(self.config, self.folder / name, self.table)
        try:
            yield job
        finally:
            job.clean_up()

    def differences(self) -> list[str]:
        """Everything in which the killed run is not the straight one; empty is success."""
        straight, killed = (Outcome(self.folder / name) for name in ("straight", "killed"))
        found = list(self.complaints)
        expected = [str(update) for update in range(1, self.updates + 1)]
        for name, run in (("straight", straight), ("killed", killed)):
            updates = [row["update"] for row in run.rows]
            if updates != expected:
                found.append(f"{name}: the table does not hold every update once, in order: {updates}")
        found += [
            f"update {one['update']}: {one} became {other}"
            for one, other in zip(straight.rows, killed.rows, strict=False)
            if one != other
        ][:3]
        if straight.validations != killed.validations:
            found.append("the validations differ")
        for key in ("model", "optimizer", "scheduler", "progress"):
            found += different(straight.state[key], killed.state[key], key)
            found += different(straight.best[key], killed.best[key], f"best {key}")
        leftovers = [path.name for path in (self.folder / "killed").rglob("*partial*")]
        if leftovers:
            found.append(f"files left at the end: {leftovers}")
        return found

    def missing(self) -> int:
        """Updates of the straight run that the killed run's table lacks."""
        rows = [
            {row["update"] for row in Outcome(self.folder / name).rows} for name in ("straight", "killed")
        ]
        return len(rows[0] - rows[1])


class Job:
    """One start of a run on two ranks, all of whose processes can be found."""

    def __init__(self, config: Path, folder: Path, table: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._old_table = inode(table)
        self._output = folder.with_name(f"{folder.name}-{self.mark}.out")
        command = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", sys.executable, "-m"]
        command += ["src.train", "--config", str(config), "--output_dir", str(folder)]
        command += ["--run_name", "run", "--resume", "auto"]
        with open(self._output, "wb") as output:
            self.launcher = subprocess.Popen(
                command,
                cwd=ROOT,
                env=job_environment(PYTHONUNBUFFERED="1", **{MARK: self.mark}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.began = time.monotonic()

    @property
    def age(self) -> float:
        return time.monotonic() - self.began

    @property
    def ended(self) -> bool:
        return self.launcher.poll() is not None

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def resumed_from(self) -> int | None:
        """The update it went on from, 0 for a fresh start; None before it has said so."""
        going_on = re.search(r"going on after update (\d+) from", self.output)
        if going_on:
            return int(going_on[1])
        return 0 if "starting afresh" in self.output else None

    def table_is_new(self, table: Path) -> bool:
        """Whether this start has taken over the table: it writes it anew."""
        return inode(table) not in (None, self._old_table)

    def processes(self) -> list[psutil.Process]:
        """Every living process of the job, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def rank(self, number: int) -> psutil.Process | None:
        """The Python process of a rank, if it has come into being."""
        for process in self.processes():
            with suppress(psutil.Error):
                words = process.cmdline()
                is_rank = "python" in Path(words[0]).name and words[1:3] == ["-m", "src.train"]
                if is_rank and process.environ().get("HOROVOD_RANK") == str(number):
                    return process
        return None

    def finish(self) -> None:
        """Wait for a good end."""
        wait(lambda: self.ended, JOB_LIMIT_S)
        if self.launcher.returncode:
            raise RuntimeError(f"the job ended with {self.launcher.returncode}:\n{self.output[-4000:]}")

    def clean_up(self) -> int:
        """Kill what is left, as a cluster does before it starts a job again; tell how many it was."""
        left, limit = 0, time.monotonic() + 10
        while (processes := self.processes()) and time.monotonic() < limit:
            left = max(left, len(processes))
            for process in processes:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        self.launcher.wait(10)
        return left


def wait(true: Callable[[], Any], limit: float, every: float = 0.003) -> None:
    """Return when it is true.

    Raises:
        TimeoutError: It never was.
    """
    end = time.monotonic() + limit
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {limit} s in vain")
        time.sleep(every)


def last_update(table: Path) -> int:
    """The last whole row's update."""
    try:
        with open(table, "rb") as file:
            file.seek(max(0, os.path.getsize(table) - 1000))
            rows = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    first = rows[-1].split(b",")[0] if rows else b""
    return int(first) if first.isdigit() else 0


def inode(path: Path) -> int | None:
    """What tells a file from its successor of the same name."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def different(one: Any, other: Any, where: str) -> list[str]:
    """Places where nested state differs by as much as a bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{where} differs by {(one - other).abs().max():.3g}"]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in different(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [text for i in range(len(one)) for text in different(one[i], other[i], f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one} became {other}"]
