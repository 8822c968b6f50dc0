"""Training: `python -m src.train --config configs/config.yaml`, alone or under `horovodrun -np N`."""

import sys

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.train import main
from horovod_transformer.training.run import run_distributed_training

__all__ = ["load_checkpoint", "run_distributed_training", "save_checkpoint"]

if __name__ == "__main__":
    sys.exit(run_command(main))
