"""`horovod-transformer export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import CommandParser, parse_options
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import path_of

DESCRIPTION = """\
Write a checkpoint as a Hugging Face folder: weights (safetensors), config, tokenizer and a model card
with the run's own facts. A model with rotary positions becomes a GPT-NeoX, any other a GPT-2;
transformers, vLLM and whatever else reads these load it as it is."""

EXAMPLES = """\
examples:
  %(prog)s --checkpoint checkpoints/best_model.pt --to exported/plays
  transformers serve exported/plays        # an OpenAI-compatible server; `vllm serve` is another
"""


def main(arguments: Sequence[str]) -> int:
    """Export as the command line says."""
    parser = CommandParser("horovod-transformer export", DESCRIPTION, EXAMPLES)
    parser.add_checkpoint()
    parser.add_argument(
        "--to", required=True, type=path_of("--to"), metavar="DIR", help="the folder to make; must not exist"
    )
    options, overrides = parse_options(parser, arguments)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a checkpoint is exported as it is")

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.export.checkpoints import export_checkpoint

    parameters, tokens = export_checkpoint(options.checkpoint, options.to)
    print(f"{Path(options.to)}: {parameters:,} parameters, {tokens:,} tokens; README.md has blanks for you")
    return 0
