"""Text from a checkpoint: load it, continue a prompt, or talk to it at a terminal.

    model, tokenizer, config = load_model_for_generation("checkpoints/best_model.pt")
    print(generate_text(model, tokenizer, "Once upon a time", max_new_tokens=50, seed=7))

How a token is drawn is in `sampling.py`, the loop over a key-value cache in `TransformerLM.generate`.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any, overload

import torch

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.config import Config, GenerationConfig, config_from_dict, load_config
from horovod_transformer.errors import UserError
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.tokenizer import Tokenizer, gpt2_tokenizer, tokenizer_from_dict

# A config file may differ from the checkpoint in these: no weight depends on them. The context
# stays the checkpoint's, for the model has learned to read no position beyond it.
_FREE_MODEL_KEYS = {"max_seq_len", "dropout", "gradient_checkpointing"}

_HELP = """\
Any line is a prompt; an empty one starts a new text. Commands:
  /temperature 0.5   set a value; without a number, show it. So too:
                     /top_k, /top_p, /max_new_tokens, /num_samples
  /help              this list
  /quit              leave, as Ctrl-D and Ctrl-C do"""


def load_model_for_generation(
    checkpoint_path: str | Path,
    config_path: str | Path | None = None,
    device: str | torch.device | None = None,
) -> tuple[TransformerLM, Tokenizer, Config]:
    """Load a checkpoint for writing text.

    Args:
        checkpoint_path: A checkpoint that training wrote.
        config_path: A YAML config whose `generation` section replaces the checkpoint's. The
            shape of the model is always the checkpoint's; a file that states another is an error.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU if there is one. Without a GPU, "cuda"
            warns and takes the CPU.

    Returns:
        The model in evaluation mode on the device, its tokenizer, and the checkpoint's config.

    Raises:
        UserError: A file is missing or damaged, the device does not exist, or the given config
            describes another model than the checkpoint's.
    """
    target = choose_device(device)
    given = None if config_path is None else load_config(config_path)
    contents = load_checkpoint(checkpoint_path, map_location="cpu")
    config = config_from_dict(contents["config"], f"{checkpoint_path}: config")
    if given is not None:
        _check_same_model(given, f"{config_path}", config, f"{checkpoint_path}")
        config = config.model_copy(update={"generation": given.generation})
    model = build_model(config.model)
    try:
        model.load_state_dict(contents["model"])
    except (RuntimeError, TypeError) as error:
        # torch lists the offending tensors line by line; the first says enough.
        problem = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(
            f"{checkpoint_path}: the weights do not fit the config stored beside them: {problem[0].strip()}"
        ) from None
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise UserError(
            f"{checkpoint_path}: weights are NaN or infinite, training had diverged; take an older one"
        )
    return model.to(target).eval(), _stored_tokenizer(contents, config, f"{checkpoint_path}"), config


@overload
def generate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.9,
    seed: int | None = None,
    num_samples: None = None,
    device: str | torch.device | None = None,
) -> str: ...


@overload
def generate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.9,
    seed: int | None = None,
    *,
    num_samples: int,
    device: str | torch.device | None = None,
) -> list[str]: ...


def generate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.9,
    seed: int | None = None,
    num_samples: int | None = None,
    device: str | torch.device | None = None,
) -> str | list[str]:
    """Continue a prompt.

    Args:
        model: From `load_model_for_generation`.
        tokenizer: The one the model was trained with.
        prompt: Text to continue. Empty text starts as a new book does, after an end-of-text
            token; of a text longer than the context the newest part counts.
        max_new_tokens: Write at most this many tokens; fewer where the text comes to an end.
        temperature: Below 1 plays safe, above 1 ventures; 0 always takes the likeliest token.
        top_k: Sample among the k likeliest tokens; 0 among all.
        top_p: Sample within this probability mass; 1 within all of it.
        seed: The same seed gives the same text; None draws from torch's own generator.
        num_samples: Continue the prompt so many times at once, and return a list.
        device: Move the model there first, and leave it there; None writes where it is.

    Returns:
        The prompt and its continuation; with `num_samples` a list of them. Bytes that form no
        character become U+FFFD.

    Raises:
        UserError: A value is out of its range, there is no such device, or model and tokenizer do
            not belong together.
    """
    values = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "num_samples": 1 if num_samples is None else num_samples,
    }
    settings = config_from_dict({"generation": values}, "generation settings").generation
    if device is not None:
        model.to(choose_device(device))
    texts = continue_prompt(model, tokenizer, prompt, settings, seed)
    return texts if num_samples is not None else texts[0]


def continue_prompt(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    settings: GenerationConfig,
    seed: int | None = None,
) -> list[str]:
    """`generate_text` with settings that have been checked: `settings.num_samples` texts.

    Raises:
        UserError: As `generate_text`.
    """
    start, samples = continue_tokens(model, tokenizer, prompt, settings, seed)
    return [tokenizer.decode(start + new) for new in samples]


def continue_tokens(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    settings: GenerationConfig,
    seed: int | None = None,
) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt and the new tokens of each sample, all without end-of-text.

    Raises:
        UserError: As `generate_text`.
    """
    if not isinstance(prompt, str):
        raise UserError(f"prompt: should be text, not {type(prompt).__name__}")
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"tokenizer and model do not belong together: one has {tokenizer.vocab_size} tokens, "
            f"the other only {model.vocab_size}"
        )
    device = model.token_embedding.weight.device
    end_of_text = tokenizer.eos_token_id
    start = tokenizer.encode(prompt)
    rows = torch.tensor([start or [end_of_text]], device=device).expand(settings.num_samples, -1)
    output = model.continue_rows(rows, settings, end_of_text, generator=_generator(seed, device))
    samples = [
        list(itertools.takewhile(lambda token: token != end_of_text, new))
        for new in output[:, rows.shape[1] :].tolist()
    ]
    return start, samples


def interactive_generation(
    model: TransformerLM, tokenizer: Tokenizer, config: Config | None = None, seed: int | None = None
) -> None:
    """Read prompts from the terminal and print continuations, until /quit, Ctrl-D or Ctrl-C.

    Args:
        model: From `load_model_for_generation`.
        tokenizer: The one the model was trained with.
        config: Its `generation` section holds the settings to begin with.
        seed: Makes the conversation repeatable: the n-th text is drawn with `seed` + n.

    Raises:
        UserError: The seed is out of its range, or model and tokenizer do not belong together.
    """
    settings = (config or Config()).generation
    print("Write a prompt and press Enter; /help lists the commands, /quit leaves.")
    try:
        while (line := input("> ")).strip() != "/quit":
            if line.startswith("/"):
                settings = _obey(line, settings)
                continue
            texts = continue_prompt(model, tokenizer, line, settings, seed)
            print("\n\n".join(texts) + "\n", flush=True)
            seed = None if seed is None else seed + 1
    except (EOFError, KeyboardInterrupt):
        print()


def _obey(line: str, settings: GenerationConfig) -> GenerationConfig:
    """Carry out one `/command value`; a mistake is told and changes nothing."""
    key, _, value = line[1:].strip().partition(" ")
    if key not in GenerationConfig.model_fields:
        print(_HELP if key == "help" else f"no such command: /{key}; /help lists what there is")
        return settings
    if value:
        try:
            override = {f"generation.{key}": value.strip()}
            settings = Config(generation=settings).with_overrides(override, f"/{key}").generation
        except UserError as error:
            print(error)
    print(f"{key} = {getattr(settings, key)}")
    return settings


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
        print("warning: torch sees no GPU here; writing on the CPU", file=sys.stderr)
        return torch.device("cpu")
    if target.type == "cuda" and (target.index or 0) >= available:
        raise UserError(f"device: there is no {target}; torch sees {available} GPU(s), cuda:0 and up")
    return target


def _stored_tokenizer(contents: dict[str, Any], config: Config, name: str) -> Tokenizer:
    if contents["tokenizer"] is not None:
        return tokenizer_from_dict(contents["tokenizer"])
    if config.data.tokenizer != "gpt2":
        raise UserError(f"{name}: holds no tokenizer; only GPT-2's is known without one")
    return gpt2_tokenizer()


def _check_same_model(given: Config, given_name: str, stored: Config, stored_name: str) -> None:
    """Compare what a config file states (not what it leaves to the defaults) with the checkpoint."""
    for key in sorted(given.model.model_fields_set - _FREE_MODEL_KEYS):
        wanted, actual = getattr(given.model, key), getattr(stored.model, key)
        if wanted != actual:
            raise UserError(
                f"{given_name}: model.{key} = {wanted}, but {stored_name} was trained with {actual}; "
                "give the config it was trained with, or none"
            )


def _generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"seed: should be a whole number from 0 to 2**63 - 1, not {seed!r}")
    return torch.Generator(device).manual_seed(seed)
