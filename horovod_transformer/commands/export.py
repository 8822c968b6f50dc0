"""`horovod-transformer export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from horovod_transformer.commands.command_line import CommandParser, parse_options
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import user_path

DESCRIPTION = """\
Write a checkpoint as a Hugging Face GPT-2 folder: weights (safetensors), config, tokenizer and a model
card with the run's own facts. transformers, vLLM and whatever else reads GPT-2 load it as it is."""

EXAMPLES = """\
examples:
  %(prog)s --checkpoint checkpoints/best_model.pt --to exported/plays
  transformers serve exported/plays        # an OpenAI-compatible server; `vllm serve` is another
"""

# Texts in the model card.
CARD_SAMPLES = 2


def main(arguments: Sequence[str]) -> int:
    """Export as the command line says."""
    parser = CommandParser(
        prog="horovod-transformer export",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", default="checkpoints/best_model.pt", metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="the folder to make; must not exist")
    options, overrides = parse_options(parser, arguments)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a checkpoint is exported as it is")

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.checkpoint.format import load_checkpoint
    from horovod_transformer.data.manifest import find_prepared
    from horovod_transformer.export.huggingface import require_absent, write_folder
    from horovod_transformer.export.model_card import model_card
    from horovod_transformer.generation import continue_prompt, load_model_for_generation

    target = Path(options.to)
    require_absent(target)
    model, tokenizer, config = load_model_for_generation(options.checkpoint, device="cpu")
    contents = load_checkpoint(options.checkpoint, with_optimizer=False)
    data_dir = user_path(config.data.data_dir, "data.data_dir")
    manifest = _manifest(find_prepared, data_dir, contents["progress"])
    settings = config.generation.model_copy(update={"num_samples": CARD_SAMPLES})
    samples = continue_prompt(model, tokenizer, "", settings, seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(target.resolve().name, contents, parameters, manifest, samples)
    write_folder(target, model, config.model, config.generation, tokenizer, card)
    print(
        f"{target}: {parameters:,} parameters, {tokenizer.vocab_size:,} tokens; README.md has blanks for you"
    )
    return 0


def _manifest(read: Any, data_dir: Path, progress: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the data the model was trained on, if it is still where it was."""
    try:
        manifest = read(data_dir)
    except UserError:
        return None
    identity = progress.get("identity", {})
    return manifest if manifest and manifest.get("fingerprint") == identity.get("data") else None
