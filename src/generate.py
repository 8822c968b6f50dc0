"""Text generation: `python -m src.generate --checkpoint C --prompt P`."""

import sys

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.generate import main
from horovod_transformer.generation import (
    generate_text,
    interactive_generation,
    load_model_for_generation,
    stream_text,
)

__all__ = ["generate_text", "interactive_generation", "load_model_for_generation", "stream_text"]

if __name__ == "__main__":
    sys.exit(run_command(main))
