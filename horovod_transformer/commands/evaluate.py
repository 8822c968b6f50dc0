"""`horovod-transformer evaluate`: how well a checkpoint predicts held-out books, and how it writes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from horovod_transformer.commands.command_line import (
    check_overrides,
    checkpoint_parser,
    parse_options,
    read_text,
    whole_number,
)
from horovod_transformer.config import Config, load_config
from horovod_transformer.errors import UserError
from horovod_transformer.system.files import make_writable
from horovod_transformer.system.paths import user_path

if TYPE_CHECKING:
    import numpy as np

    from horovod_transformer.data.dataset import PreparedData
    from horovod_transformer.tokenizer import Tokenizer

DESCRIPTION = """\
Measure a checkpoint on the validation books: loss, perplexity, bits per byte and accuracy over whole
books, and coherence, relevance, diversity and length of what it writes beside the same of the books.

Writes evaluation.json and evaluation.html, by default into the folder `evaluation` beside the
checkpoint's own folder. The same seed gives the same result on the same machine."""

EXAMPLES = """\
examples:
  %(prog)s --checkpoint checkpoints/best_model.pt
  %(prog)s --samples 100 --generation.temperature 1 --xz
  %(prog)s --text my_novel.txt --output evaluation/my_novel
  horovodrun -np 4 %(prog)s                      # each process scores its share of the books
  %(prog)s --data.data_dir data/other_books --output evaluation/other_books

--generation.* (configs/config.yaml explains them) and --data.data_dir override the config.
"""

# A prompt of this many tokens, or of a quarter of the context where that is less.
PROMPT_TOKENS = 32
# Training blocks in which copies are looked for: 100 million tokens of 512 each, 0.8 GB in memory.
COPY_BLOCKS = 200_000


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the command line says."""
    options, overrides = parse_options(_parser(), arguments)
    check_overrides(overrides, "generation.", "data.data_dir")
    samples = whole_number("--samples", options.samples, 2, 100_000)
    seed = whole_number("--seed", options.seed)
    limit = None if options.books is None else whole_number("--books", options.books, 1)
    given = None if options.config is None else load_config(options.config)
    folder = Path(options.output) if options.output else _beside(Path(options.checkpoint))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file; it names a folder")

    # Imported late: a mistake on the command line should not wait for torch.
    from horovod_transformer.distributed import common_precision, gather_objects, setup_horovod
    from horovod_transformer.evaluation.book_scores import (
        add_up,
        books_of,
        interval,
        newest_text,
        score_each,
        xz_bits_per_byte,
    )
    from horovod_transformer.evaluation.copies import longest_copies, overlapping_chunks
    from horovod_transformer.evaluation.text_quality import draw_passages, measure_samples, write_samples
    from horovod_transformer.generation import load_model_for_generation
    from horovod_transformer.reports.evaluation import (
        Evaluation,
        copy_line,
        interval_text,
        table_lines,
        to_json,
        write_report,
    )

    world_size, rank, _, _ = setup_horovod(device="cpu" if options.device == "cpu" else "auto")
    model, tokenizer, config = load_model_for_generation(options.checkpoint, options.config, options.device)
    if given is not None:
        config = config.model_copy(update={"data": given.data})
    config = config.with_overrides(overrides, "command line")
    if options.text:
        books = [_read_book(path, tokenizer) for path in options.text]
        data = _open_data_if_there(config, tokenizer, options)
    else:
        data = _open_data(config, tokenizer, options)
        books = books_of(data.validation, tokenizer)
    if options.xz and data is None:
        raise UserError(f"--xz: {config.data.data_dir}: no training books here; set --data.data_dir")
    if limit is not None and limit < len(books):
        books = [books[place * len(books) // limit] for place in range(limit)]
    prompt_tokens = max(1, min(PROMPT_TOKENS, model.max_seq_len // 4))
    new_tokens = config.generation.max_new_tokens
    passages = draw_passages(books, samples, prompt_tokens, new_tokens, seed)
    if rank == 0:
        try:
            make_writable(folder)
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written to: {error.strerror}") from None

    device = model.token_embedding.weight.device
    # A score is the same on every CPU, whether or not it has units for bf16.
    precision = common_precision("fp32" if device.type == "cpu" else "auto", device).name
    mine = score_each(model, books[rank::world_size], tokenizer, precision, progress=rank == 0)
    shares = gather_objects(mine, "scores")
    if rank > 0:
        return 0
    scores = [shares[place % world_size][place // world_size] for place in range(len(books))]
    score = add_up(scores)
    written = write_samples(model, tokenizer, passages, config.generation, seed, progress=True)
    quality = measure_samples(model, tokenizer, books, written)
    xz = None
    copies = None
    facts = _facts(options.checkpoint, model)
    if data is not None and _may_be_trained_on(data, facts["data"]):
        longest = max(len(sample.model) for sample in written)
        training = data.train
        blocks = training.rows(range(min(len(training), COPY_BLOCKS)))
        copies = longest_copies([s.model for s in written], overlapping_chunks(blocks, longest))
    if options.xz and data is not None:
        held_out = b"".join(tokenizer.decode_bytes(book.tolist()) for book in books)
        xz = xz_bits_per_byte(newest_text(data.train, tokenizer), held_out)
    evaluation = Evaluation(
        model=facts,
        settings={
            "data": ", ".join(options.text) if options.text else config.data.data_dir,
            "samples": samples,
            "prompt_tokens": prompt_tokens,
            "max_new_tokens": new_tokens,
            "temperature": config.generation.temperature,
            "top_k": config.generation.top_k,
            "top_p": config.generation.top_p,
            "seed": seed,
        },
        books=len(books),
        score=score,
        xz_bits_per_byte=xz,
        quality=quality,
        samples=written,
        interval=interval(scores),
        copies=copies,
    )
    values = to_json(evaluation, tokenizer)
    _, page = write_report(evaluation, tokenizer, folder)
    print(f"{len(books)} held-out books, {score.tokens:,} tokens, {score.bytes:,} bytes")
    print(
        f"  loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.2f}, "
        f"accuracy {100 * score.accuracy:.1f} %"
    )
    beside = "" if xz is None else f"; xz -9, given the training books: {xz:.3f}"
    print(f"  {score.bits_per_byte:.3f} bits per byte{interval_text(values['prediction'])}{beside}")
    print(f"{samples} continuations of {prompt_tokens} tokens, ± one standard error")
    print("\n".join(f"  {line}" for line in table_lines(values)))
    copied = copy_line(values)
    if copied:
        print(f"  {copied}")
    print(f"written to {page}")
    return 0


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


def _read_book(path: str, tokenizer: Tokenizer) -> np.ndarray:
    """A text file as one book."""
    text = read_text("--text", path)
    if not text.strip():
        raise UserError(f"--text {path}: is empty")
    return tokenizer.encode_array(text).astype("int64")


def _may_be_trained_on(data: PreparedData, trained_on: str | None) -> bool:
    """Whether these are the data of the checkpoint's training, as far as both say what they are."""
    fingerprint = data.manifest.get("fingerprint")
    return fingerprint is None or trained_on is None or fingerprint == trained_on


def _facts(checkpoint: str, model: Any) -> dict[str, Any]:
    import torch

    # The checkpoint has proved itself before; mapped, its tensors are not read a second time.
    progress = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["progress"]
    known = progress if isinstance(progress, dict) else {}
    updates, run, identity = known.get("update"), known.get("run_name"), known.get("identity")
    return {
        "checkpoint": checkpoint,
        "run": run if isinstance(run, str) else None,
        "data": identity.get("data") if isinstance(identity, dict) else None,
        "updates": updates if isinstance(updates, int) else "an unknown number of",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "context": model.max_seq_len,
    }


def _beside(checkpoint: Path) -> Path:
    """`run/checkpoints/best_model.pt` -> `run/evaluation`."""
    return checkpoint.absolute().parent.parent / "evaluation"


def _parser() -> argparse.ArgumentParser:
    parser = checkpoint_parser(
        "horovod-transformer evaluate",
        DESCRIPTION,
        EXAMPLES,
        "YAML config that names data and generation settings (default: the checkpoint's own)",
    )
    parser.set_defaults(seed="0")
    parser.add_argument(
        "--samples", default="20", metavar="N", help="prompts to continue (default: %(default)s)"
    )
    parser.add_argument(
        "--books", metavar="N", help="score only N of the validation books, evenly spread (default: all)"
    )
    parser.add_argument(
        "--xz", action="store_true", help="also compress the books with xz -9, given the training books"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        action="append",
        help="measure on this text file, one book, instead of the validation books; may be repeated",
    )
    parser.add_argument("--output", metavar="DIR", help="where the report goes")
    return parser
