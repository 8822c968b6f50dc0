"""The complete workflow as a program; horovod_transformer.example.md tells the story."""

import sys

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.example import main

if __name__ == "__main__":
    sys.exit(run_command(main))
