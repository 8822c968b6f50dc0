"""Print the update of a run's newest checkpoint, 0 if there is none: has a start made progress?

Takes the arguments of `python -m src.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import parse_with_config, run_command
from horovod_transformer.commands.train import train_parser


def main(arguments: Sequence[str]) -> int:
    """Look for the checkpoints that training with these arguments would write."""
    options, config = parse_with_config(train_parser(), arguments)
    folder = Path(options.output_dir or "", config.paths.checkpoint_dir)
    names = (path.stem.removeprefix("update_") for path in folder.glob("update_*.pt"))
    print(max((int(name) for name in names if name.isdigit()), default=0))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
