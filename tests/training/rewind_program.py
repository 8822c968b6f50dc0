"""Resume an older checkpoint, killed before each of its changes to the disk; run by test_resume.py.

    python tests/training/rewind_program.py FOLDER

FOLDER holds `filled`, a checkpoint folder to copy. For each n the resume by path runs in a process of
its own that is killed before its n-th change, and then `--resume auto` in another. Prints a JSON list of
[n, whether it was killed, update that auto resumed, names left in the folder].
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.config import Config
from horovod_transformer.precision import choose_precision
from horovod_transformer.training.resume import StartRequest, TrainState, find_start
from tests.conftest import TINY

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "open"}


def kill_before_change(number: int) -> None:
    """Let this process be killed before its number-th change to the disk."""
    left = number

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in CHANGES and not (event == "open" and "w" not in str(arguments[1])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def resume(folder: Path, wanted: str, kill_before: int | None, report: Path) -> None:
    """Find the start in a child process; write down the update it found."""
    pid = os.fork()
    if pid == 0:
        if kill_before is not None:
            kill_before_change(kill_before)
        fresh = TrainState("r", {"seed": 7, "global_batch_size": 8, "data": "abc"})
        manager = CheckpointManager(folder)
        found = find_start(
            fresh,
            manager,
            TINY,
            "adamw",
            SimpleNamespace(),
            20,
            StartRequest(resume=wanted),
            choose_precision("fp32", "cpu", [""]),
            Config(model=TINY).to_dict(),
        )
        manager.take_over(found.takeover)
        os.write(os.open(report, os.O_CREAT | os.O_WRONLY), str(found.state.update).encode())
        os._exit(0)
    os.waitpid(pid, 0)


def main(base: Path) -> None:
    """Go through all moments of a kill, and one time without."""
    outcomes = []
    for number in range(1, 100):
        folder, first, second = (base / f"{name}-{number}" for name in ("run", "first", "second"))
        shutil.copytree(base / "filled", folder)
        resume(folder, str(folder / "best_model.pt"), number, first)
        killed = not first.exists()
        resume(folder, "auto", None, second)
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        outcomes.append([number, killed, int(second.read_text() or -1), names])
        if not killed:
            break
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
