"""A model to write with, from a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.config import Config, config_from_dict, load_config
from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation.quantization import shrink_weights
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.model.weights import model_with_weights
from horovod_transformer.system.console import counted, tell
from horovod_transformer.tokenizer import Tokenizer, gpt2_tokenizer, tokenizer_from_dict

# A config file may differ from the checkpoint in these: no weight depends on them. The context
# stays the checkpoint's, for the model has learned to read no position beyond it.
_FREE_MODEL_KEYS = {"max_seq_len", "dropout", "gradient_checkpointing"}


def load_model_for_generation(
    checkpoint_path: str | Path,
    config_path: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: str = "fp32",
) -> tuple[TransformerLM, Tokenizer, Config]:
    """Load a checkpoint for writing text; the optimizer's state in it is not read.

    Args:
        checkpoint_path: A checkpoint that training wrote.
        config_path: A YAML config whose `generation` section replaces the checkpoint's. The
            shape of the model is always the checkpoint's; a file that states another is an error.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU if there is one. Without a GPU, "cuda"
            warns and takes the CPU.
        precision: fp32, or smaller and faster weights, see `shrink_weights`.

    Returns:
        The model in evaluation mode on the device, its tokenizer, and the checkpoint's config.

    Raises:
        UserError: A file is missing or damaged, the device does not exist or cannot do the precision, or
            the given config describes another model than the checkpoint's.
    """
    target = choose_device(device)
    given = None if config_path is None else load_config(config_path)
    contents = load_checkpoint(checkpoint_path, with_optimizer=False)
    config = config_from_dict(contents["config"], f"{checkpoint_path}: config")
    if given is not None:
        _check_same_model(given.model, f"{config_path}", config.model, f"{checkpoint_path}")
        config = config.model_copy(update={"generation": given.generation})
    try:
        model = model_with_weights(config.model, contents["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        # torch lists the offending tensors line by line; the first says enough.
        problem = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(
            f"{checkpoint_path}: the weights do not fit the config stored beside them: {problem[0].strip()}"
        ) from None
    kinds = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()} - {"float32"}
    if kinds:
        raise UserError(
            f"{checkpoint_path}: holds weights as {', '.join(sorted(kinds))}; a checkpoint has float32, and "
            "--precision makes that smaller once it is read"
        )
    # The extremes of a tensor with a NaN are NaN; they need no second tensor of its size, as isfinite does.
    extremes = (torch.stack(parameter.aminmax()) for parameter in model.parameters())
    if not all(torch.isfinite(pair).all() for pair in extremes):
        raise UserError(
            f"{checkpoint_path}: weights are NaN or infinite, training had diverged; take an older one"
        )
    model.to(target).eval()
    shrink_weights(model, precision)
    return (
        model,
        _stored_tokenizer(contents["tokenizer"], config.data.tokenizer, f"{checkpoint_path}"),
        config,
    )


def choose_device(device: str | torch.device | None) -> torch.device:
    """Find the device a user names; None takes a GPU if there is one.

    Raises:
        UserError: There is no such device.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return torch.device("cuda" if available else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        target = None
    if target is None or target.type not in ("cpu", "cuda"):
        raise UserError(f"device: should be cpu, cuda or cuda:N, not {device}")
    if target.type == "cuda" and not available:
        tell("warning: torch sees no GPU here; writing on the CPU", sys.stderr)
        return torch.device("cpu")
    if target.type == "cuda" and (target.index or 0) >= available:
        seen = counted(available, "GPU")
        raise UserError(f"device: there is no {target}; torch sees {seen}, cuda:0 and up")
    return target


def _stored_tokenizer(stored: dict[str, Any] | None, kind: str, checkpoint: str) -> Tokenizer:
    """The checkpoint's own tokenizer; GPT-2's where it has none and its `data.tokenizer` says so."""
    if stored is not None:
        return tokenizer_from_dict(stored)
    if kind != "gpt2":
        raise UserError(f"{checkpoint}: holds no tokenizer; only GPT-2's is known without one")
    return gpt2_tokenizer()


def _check_same_model(given: ModelConfig, given_name: str, stored: ModelConfig, stored_name: str) -> None:
    """Compare what a config file states (not what it leaves to the defaults) with the checkpoint."""
    for key in sorted(given.model_fields_set - _FREE_MODEL_KEYS):
        wanted, actual = getattr(given, key), getattr(stored, key)
        if wanted != actual:
            raise UserError(
                f"{given_name}: model.{key} = {wanted}, but {stored_name} was trained with {actual}; "
                "give the config it was trained with, or none"
            )
