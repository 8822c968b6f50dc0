"""`horovod-transformer doctor`: what this machine has and lacks for a training run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import config_parser, parse_with_config
from horovod_transformer.commands.doctor_checks import CheckContext, Row
from horovod_transformer.commands.doctor_machine import (
    check_compiler,
    check_home,
    check_horovod,
    check_host_name,
    check_load,
    check_packages,
    check_python,
    check_slurm,
    check_torch,
)
from horovod_transformer.commands.doctor_run import (
    check_dataset,
    check_disk,
    check_run,
    check_tokenizer,
    check_waiting,
)
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import coloured, is_quiet

DESCRIPTION = """\
Look over this machine before a training run: what it has, what it lacks, and the command that fixes
each. `fail` means that training could not run here, `warn` that it runs but something will cost you.
Exit code 0 if training could run, 1 if not."""

EXAMPLES = """\
examples:
  horovod-transformer doctor --config configs/quickstart.yaml
  horovod-transformer doctor --output /scratch/run1 --training.keep_checkpoints 5
"""

# A check fails only where training could not run, even as a single process; what costs speed, several
# processes or a later surprise is a warning.
CHECKS: dict[str, Callable[[CheckContext], Row]] = {
    "Python": check_python,
    "packages": check_packages,
    "compiler": check_compiler,
    "PyTorch": check_torch,
    "Horovod": check_horovod,
    "tokenizer": check_tokenizer,
    "dataset": check_dataset,
    "run": check_run,
    "disk": check_disk,
    "waiting": check_waiting,
    "home": check_home,
    "host name": check_host_name,
    "load": check_load,
    "Slurm": check_slurm,
}


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = config_parser("horovod-transformer doctor", DESCRIPTION, EXAMPLES)
    parser.add_output("DIR", "as for train (default: paths.output_dir)", "--output_dir", dest="output_dir")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Print a table and say whether training could run."""
    options, config = parse_with_config(make_parser(), arguments)
    folder = None if options.output_dir is None else Path(options.output_dir)
    rows = examine(CheckContext(config, options.config, folder))
    width = max(len(row.name) for row in rows)
    colours = {"fail": 31, "warn": 33, "ok": 32}
    for row in rows:
        if row.state == "ok" and is_quiet():
            continue
        state = coloured(f"{row.state:<5}", colours[row.state], sys.stdout)
        print(f"{state} {row.name:<{width}}  {row.found}")
        if row.fix:
            print(f"{'':6}{'':{width}}  -> {row.fix}")
    failed = [row.name for row in rows if row.state == "fail"]
    print(f"\ntraining cannot run here: {', '.join(failed)}" if failed else "\ntraining can run here")
    return 1 if failed else 0


def examine(context: CheckContext) -> list[Row]:
    """Run all checks; one that breaks is a row of its own."""
    return [run_check(name, check, context) for name, check in CHECKS.items()]


def run_check(name: str, check: Callable[[CheckContext], Row], context: CheckContext) -> Row:
    """Run one check and make a row even of its failure."""
    try:
        return check(context)
    except UserError as error:
        return Row(name, "fail", str(error))
    except ModuleNotFoundError as error:
        return Row(name, "fail", f"cannot be looked at: no module {error.name}", "make install")
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [""]
        return Row(
            name, "fail", f"this check crashed: {type(error).__name__}: {reason[0]}", "please report it"
        )
