"""The demo: bits per byte on held-out plays after some minutes of training, beside `xz -9`.

    .venv/bin/python benchmarks/demo.py [--rounds 3]

Runs `horovod-transformer demo`, which writes to demo/. Each round is another seed.
"""

from __future__ import annotations

import re
import statistics
import sys

from side_by_side import Row, part, python

MINUTES = "5"


def measure(rounds: int, tiny: bool) -> list[Row]:
    """One row: this model against xz."""
    ours, theirs = [], []
    minutes = "0.1" if tiny else MINUTES
    for seed in range(rounds):
        command = [
            "-m",
            "horovod_transformer",
            "demo",
            "--minutes",
            minutes,
            "--training.seed",
            str(1337 + seed),
        ]
        told = python(*command)
        for name, found in (("this model", ours), ("xz -9, given the other plays", theirs)):
            figure = re.search(rf"^  {name} +(\d+\.\d+)$", told, re.MULTILINE)
            if figure is None:
                sys.exit(f"the demo gave no figure for {name!r}:\n{told}")
            found.append(float(figure[1]))
    figures = statistics.median(ours), statistics.median(theirs)
    what = f"held-out plays after {minutes} minutes"
    return [Row(what, "bits per byte", *figures, peer_name="xz -9", smaller_is_better=True)]


if __name__ == "__main__":
    part("demo", __doc__, measure, rounds=1)
