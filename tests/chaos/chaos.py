"""`make chaos`: kill a training run again and again and see whether it notices.

    python -m tests.chaos.chaos [--launcher | --ranks] [--kills 50] [--seed 0] [--keep FOLDER]

Ends with 0 if the run that was killed is, to the bit, the run that was not.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets

from tests.chaos.kill_test import Kill, KillTest, RanksTest
from tests.chaos.launch_test import LaunchTest


def table_of(kills: list[Kill], missing: int) -> list[str]:
    """What happened, as lines of a Markdown table."""
    counted = collections.Counter((kill.victim, kill.moment) for kill in kills)
    survived = [kill for kill in kills if kill.recomputed is not None]
    lines = [
        "| victim | start-up | training | during a checkpoint | stopped |",
        "| --- | --- | --- | --- | --- |",
    ]
    for victim in ("rank 0", "rank 1", "horovodrun"):
        numbers = [
            str(counted[(victim, moment)]) for moment in ("start-up", "training", "checkpoint", "stopped")
        ]
        lines.append(f"| {victim} | {' | '.join(numbers)} |")
    recoveries = [kill.recovery_s for kill in kills if kill.recovery_s is not None]
    ends = [kill.end_s for kill in kills if kill.end_s is not None]
    lines += [
        "",
        f"kills {len(kills)}, survived {len(survived)}, of them with a checkpoint half written "
        f"{sum(kill.in_mid_write for kill in kills)}",
        f"updates missing from the final table {missing}, computed again "
        f"{sum(kill.recomputed or 0 for kill in kills)}",
        f"from a kill to the next update: {middle_and_most(recoveries)}",
        f"from a rank's death to the job's end: {middle_and_most(ends)}",
        f"processes left after a rank's death: {sum(k.left for k in kills if k.victim != 'horovodrun')}; "
        f"after the launcher's, killed by us: {sum(k.left for k in kills if k.victim == 'horovodrun')}",
    ]
    return lines


def middle_and_most(seconds: list[float]) -> str:
    """Median and maximum, in words."""
    if not seconds:
        return "never seen"
    return f"median {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s ({len(seconds)} seen)"


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.chaos.chaos")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--launcher",
        action="store_true",
        help="one job under `horovod-transformer launch`, which starts it again",
    )
    parser.add_argument(
        "--ranks", action="store_true", help="another number of ranks at each start, with exact sums"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the runs in this new folder")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        # A kill in mid-training brings the run some six updates on.
        test, updates = (LaunchTest, 14) if options.launcher else (KillTest, 8)
        if options.ranks:
            test = RanksTest
        kill_test = test(folder, updates=updates * options.kills + 20, seed=options.seed)
        kill_test.run_straight()
        kill_test.run_killed(options.kills)
        found = kill_test.differences()
        print("\n" + "\n".join(table_of(kill_test.kills, kill_test.missing())))
    print(f"{kill_test.updates} updates, seed {options.seed}, {time.monotonic() - began:.0f} s")
    print("\n".join(f"NOT AS IT SHOULD BE: {text}" for text in found) or "the same run, to the bit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
