"""A plan as a config file, each value with why it is what it is."""

from __future__ import annotations

import json
import textwrap

from horovod_transformer.planning.corpus import Corpus
from horovod_transformer.planning.plan import Plan
from horovod_transformer.planning.shapes import TUNED_WIDTH

COLUMN = 34


def config_text(plan: Plan, data_dir: str, source: str | list[str] | None = None) -> str:
    """Return the YAML of the recommended option.

    Args:
        plan: The plan.
        data_dir: Where the prepared data is, or will be.
        source: `data.source`; None leaves it out, for data that is prepared already.
    """
    option, corpus = plan.choice, plan.corpus
    model, training = option.model, option.training
    batch = (training.global_batch_size or 0) * model.max_seq_len
    low, high = option.bits_per_byte - option.error, option.bits_per_byte + option.error
    about = (
        f"Written by `horovod-transformer plan` for {describe_corpus(corpus)}; {plan.machine.name}, "
        f"{plan.hours:g} hours. Why this model: {plan.reason}. Expected of held-out books: {low:.2f} to "
        f"{high:.2f} bits per byte ({plan.law.source}). What is not named here has its default."
    )
    lines = [
        *textwrap.wrap(about, 100, initial_indent="# ", subsequent_indent="# "),
        "",
        "model:",
        _row("vocab_size", model.vocab_size, _why_vocabulary(corpus)),
        _row("d_model", model.d_model, f"{option.parameters / 1e6:,.1f} million parameters in all"),
        _row("n_layers", model.n_layers, "in little time a wide model learns more than a deep one"),
        _row("n_heads", model.n_heads, f"of {model.d_model // model.n_heads} numbers each"),
        _row("d_ff", model.d_ff, "four times d_model, as is usual"),
        _row("max_seq_len", model.max_seq_len, _why_context(corpus)),
        _row("positions", model.positions, "learn faster than sinusoidal ones (docs/log.md)"),
        "",
        "training:",
        _row(
            "epochs", training.epochs, f"{option.epochs:.1f} passes over the books; max_updates ends the last"
        ),
        _row("max_updates", training.max_updates, "what the time allows, or all that the books are good for"),
        _row("optimizer", training.optimizer, "learns more than adamw in the same time (docs/log.md)"),
        _row("learning_rate", training.learning_rate, _why_rate(model.d_model)),
        _row("weight_decay", training.weight_decay, _why_decay(training.epochs)),
        _row("schedule", training.schedule, "down to 0 at the end of the run"),
        _row("min_learning_rate_ratio", training.min_learning_rate_ratio, ""),
        _row(
            "global_batch_size",
            training.global_batch_size,
            f"blocks, {batch:,} tokens: some 2,000 updates a run",
        ),
        _row(
            "per_gpu_batch_size",
            training.per_gpu_batch_size,
            "blocks in a pass; the update does not depend on it",
        ),
        _row("exact_up_to", training.exact_up_to, "the same bits on so many processes"),
        _row("log_interval", training.log_interval, "200 rows in the tables"),
        _row("eval_interval", training.eval_interval, "20 times in the run"),
        _row("save_interval", training.save_interval, "a kill loses a twentieth of the run at most"),
        "",
        "data:",
    ]
    if source is not None:
        lines.append(_row("source", source, "the books"))
    if corpus.encoding is not None:
        lines.append(
            _row("encoding", corpus.encoding, "some books are not UTF-8: a guess, look into the report")
        )
    lines.append(_row("tokenizer", corpus.tokenizer, ""))
    lines.append(_row("data_dir", data_dir, "where `prepare` puts the blocks"))
    return "\n".join(lines) + "\n"


def describe_corpus(corpus: Corpus) -> str:
    """The books in words: how many, how much text, how many tokens, and how that is known."""
    books = "books" if corpus.books is None else f"{corpus.books:,} book{'s' * (corpus.books != 1)}"
    known = "counted" if corpus.counted else "estimated from a sample"
    return f"{books}, {corpus.text_bytes / 1e6:,.1f} MB to train on, {corpus.tokens:,} tokens ({known})"


def _row(key: str, value: object, why: str) -> str:
    # JSON is YAML, and quotes what has to be; but a plain word needs no quotes.
    text = value if isinstance(value, str) and value.isalnum() else json.dumps(value, ensure_ascii=False)
    row = f"  {key}: {text}"
    return f"{row:<{COLUMN}}  # {why}" if why else row


def _why_vocabulary(corpus: Corpus) -> str:
    if corpus.tokenizer == "gpt2":
        return "GPT-2's vocabulary"
    return "made from these books: an entry for about each thousand bytes"


def _why_context(corpus: Corpus) -> str:
    if corpus.block_size is not None:
        return "tokens; the blocks are prepared with it"
    return "tokens; longer where there is more text"


def _why_rate(width: int) -> str:
    if width == TUNED_WIDTH:
        return "tuned at this width, on plays"
    return f"tuned at a width of {TUNED_WIDTH}; by the root of the width from there, a guess"


def _why_decay(epochs: int) -> str:
    return (
        "strong, for the books are read several times"
        if epochs > 1
        else "the usual, for nothing is read twice"
    )
