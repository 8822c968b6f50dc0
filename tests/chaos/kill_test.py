"""A training run that is killed again and again, and what can be said of it afterwards.

Everything is real: `horovodrun`, its ranks, SIGKILL. The run is compared with one that was left
alone: the same weights and optimizer state to the bit, every update in the table exactly once.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml

from tests.chaos.job import JOB_LIMIT_S, Job, last_update, wait
from tests.distributed.conftest import Outcome, make_config, write_corpus

END_LIMIT_S = 240  # a job that lost a rank must be gone by then; it takes seconds, beside other work more

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
        in_mid_write: It left an unfinished checkpoint file.
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
class KillTest:
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

    changes: ClassVar[dict[str, Any]] = CHANGES
    restarts: ClassVar[int | None] = None  # as for `Job`
    ranks: ClassVar[tuple[int, ...]] = (2,)  # one of these numbers at each start

    def __post_init__(self) -> None:
        corpus = write_corpus(self.folder / "corpus")
        config = make_config(corpus, **self.changes, training__max_updates=self.updates)
        self.config = self.folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.random = random.Random(self.seed)
        self.table = self.folder / "killed" / "runs" / "structured" / "run" / "train.csv"
        self.checkpoints = self.folder / "killed" / "runs" / "run" / "checkpoints"
        self.start_up_s = 8.0
        self._killed_at = 0.0

    def run_straight(self) -> None:
        """Make the reference."""
        with self._job("straight") as job:
            table = self.folder / "straight" / "runs" / "structured" / "run" / "train.csv"
            wait(lambda: last_update(table) >= 1 or job.ended, JOB_LIMIT_S)
            self.start_up_s = job.age
            job.finish()
        took = f"{job.age:.0f} s, {self.start_up_s:.1f} s of it start-up"
        self.say(f"reference: {self.updates} updates in {took}")

    def run_killed(self, number: int) -> None:
        """Kill the run so many times, resuming after each, and let it end."""
        plans = [PLANS[i % len(PLANS)] for i in range(number)]
        self.random.shuffle(plans)
        for victim, moment in plans:
            with self._job("killed") as job:
                self._kill(job, victim, moment)
        with self._job("killed") as job:
            self._await_update(job, 0)
            job.finish()

    def _kill(self, job: Job, victim: str, moment: str) -> None:
        before = self.unfinished()
        if moment == "start-up" and victim == "horovodrun":
            time.sleep(self.random.uniform(0.3, self.start_up_s * 0.9))
        elif moment == "start-up":
            wait(lambda: job.rank(int(victim[-1])) or job.ended, JOB_LIMIT_S, every=0.1)
            time.sleep(self.random.uniform(0, self.start_up_s * 0.4))
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
        if moment == "start-up" and self._first_update(job):
            moment = "training"
        (process or job.launcher).kill()
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
        kill.in_mid_write = bool(self.unfinished() - before)
        self.kills.append(kill)
        self._killed_at = now
        self.say(
            f"kill {len(self.kills)}: {victim} in {moment}, update {kill.at_update}"
            + (", a checkpoint half written" if kill.in_mid_write else "")
        )

    def _await_update(self, job: Job, more: int) -> None:
        """Return when this start has made an update, and `more`; note how the last kill was survived."""
        before = self.unfinished()
        wait(lambda: self._first_update(job) or job.ended, JOB_LIMIT_S)
        now, resumed = time.monotonic(), job.resumed_from
        if job.ended and last_update(self.table) < self.updates:
            self.complaints.append(f"a start failed:\n{job.output[-2000:]}")
            return
        # More than one where a start was killed before its first update; the last one gets the count.
        open_kills = [kill for kill in self.kills if kill.recomputed is None]
        if open_kills:
            # Every update that was in the table and not in the checkpoint is made again.
            reached = max(kill.at_update for kill in open_kills)
            for kill in open_kills:
                kill.recomputed = 0
            self.kills[-1].recomputed = max(0, reached - (resumed or 0))
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
        ranks = self.random.choice(self.ranks)
        job = Job(self.config, self.folder / name, self.table, self.restarts, ranks)
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


class RanksTest(KillTest):
    """As `KillTest`, with another number of ranks at each start: exact sums give the same bits."""

    changes: ClassVar[dict[str, Any]] = {
        **CHANGES,
        "model__dropout": 0.0,
        "training__learning_rate": 1e-3,
        "distributed__sums": "exact",
    }
    ranks: ClassVar[tuple[int, ...]] = (2, 3, 4)


def different(one: Any, other: Any, where: str) -> list[str]:
    """Places where nested state differs by as much as a bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{where} differs by {(one - other).abs().max():.3g}"]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in different(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [text for i in range(len(one)) for text in different(one[i], other[i], f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one} became {other}"]
