"""A real `horovodrun` job whose processes can all be found, even when their parent is gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.distributed.conftest import job_environment

ROOT = Path(__file__).resolve().parents[2]
JOB_LIMIT_S = 240
MARK = "HT_CHAOS_JOB"  # in the environment of every process of a job


class Job:
    """A run all of whose processes can be found.

    Args:
        config: Its config file.
        folder: Its output folder.
        table: Its train.csv, whether it is there yet or not.
        restarts: None has `horovodrun` start it once; a number has `horovod-transformer launch` start it
            again so often.
        ranks: How many.
    """

    def __init__(
        self, config: Path, folder: Path, table: Path, restarts: int | None = None, ranks: int = 2
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._old_table = inode(table)
        self._output = folder.with_name(f"{folder.name}-{self.mark}.out")
        command = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(ranks)]
        if restarts is not None:
            command = [sys.executable, "-m", "horovod_transformer", "launch", "-np", str(ranks)]
            command += ["--max-restarts", str(restarts), "--"]
        command += [sys.executable, "-m", "src.train", "--config", str(config), "--output_dir", str(folder)]
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
        """The update it resumed from, 0 for a fresh start; None before it has said so."""
        going_on = re.search(r"resuming after update (\d+) from", self.output)
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
                is_rank = (
                    bool(words) and "python" in Path(words[0]).name and words[1:3] == ["-m", "src.train"]
                )
                environment = process.environ()
                if is_rank and str(number) in (environment.get("HOROVOD_RANK"), environment.get("RANK")):
                    return process
        return None

    def finish(self) -> None:
        """Wait for a good end."""
        wait(lambda: self.ended, JOB_LIMIT_S)
        if self.launcher.returncode:
            raise RuntimeError(f"the job ended with {self.launcher.returncode}:\n{self.output[-4000:]}")

    def clean_up(self) -> int:
        """Kill what is left, as a cluster does before it starts a job again; tell how many it was."""
        left, limit = 0, time.monotonic() + 60
        while (processes := self.processes()) and time.monotonic() < limit:
            left = max(left, len(processes))
            for process in processes:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        self.launcher.wait(60)
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
