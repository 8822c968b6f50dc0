"""`generate`: write text from a checkpoint."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.command_line import (
    check_overrides,
    checkpoint_parser,
    parse_options,
    whole_number,
)
from horovod_transformer.config import Config, GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation import continue_tokens, interactive_generation, load_model_for_generation

SEPARATOR = "-" * 40

_EXAMPLES = """\
examples:
  %(prog)s --checkpoint checkpoints/best_model.pt --prompt "Once upon a time"
  %(prog)s --prompt "It was" --num_samples 3 --temperature 0.7 --seed 1
  echo "Call me" | %(prog)s --prompt_file -
  %(prog)s --interactive
"""


def main(arguments: Sequence[str]) -> int:
    """Print samples on stdout, and what they took on stderr."""
    options, settings = _read_arguments(arguments)
    prompt = options.prompt if options.prompt_file is None else _read_prompt(options.prompt_file)
    model, tokenizer, config = load_model_for_generation(options.checkpoint, options.config, options.device)
    config = config.with_overrides(settings, "command line")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    if options.interactive:
        interactive_generation(model, tokenizer, config, options.seed)
        return 0
    began = time.perf_counter()
    start, samples = continue_tokens(model, tokenizer, prompt, config.generation, options.seed)
    seconds = time.perf_counter() - began
    print(f"\n{SEPARATOR}\n".join(tokenizer.decode(start + new) for new in samples), flush=True)
    tokens = sum(map(len, samples))
    device = model.token_embedding.weight.device.type
    print(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s on {device}", file=sys.stderr)
    return 0


def _read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options, and the settings among them as config overrides."""
    options, overrides = parse_options(_parser(), arguments)
    if options.seed is not None:
        options.seed = whole_number("--seed", options.seed)
    # As text: the config's own checks read it, and say in one line what is wrong with it.
    flags = {f"generation.{key}": getattr(options, key) for key in GenerationConfig.model_fields}
    settings = overrides | {key: value for key, value in flags.items() if value is not None}
    check_overrides(settings, "generation.")
    return options, settings


def _parser() -> argparse.ArgumentParser:
    parser = checkpoint_parser(
        "horovod-transformer generate",
        "Write text from a checkpoint.",
        _EXAMPLES,
        "YAML config to take the defaults below from (default: the checkpoint's)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt", default="", metavar="TEXT", help="text to continue (default: begin a new text)"
    )
    source.add_argument(
        "--prompt_file",
        metavar="FILE",
        help="read the prompt from a file, - for stdin; drops one last line break",
    )
    source.add_argument("--interactive", action="store_true", help="read prompts from the terminal")
    helps = {
        "max_new_tokens": "write at most this many tokens",
        "temperature": "0: always the likeliest token; higher ventures more",
        "top_k": "sample among the k likeliest tokens; 0: among all",
        "top_p": "sample within this probability mass; 1: all of it",
        "num_samples": "texts to write",
    }
    defaults = Config().generation
    for key, text in helps.items():
        parser.add_argument(
            f"--{key}", metavar="N", help=f"{text} (config: generation.{key}, {getattr(defaults, key)})"
        )
    return parser


def _read_prompt(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UserError(f"--prompt_file {path}: is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"--prompt_file {path}: cannot be read: {error.strerror}") from None
