"""`horovod-transformer import`: a Hugging Face GPT-2 folder becomes a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.commands.command_line import CommandParser, parse_options
from horovod_transformer.errors import UserError

DESCRIPTION = """\
Turn a Hugging Face GPT-2 folder into a checkpoint for generate, evaluate and --init_from. Weights are
read from safetensors only: a pickle can run code. The model has learned positions, which a config
for training it further has to say: --model.positions learned."""

EXAMPLES = """\
examples:
  %(prog)s --from ~/models/gpt2 --to checkpoints/gpt2.pt
  horovod-transformer generate --checkpoint checkpoints/gpt2.pt --prompt "Once upon a time"
"""


def main(arguments: Sequence[str]) -> int:
    """Import as the command line says."""
    parser = CommandParser(
        prog="horovod-transformer import",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", required=True, dest="folder", metavar="DIR", help="the Hugging Face folder")
    parser.add_argument("--to", required=True, metavar="FILE", help="the checkpoint to write")
    options, overrides = parse_options(parser, arguments)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a model is imported as it is, without a config")
    target = Path(options.to)

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.checkpoint.format import save_checkpoint
    from horovod_transformer.export.huggingface import read_folder, require_absent

    require_absent(target)
    weights, config, tokenizer = read_folder(options.folder)
    contents = {
        "model": weights,
        "optimizer": {},
        "scheduler": {},
        "progress": {},
        "config": config.to_dict(),
        "tokenizer": tokenizer.to_dict(),
    }
    try:
        save_checkpoint(target, contents)
    except OSError as error:
        raise UserError(f"--to {target}: cannot be written: {error.strerror or error}") from None
    parameters = sum(tensor.numel() for tensor in weights.values())
    print(f"{target}: {parameters:,} parameters, {tokenizer.vocab_size:,} tokens ({tokenizer.kind})")
    return 0
