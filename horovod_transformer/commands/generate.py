"""`generate`: write text from a checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from horovod_transformer.commands.command_line import (
    check_overrides,
    checkpoint_or_newest,
    checkpoint_parser,
    parse_options,
    read_text,
    whole_number,
)
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import narrate
from horovod_transformer.system.paths import path_of

KEYS = ("generation.",)

EXAMPLES = """\
examples:
  %(prog)s --prompt "It was" --num_samples 3 --temperature 0.7 --seed 1
  %(prog)s --prompts prompts.jsonl --output texts.jsonl --num_samples 4 --probabilities
    reads a line {"prompt": "..."} each, other keys are handed on; writes the same lines with "samples"

What the command line leaves open the config's section `generation` decides, else the checkpoint's;
`horovod-transformer config explain generation` has the defaults.
"""


def main(arguments: Sequence[str]) -> int:
    """Print texts on stdout or write them to a file, and what they took on stderr."""
    options, settings = _read_arguments(arguments)

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.generation import interactive_generation, load_model_for_generation
    from horovod_transformer.generation.prompts_file import (
        read_prompts,
        require_new_file,
        write_continuations,
    )
    from horovod_transformer.generation.quantization import pack_weights
    from horovod_transformer.generation.terminal import print_texts

    if (options.prompts is None) != (options.output is None):
        raise UserError("--prompts and --output belong together: one is read, the other written")
    rows = None if options.prompts is None else read_prompts(options.prompts)
    if options.output is not None:
        require_new_file(options.output)
    prompt = options.prompt
    if options.prompt_file is not None:
        prompt = read_text("--prompt_file", options.prompt_file).removesuffix("\n")
    model, tokenizer, config = load_model_for_generation(
        checkpoint_or_newest(options.checkpoint), options.config, options.device, options.precision
    )
    wanted = config.with_overrides(settings, "command line").generation
    if options.precision == "fp32":
        pack_weights(model, wanted.num_samples if rows is None else len(rows) * wanted.num_samples)
    if options.interactive:
        interactive_generation(
            model, tokenizer, config.model_copy(update={"generation": wanted}), options.seed
        )
        return 0
    began = time.perf_counter()
    if rows is not None:
        tokens = write_continuations(
            options.output, rows, model, tokenizer, wanted, options.seed, options.probabilities
        )
    else:
        tokens = print_texts(model, tokenizer, prompt, wanted, options.seed)
    seconds = time.perf_counter() - began
    device = model.token_embedding.weight.device.type
    narrate(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s on {device}", sys.stderr)
    narrate("next: horovod-transformer evaluate", sys.stderr)
    return 0


def _read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the settings among them as config overrides."""
    options, overrides = parse_options(make_parser(), arguments)

    from horovod_transformer.config_sections import GenerationConfig  # no `--help` should wait for it

    if options.prompt and len(options.prompt) > 1:
        raise UserError("--prompt is given twice; --prompts FILE continues many")
    options.prompt = options.prompt[0] if options.prompt else ""
    if options.seed is not None:
        options.seed = whole_number("--seed", options.seed)
    # As text: the config's own checks read it, and say in one line what is wrong with it.
    flags = {f"generation.{key}": getattr(options, key) for key in GenerationConfig.model_fields}
    flags = {key: value for key, value in flags.items() if value is not None}
    for key in flags.keys() & overrides.keys():
        raise UserError(f"--{key} is given twice, once as --{key.partition('.')[2]}")
    settings = overrides | flags
    check_overrides(settings, *KEYS)
    return options, settings


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = checkpoint_parser(
        "horovod-transformer generate",
        "Write text from a checkpoint.",
        EXAMPLES,
        "YAML config with the settings below (default: the checkpoint's)",
        KEYS,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="text to continue (default: begin a new text)",
    )
    source.add_argument(
        "--prompt_file",
        type=path_of("--prompt_file"),
        metavar="FILE",
        help="a file with the text to continue; - for stdin",
    )
    source.add_argument("--interactive", action="store_true", help="read prompts from the terminal")
    source.add_argument(
        "--prompts",
        type=path_of("--prompts"),
        metavar="FILE",
        help="continue many prompts: one JSON object a line",
    )
    parser.add_output("FILE", "with --prompts: the file to write, as JSON lines")
    parser.add_argument(
        "--probabilities", action="store_true", help="with --prompts: those of the tokens, too"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "int8"),
        default="fp32",
        metavar="P",
        help="of the weights: fp32, or faster and less exact: bf16, fp16, int8",
    )
    helps = {
        "max_new_tokens": "write at most this many tokens",
        "temperature": "0: always the likeliest token; 1: as trained",
        "top_k": "sample among the k likeliest tokens; 0: among all",
        "top_p": "sample within this probability mass; 1: all",
        "num_samples": "texts to write",
        "repetition_penalty": "above 1: repeat less",
    }
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", help="end before this string; may be repeated"
    )
    for key, text in helps.items():
        parser.add_argument(f"--{key}", metavar="N", help=text)
    return parser
