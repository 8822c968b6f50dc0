"""A checkpoint becomes a Hugging Face folder, and such a folder a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.data.manifest import find_prepared
from horovod_transformer.errors import UserError
from horovod_transformer.export.huggingface import read_folder, require_absent, write_folder
from horovod_transformer.export.model_card import model_card
from horovod_transformer.export.tokenizers import tokens_left_out
from horovod_transformer.generation import continue_prompt, load_model_for_generation
from horovod_transformer.system.console import narrate
from horovod_transformer.system.files import make_writable
from horovod_transformer.system.paths import readable, user_path
from horovod_transformer.tokenizer import Tokenizer

# Texts in the model card.
CARD_SAMPLES = 2


def export_checkpoint(checkpoint: str | Path, target: str | Path) -> tuple[int, int]:
    """Write a checkpoint as a Hugging Face folder, with a model card of the run's own facts.

    Args:
        checkpoint: The file.
        target: The folder to make.

    Returns:
        How many parameters the model has, and how many tokens its tokenizer.

    Raises:
        UserError: The checkpoint cannot be read, or the folder is there or cannot be written.
    """
    target = Path(target)
    require_absent(target)
    model, tokenizer, config = load_model_for_generation(checkpoint, device="cpu")
    contents = load_checkpoint(checkpoint, with_optimizer=False)
    manifest = _manifest(user_path(config.data.data_dir, "data.data_dir"), contents["progress"])
    settings = config.generation.model_copy(update={"num_samples": CARD_SAMPLES})
    try:
        make_writable(target.resolve().parent)  # before the longest part of it
    except OSError as error:
        raise UserError(f"--output {target}: cannot be written: {error.strerror or error}") from None
    # Without a word a large model on a busy CPU would look stuck: it was silent for 81 s.
    narrate(
        f"writing {CARD_SAMPLES} samples for the model card, up to {settings.max_new_tokens} tokens each",
        sys.stderr,
    )
    samples = continue_prompt(model, tokenizer, "", settings, seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    contents["config"] = config.to_dict()  # with the keys that are newer than the checkpoint
    card = model_card(readable(target.resolve().name), contents, parameters, manifest, samples)
    write_folder(target, model, config.model, config.generation, tokenizer, card)
    return parameters, tokenizer.vocab_size


def import_checkpoint(
    folder: str | Path, target: str | Path
) -> tuple[int, ModelConfig, Tokenizer, list[str]]:
    """Write a Hugging Face folder as a checkpoint, from which nothing can be resumed.

    Args:
        folder: The Hugging Face folder.
        target: The file to make.

    Returns:
        How many parameters the model has, its shape, its tokenizer, and the tokens left out of that.

    Raises:
        UserError: The folder holds no such model, or the file is there or cannot be written.
    """
    target = Path(target)
    require_absent(target)
    weights, config, tokenizer = read_folder(folder)
    left_out = tokens_left_out(Path(folder), tokenizer)
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
        raise UserError(f"--output {target}: cannot be written: {error.strerror or error}") from None
    return sum(tensor.numel() for tensor in weights.values()), config.model, tokenizer, left_out


def _manifest(data_dir: Path, progress: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the data the model was trained on, if it is still where it was."""
    try:
        manifest = find_prepared(data_dir)
    except UserError:
        return None
    identity = progress.get("identity")
    trained_on = identity.get("data") if isinstance(identity, dict) else None
    return manifest if manifest and manifest.get("fingerprint") == trained_on else None
