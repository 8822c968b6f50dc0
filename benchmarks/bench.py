"""`make bench`: ours beside what people would take instead, on this machine, part by part.

    .venv/bin/python benchmarks/bench.py                    # all parts: half an hour on two cores
    .venv/bin/python benchmarks/bench.py update memory      # some
    .venv/bin/python benchmarks/bench.py --tiny             # small shapes: does it work?

Each part is a program of its own in this folder; its table is printed when it ends. In the end all figures
stand in one line of JSON, which is also added to benchmarks/results/bench.jsonl together with the machine,
its instruction sets, versions and commit. Contenders take turns, so that ratios mean something where times
do not; run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from side_by_side import ROOT, describe_machine, product_rate

PARTS = ("update", "memory", "processes", "loading", "startup", "generation", "prepare", "demo")


def main() -> int:
    """Run the parts in order; a part that fails does not stop the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--tiny", action="store_true", help="small shapes; nothing is added to the results")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="a folder")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    machine = {**describe_machine(), "gflops_fp32": round(product_rate() / 1e9, 1)}
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['flags'])}: fp32 matrix products at "
        f"{machine['gflops_fp32']:g} GFLOP/s; torch {machine['torch']}, commit {machine['commit']}",
        flush=True,
    )
    found, failed = [], []
    for part in options.parts or PARTS:
        command = [sys.executable, str(Path(__file__).with_name(f"{part}.py"))]
        print(flush=True)
        process = subprocess.run(
            command + ["--tiny", "--rounds", "1"] * options.tiny, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        *table, last = process.stdout.splitlines() or [""]
        print("\n".join(table), flush=True)
        if process.returncode:
            print(last)
            failed.append(part)
        else:
            found.append(json.loads(last))
    results = json.dumps({"machine": machine, "tiny": options.tiny, "parts": found, "failed": failed})
    if not options.tiny:
        options.output.mkdir(parents=True, exist_ok=True)
        with open(options.output / "bench.jsonl", "a", encoding="utf-8") as file:
            file.write(results + "\n")
    print(f"\n{results}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
