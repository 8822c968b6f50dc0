"""`horovod-transformer evaluate`: how well a checkpoint predicts held-out books, and how it writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from horovod_transformer.commands.command_line import (
    check_overrides,
    checkpoint_or_newest,
    checkpoint_parser,
    parse_options,
    whole_number,
)
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import tell
from horovod_transformer.system.launch_environment import launched_rank
from horovod_transformer.system.paths import path_of, readable, user_path

if TYPE_CHECKING:
    from horovod_transformer.books.readers import ReadOptions
    from horovod_transformer.config import Config
    from horovod_transformer.data.dataset import PreparedData
    from horovod_transformer.evaluation.baselines import OtherModel
    from horovod_transformer.tokenizer import Tokenizer

DESCRIPTION = """\
Measure a checkpoint on the validation books: loss, perplexity, bits per byte and accuracy over whole
books, and coherence, relevance, diversity and length of what it writes beside the same of the books.

Writes evaluation.json and evaluation.html, by default into the run's folder, runs/NAME/evaluation.
The same seed gives the same result on the same machine."""

# Those that a trained model can follow.
KEYS = ("generation.", "data.data_dir", "data.encoding", "data.clean")

EXAMPLES = """\
examples:
  %(prog)s --samples 100 --generation.temperature 1 --no-xz
  %(prog)s --beside checkpoints/gpt2.pt          # beside a model that `import` has made
  %(prog)s --text my_novel.txt --output evaluation/my_novel
  horovod-transformer launch -np 4 -- %(prog)s    # each scores its share of the books

--generation.*, --data.data_dir, --data.encoding and --data.clean override the config
(`horovod-transformer config explain generation`); a --text is read and cleaned as `prepare` reads books.
"""


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the command line says."""
    options, overrides = parse_options(make_parser(), arguments)

    from horovod_transformer.config import load_config  # no `--help` should wait for it

    check_overrides(overrides, *KEYS)
    samples = whole_number("--samples", options.samples, 0, 100_000)
    if samples == 1:
        raise UserError("--samples 1: should be at least 2, one alone compares with nothing; 0: scores alone")
    seed = whole_number("--seed", options.seed)
    limit = None if options.books is None else whole_number("--books", options.books, 1)
    given = None if options.config is None else load_config(options.config)
    if options.output == "":  # a variable that is not set: an earlier evaluation is not to be lost to that
        raise UserError("--output: is empty; it names a folder, and without it there is a default")
    options.checkpoint = checkpoint_or_newest(options.checkpoint)
    folder = Path(options.output) if options.output else _beside(Path(options.checkpoint))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file; it names a folder")

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.books.readers import ReadOptions
    from horovod_transformer.data.held_out import held_out_warnings
    from horovod_transformer.distributed import setup_horovod
    from horovod_transformer.evaluation.book_scores import books_of
    from horovod_transformer.evaluation.evaluate import EvaluationSettings, evaluate
    from horovod_transformer.generation import load_model_for_generation
    from horovod_transformer.reports.evaluation import require_ours, summary_lines, to_json, write_report

    setup_horovod(device="cpu" if options.device == "cpu" else "auto")
    require_ours(folder)
    model, tokenizer, config = load_model_for_generation(options.checkpoint, options.config, options.device)
    if given is not None:
        config = config.model_copy(update={"data": given.data})
    config = config.with_overrides(overrides, "command line")
    if options.text:
        reading = ReadOptions.of(config.data)
        texts = [text for path in options.text for text in _read_texts(path, reading)]
        books = [tokenizer.encode_array(text).astype("int64") for text in texts]
        data = _open_data_if_there(config, tokenizer, options)
    else:
        data = _open_data(config, tokenizer, options)
        books = books_of(data.validation, tokenizer)
    others = _load_others(options.beside or [], options.device)
    if options.xz and data is None:
        raise UserError(f"--xz: {config.data.data_dir}: no training books here; set --data.data_dir")
    evaluation = evaluate(
        options.checkpoint,
        model,
        tokenizer,
        books,
        source=", ".join(options.text) if options.text else config.data.data_dir,
        data=data,
        settings=EvaluationSettings(config.generation, samples, seed, limit, options.xz),
        folder=folder,
        others=others,
    )
    if evaluation is not None:
        values = to_json(evaluation, tokenizer)
        # First on the screen: a disk that has become full should not cost the figures.
        print("\n".join(summary_lines(evaluation, values)), flush=True)
        _, page = write_report(values, folder)
        print(f"written to {page}")
        if data is not None and not options.text:
            for line in held_out_warnings(data.train, data.validation):
                tell(f"warning: {line}", sys.stderr)
        tell("next: horovod-transformer report")
    return 0


def _load_others(checkpoints: Sequence[str], device: str | None) -> list[OtherModel]:
    """The models that `--beside` names."""
    from horovod_transformer.evaluation.baselines import OtherModel
    from horovod_transformer.generation import load_model_for_generation

    others = []
    for path in checkpoints:
        if Path(path).is_dir():
            raise UserError(
                f"--beside {path}: is a folder; `horovod-transformer import --from {path} --to FILE` makes a "
                "checkpoint of a Hugging Face one, and that can be named here"
            )
        model, tokenizer, _ = load_model_for_generation(path, device=device)
        others.append(OtherModel(path, model, tokenizer))
    return others


def _open_data_if_there(
    config: Config, tokenizer: Tokenizer, options: argparse.Namespace
) -> PreparedData | None:
    """The prepared data beside text files, which need none: what does not fit is left out, but for --xz."""
    if not user_path(config.data.data_dir, "data.data_dir").exists():
        return None
    try:
        return _open_data(config, tokenizer, options)
    except UserError:
        if options.xz:
            raise
        return None


def _open_data(config: Config, tokenizer: Tokenizer, options: argparse.Namespace) -> PreparedData:
    from horovod_transformer.data.dataset import open_prepared_data

    data = open_prepared_data(config)
    if data.tokenizer is not None and data.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{config.data.data_dir}: was prepared with another tokenizer than {options.checkpoint} was "
            "trained with, its token ids mean nothing to this model; --data.data_dir names another folder"
        )
    return data


def _read_texts(path: str, options: ReadOptions) -> list[str]:
    """The books of a file, read and cleaned as `prepare` reads them."""
    from horovod_transformer.books.readers import Unreadable
    from horovod_transformer.books.sources import read_file

    found = []
    for book in read_file(user_path("/dev/stdin" if path == "-" else path, "--text"), options):
        if isinstance(book, Unreadable):
            raise UserError(f"--text {book}")
        if book.text.strip():
            found.append(book.text)
        changed = [f"{step} cut {characters:,} characters" for step, characters in book.cut.items()]
        changed += [f"was read as {options.encoding}"] if book.reencoded else []
        if changed and launched_rank() == 0:
            tell(f"note: --text {book.origin}: {', '.join(changed)} (data.clean, data.encoding)", sys.stderr)
    if not found:
        raise UserError(f"--text {readable(path)}: is empty")
    return found


def _beside(checkpoint: Path) -> Path:
    """`runs/first/checkpoints/best_model.pt` -> `runs/first/evaluation`, by whatever link it is named."""
    from horovod_transformer.checkpoint.run_links import is_our_link

    if is_our_link(checkpoint):
        checkpoint = checkpoint.resolve()
    return checkpoint.absolute().parent.parent / "evaluation"


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = checkpoint_parser(
        "horovod-transformer evaluate",
        DESCRIPTION,
        EXAMPLES,
        "YAML config that names data and generation settings (default: the checkpoint's own)",
        KEYS,
    )
    parser.set_defaults(seed="0")
    parser.add_argument(
        "--samples",
        default="20",
        metavar="N",
        help="prompts to continue, 0: score the books alone (default: %(default)s)",
    )
    parser.add_argument(
        "--books", metavar="N", help="score only N of the validation books, evenly spread (default: all)"
    )
    parser.add_argument(
        "--xz",
        action=argparse.BooleanOptionalAction,
        help="also compress the books with xz -9, given the training books (default: if that takes minutes)",
    )
    parser.add_argument(
        "--beside",
        type=path_of("--beside"),
        metavar="FILE",
        action="append",
        help="also score this checkpoint on the same books, such as an imported one; may be repeated",
    )
    parser.add_argument(
        "--text",
        type=path_of("--text"),
        metavar="FILE",
        action="append",
        help="measure on this file of books instead of the validation books (- for stdin); may be repeated",
    )
    parser.add_output("DIR", "where the report goes")
    return parser
