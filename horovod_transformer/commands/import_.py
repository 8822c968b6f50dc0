"""`horovod-transformer import`: a Hugging Face folder becomes a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import parse_options
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import path_of, readable

DESCRIPTION = """\
Turn a Hugging Face folder of a GPT-2, GPT-NeoX, Llama or Qwen3 into a checkpoint for generate, evaluate and
--init_from. Weights are read from safetensors only: a pickle can run code. A config for training the
model further has to have its shape and positions, learned in a GPT-2 and rotary in a GPT-NeoX."""

# Tokens named that were left out.
_NAMED = 5

EXAMPLES = """\
examples:
  %(prog)s --from ~/models/gpt2 --output checkpoints/gpt2.pt
  horovod-transformer generate --checkpoint checkpoints/gpt2.pt --prompt "Once upon a time"
"""


def make_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("horovod-transformer import", DESCRIPTION, EXAMPLES, "--from DIR --output FILE")
    parser.add_argument(
        "--from",
        required=True,
        dest="folder",
        type=path_of("--from"),
        metavar="DIR",
        help="the Hugging Face folder",
    )
    parser.add_output("FILE", "the checkpoint to write", "--to", required=True)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Import as the command line says."""
    options, overrides = parse_options(make_parser(), arguments)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a model is imported as it is, without a config")

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.export.checkpoints import import_checkpoint

    parameters, shape, tokenizer, left_out = import_checkpoint(options.folder, options.output)
    tokens = f"{tokenizer.vocab_size:,} tokens ({tokenizer.kind})"
    print(f"{Path(options.output)}: {parameters:,} parameters, {tokens}")
    theta = f" --model.rope_theta {shape.rope_theta:g}" if shape.positions == "rotary" else ""
    llama = shape.architecture == "llama"
    kind = "--model.architecture llama" if llama else f"--model.positions {shape.positions}"
    print(f"train it further with {kind}{theta} and a config of its shape")
    if left_out:
        names = ", ".join(map(readable, left_out[:_NAMED])) + (" and others" if left_out[_NAMED:] else "")
        print(f"left out: {names}, which no text here is encoded with")
    return 0
