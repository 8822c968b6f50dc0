"""`horovod-transformer export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import checkpoint_or_newest, parse_options
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError

DESCRIPTION = """\
Write a checkpoint as a Hugging Face folder: weights (safetensors), config, tokenizer and a model card
with the run's own facts. A model with rotary positions becomes a GPT-NeoX, any other a GPT-2;
transformers, vLLM and whatever else reads these load it as it is."""

EXAMPLES = """\
examples:
  %(prog)s --output exported/plays
  %(prog)s --checkpoint runs/first/checkpoints/last.pt --output exported/first
  transformers serve exported/plays        # an OpenAI-compatible server; `vllm serve` is another
"""


def make_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("horovod-transformer export", DESCRIPTION, EXAMPLES, "--output DIR")
    parser.add_checkpoint()
    parser.add_output("DIR", "the folder to make; must not exist", "--to", required=True)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Export as the command line says."""
    options, overrides = parse_options(make_parser(), arguments)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a checkpoint is exported as it is")

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.export.checkpoints import export_checkpoint

    parameters, tokens = export_checkpoint(checkpoint_or_newest(options.checkpoint), options.output)
    print(
        f"{Path(options.output)}: {parameters:,} parameters, {tokens:,} tokens; README.md has blanks for you"
    )
    return 0
