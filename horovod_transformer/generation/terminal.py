"""Text on a terminal: as it is written, a conversation with a model, a passage for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.config import Config
from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation.loading import load_model_for_generation
from horovod_transformer.generation.text import Writing, continue_prompt, write_samples
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.tokenizer import Tokenizer

# Between several texts of one prompt.
SEPARATOR = "-" * 40

_HELP = """\
Any line is a prompt; an empty one starts a new text. Commands:
  /temperature 0.5   set a value; without a number, show it. So too:
                     /top_k, /top_p, /max_new_tokens, /num_samples,
                     /repetition_penalty, /stop
  /help              this list
  /quit              leave, as Ctrl-D and Ctrl-C do"""


def print_texts(
    model: TransformerLM, tokenizer: Tokenizer, prompt: str, settings: GenerationConfig, seed: int | None
) -> int:
    """Print one text as it is written, several when they are done; return how many tokens they took."""
    shown = tokenizer.decode(tokenizer.encode(prompt))
    if settings.num_samples == 1:
        writing = Writing(model, tokenizer, [prompt], settings, seed)
        print(shown, end="")
        for _, piece in writing.pieces():
            print(piece, end="", flush=True)
        print(flush=True)
        return len(writing.samples[0].tokens)
    tokens = 0
    for number, sample in enumerate(write_samples(model, tokenizer, prompt, settings, seed)):
        if number:
            print(SEPARATOR)
        print(shown + sample.text, flush=True)
        tokens += len(sample.tokens)
    return tokens


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
            _write(model, tokenizer, line, settings, seed)
            seed = None if seed is None else seed + 1
    except (EOFError, KeyboardInterrupt):
        print()


def _write(
    model: TransformerLM, tokenizer: Tokenizer, prompt: str, settings: GenerationConfig, seed: int | None
) -> None:
    """Print texts as they are written, one after the other."""
    one = settings.model_copy(update={"num_samples": 1})
    for sample in range(settings.num_samples):
        print(prompt, end="", flush=True)
        for _, piece in Writing(model, tokenizer, [prompt], one, seed, first_row=sample).pieces():
            print(piece, end="", flush=True)
        print("\n", flush=True)


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


def write_passages(
    checkpoint_path: str | Path, settings: GenerationConfig, prompts: Sequence[str]
) -> list[str]:
    """Continue each prompt once; print and return the passages."""
    model, tokenizer, _ = load_model_for_generation(checkpoint_path)
    one = settings.model_copy(update={"num_samples": 1})
    passages = []
    for seed, prompt in enumerate(prompts):
        (text,) = continue_prompt(model, tokenizer, prompt, one, seed)
        print(f"\n--- {prompt or '(no prompt)'} ---\n{text.strip()}")
        passages.append(text)
    return passages
