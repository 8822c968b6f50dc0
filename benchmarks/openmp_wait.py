"""What does it cost that OpenMP's threads sleep soon instead of spinning (system/openmp.py)?

    python benchmarks/openmp_wait.py [--rounds 5] [--llvm LIBIOMP5.so]

Trains the quickstart with the library's own waiting time and with ours, in turn, alone and beside two busy
loops, in one process and in two. `--llvm` does the same with LLVM's library instead of the GNU one that
PyPI's torch brings: `pip download --no-deps intel-openmp` and unzip, the file lies in `data/lib`. Printed are
median tokens per second and ours by the library's own, with the least and greatest ratio of single rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "horovod_transformer"]
WARM_UP = 3
BLOCK, BLOCKS_PER_UPDATE = 128, 32
# What each library is told; the first line keeps its default, which an environment variable has to ask for.
GNU = {"library's own": {"GOMP_SPINCOUNT": "300000"}, "ours": {}}
LLVM = {"library's own": {"KMP_BLOCKTIME": "200"}, "ours": {}}
PROCESSES = {"1 of two threads": (1, 2), "2 of one thread": (2, 1), "2 of two threads": (2, 2)}


def main() -> None:
    """Measure every combination and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--updates", type=int, default=20, help="of a run on an idle machine")
    parser.add_argument("--llvm", type=Path, metavar="FILE", help="LLVM's library, to be preloaded")
    options = parser.parse_args()
    preload = {"LD_PRELOAD": str(options.llvm.resolve())} if options.llvm else {}
    print("load | processes | library's own, tokens/s | ours | ratio")
    print("--- | --- | --- | --- | ---")
    with tempfile.TemporaryDirectory() as scratch:
        data = ["--data.data_dir", f"{scratch}/data"]
        run(["prepare", *data, "--config", "configs/quickstart.yaml"], {})
        for load in ("idle", "busy"):
            for name, (processes, threads) in PROCESSES.items():
                rates: dict[str, list[float]] = {"library's own": [], "ours": []}
                for turn in range(options.rounds):
                    variants = list((LLVM if preload else GNU).items())
                    for setting, variables in variants if turn % 2 == 0 else variants[::-1]:
                        updates = (
                            options.updates if load == "idle" else max(WARM_UP + 2, options.updates // 2)
                        )
                        with busy_loops(2 if load == "busy" else 0):
                            rates[setting].append(
                                tokens_per_second(
                                    scratch, processes, threads, updates, data, {**preload, **variables}
                                )
                            )
                ratios = [new / old for old, new in zip(*rates.values(), strict=True)]
                medians = [statistics.median(values) for values in rates.values()]
                print(
                    f"{load} | {name} | {medians[0]:,.0f} | {medians[1]:,.0f} | "
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )


def tokens_per_second(
    scratch: str, processes: int, threads: int, updates: int, data: list[str], variables: dict[str, str]
) -> float:
    """Train once; the median rate of the updates after the first three."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        start = ["launch", "-np", str(processes), "--", *COMMAND] if processes > 1 else []
        run(
            [
                *start, "train", "--config", "configs/quickstart.yaml", *data, "--output_dir", folder,
                "--run_name", "wait", "--training.max_updates", str(updates),
                "--training.threads_per_rank", str(threads), "--training.eval_interval", "1000",
                "--training.eval_blocks", "1", "--training.save_interval", "1000",
                "--training.global_batch_size", str(BLOCKS_PER_UPDATE),
            ],
            variables,
        )  # fmt: skip
        with open(f"{folder}/runs/structured/wait/train.csv", newline="", encoding="utf-8") as file:
            ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    seconds = [end - start for start, end in zip(ends, ends[1:], strict=False)][WARM_UP - 1 :]
    return BLOCK * BLOCKS_PER_UPDATE / statistics.median(seconds)


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that do nothing but count, until the block ends."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(arguments: list[str], variables: dict[str, str]) -> None:
    """Run a command of ours; end with its output if it fails."""
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    command = [*COMMAND, *arguments]
    done = subprocess.run(
        command, cwd=HERE, env={**kept, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
