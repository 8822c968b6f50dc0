"""`horovod-transformer doctor`: what this machine has and lacks for a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import config_parser, parse_with_config
from horovod_transformer.commands.doctor_checks import Plan, examine

DESCRIPTION = """\
Look over this machine before a training run: what it has, what it lacks, and the command that fixes
each. `fail` means that training could not run here, `warn` that it runs but something will cost you.
Exit code 0 if training could run, 1 if not."""

EXAMPLES = """\
examples:
  horovod-transformer doctor --config configs/quickstart.yaml
  horovod-transformer doctor --output_dir /scratch/run1 --training.keep_checkpoints 5
"""


def main(arguments: Sequence[str]) -> int:
    """Print a table and say whether training could run."""
    parser = config_parser("horovod-transformer doctor", DESCRIPTION, EXAMPLES)
    parser.add_argument("--output_dir", default=".", metavar="DIR", help="as for train (default: here)")
    options, config = parse_with_config(parser, arguments)
    rows = examine(Plan(config, options.config, Path(options.output_dir)))
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.state:<5} {row.name:<{width}}  {row.found}")
        if row.fix:
            print(f"{'':6}{'':{width}}  -> {row.fix}")
    failed = [row.name for row in rows if row.state == "fail"]
    print(f"\ntraining cannot run here: {', '.join(failed)}" if failed else "\ntraining can run here")
    return 1 if failed else 0
