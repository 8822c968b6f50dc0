"""How long `--help` takes, for every subcommand: wall time and CPU time of a whole process.

.venv/bin/python benchmarks/helps.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

from horovod_transformer.commands.table import SUBCOMMANDS


def measure(name: str, rounds: int) -> tuple[float, float]:
    """Median seconds of a subcommand's help: on the clock, and on a CPU."""
    clock, cpu = [], []
    for _ in range(rounds):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "horovod_transformer", name, "--help"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock.append(time.perf_counter() - began)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(clock), statistics.median(cpu)


def main() -> None:
    """Print a row for each subcommand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name in SUBCOMMANDS:
        clock, cpu = measure(name, rounds)
        print(f"{name:<10} {clock:.3f} s, {cpu:.3f} s of CPU")


if __name__ == "__main__":
    main()
