"""How long until two ranks are ready, and until their first update: `launch` against `horovodrun`.

    .venv/bin/python benchmarks/startup.py [--rounds 3]

Both launchers in turn, medians. `ready`: seconds from the command to the return of `setup_horovod` on the
last rank. `first update`: from the command to the first row of train.csv, with configs/quickstart.yaml,
whose data is prepared beforehand. Run it alone on the machine.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from side_by_side import Row, part

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "launch": [sys.executable, "-m", "horovod_transformer", "launch", "-np", "2", "--"],
    "horovodrun": [str(BIN / "horovodrun"), "-np", "2"],
}
READY = """\
import sys
sys.path.insert(0, ".")
from pathlib import Path
from src.utils.distributed import setup_horovod
_, rank, _, _ = setup_horovod(require_distributed=True)
Path(sys.argv[1], f"ready{rank}").touch()
"""
LIMIT_S = 120.0


def seconds_until(true: Callable[[], bool], command: list[str], log: Path) -> float:
    """Start a command; seconds until something is so. Then the command ends."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    with open(log, "wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        while not true():
            if process.poll() or time.perf_counter() - began > LIMIT_S:
                sys.exit(f"{' '.join(command)} did not get there:\n{log.read_text()}")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
    return seconds


def measure(launcher: list[str], folder: Path) -> dict[str, float]:
    """One round of one launcher, in an empty folder."""
    folder.mkdir()
    script = folder / "ready.py"
    script.write_text(READY)
    both = [folder / f"ready{rank}" for rank in range(2)]
    command = [*launcher, sys.executable, str(script), str(folder)]
    found = {"ready": seconds_until(lambda: all(map(Path.exists, both)), command, folder / "ready.log")}
    train = ["-m", "src.train", "--config", "configs/quickstart.yaml", "--run_name", "run"]
    train += ["--output_dir", str(folder), "--training.log_interval", "1"]
    table = folder / "runs" / "structured" / "run" / "train.csv"

    def updated() -> bool:
        return table.exists() and table.read_text().count("\n") > 1

    command = [*launcher, sys.executable, *train]
    return found | {"first update": seconds_until(updated, command, folder / "train.log")}


def measure_all(rounds: int, tiny: bool) -> list[Row]:
    """Prepare, measure in turn."""
    prepare = ["-m", "horovod_transformer", "prepare", "--config", "configs/quickstart.yaml"]
    subprocess.run([sys.executable, *prepare], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in LAUNCHERS}
        for number in range(rounds):
            for name, launcher in LAUNCHERS.items():
                found[name].append(measure(launcher, Path(folder, f"{name}{number}")))
    rows = []
    for what in ("ready", "first update"):
        seconds = {name: statistics.median(one[what] for one in each) for name, each in found.items()}
        rows.append(
            Row(what, "s", seconds["launch"], seconds["horovodrun"], "horovodrun", smaller_is_better=True)
        )
    return rows


if __name__ == "__main__":
    part("startup", __doc__, measure_all, rounds=3)
