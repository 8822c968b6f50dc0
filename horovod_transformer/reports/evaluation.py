"""`evaluation.json` and `evaluation.html`: what an evaluation found, for programs and for people.

The page needs nothing but itself. Books and model are untrusted: all text is escaped, and the page
forbids scripts and resources in its own security policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.evaluate import Evaluation
from horovod_transformer.evaluation.text_quality import MEASURES, Measure
from horovod_transformer.reports.formats import any_value, number
from horovod_transformer.reports.html import PAGE_BEGINS, render
from horovod_transformer.reports.verdict import compared, trend_of, verdict_of
from horovod_transformer.system.console import counted
from horovod_transformer.system.files import may_be_replaced, write_text
from horovod_transformer.tokenizer import Tokenizer

FORMAT_VERSION = 1
_JSON_BEGINS = b'{\n "format_version"'
JSON_NAME, HTML_NAME = "evaluation.json", "evaluation.html"
# Samples on the page; the JSON has all.
SHOWN_SAMPLES = 8


def to_json(evaluation: Evaluation, tokenizer: Tokenizer) -> dict[str, Any]:
    """The report as plain JSON values; what is not a finite number is None."""
    score = evaluation.score
    copies: Sequence[tuple[int, int] | None] = evaluation.copies or [None] * len(evaluation.samples)
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": evaluation.model,
        "settings": evaluation.settings,
        "prediction": {
            "loss": _finite(score.loss),
            "perplexity": _finite(score.perplexity),
            "bits_per_byte": _finite(score.bits_per_byte),
            "accuracy": score.accuracy,
            "books": evaluation.books,
            "tokens": score.tokens,
            "bytes": score.bytes,
            "bits_per_byte_interval": _finite_pair(evaluation.interval),
            "bits_per_byte_extremes": _finite_pair(evaluation.extremes),
            "xz_bits_per_byte": evaluation.xz_bits_per_byte,
            "token_frequencies_bits_per_byte": evaluation.frequencies,
            "token_frequencies_counted_in": evaluation.counted_in,
            "guessing_bits_per_byte": evaluation.guessing,
            "beside": [
                {"checkpoint": name, "bits_per_byte": _finite(score.bits_per_byte)}
                for name, score in evaluation.others
            ],
        },
        "quality": {
            writer: {measure.key: asdict(values[measure.key]) for measure in MEASURES}
            for writer, values in evaluation.quality.items()
        },
        "samples": [
            {
                "prompt": tokenizer.decode(sample.prompt),
                "model": tokenizer.decode(sample.model),
                "model_tokens": len(sample.model),
                "model_ended": sample.model_ended,
                "human": tokenizer.decode(sample.human),
                "human_tokens": len(sample.human),
                "human_ended": sample.human_ended,
                "longest_copy": None if copy is None else copy[0],
                "longest_copy_text": None
                if copy is None
                else tokenizer.decode(sample.model[copy[1] : copy[1] + copy[0]]),
            }
            for sample, copy in zip(evaluation.samples, copies, strict=True)
        ],
    }
    run_trend = trend_of(evaluation.model["checkpoint"])
    values["verdict"] = verdict_of(values["prediction"], run_trend)
    return values


def require_ours(folder: Path) -> None:
    """Refuse, before anything is computed, to write over files of these names that are no evaluation's.

    Raises:
        UserError: One is there.
    """
    for name, begins in ((JSON_NAME, _JSON_BEGINS), (HTML_NAME, PAGE_BEGINS)):
        if not may_be_replaced(folder / name, begins):
            raise UserError(
                f"--output {folder}: its {name} is no evaluation's; name another folder, or remove that"
            )


def write_report(values: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write both files for what `to_json` returned, each whole or not at all.

    Returns:
        The paths of the JSON and of the page.

    Raises:
        UserError: They cannot be written.
    """
    contents = {
        JSON_NAME: json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1) + "\n",
        HTML_NAME: to_html(values),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror or error} (--output)") from None
    return folder / JSON_NAME, folder / HTML_NAME


def summary_lines(evaluation: Evaluation, values: dict[str, Any]) -> list[str]:
    """An evaluation, and what `to_json` made of it, as lines for a terminal."""
    score, settings = evaluation.score, evaluation.settings
    lines = [
        f"{counted(evaluation.books, 'held-out book')}, {score.tokens:,} tokens, {score.bytes:,} bytes",
        f"  loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.2f}, "
        f"accuracy {100 * score.accuracy:.1f} %",
        f"  {score.bits_per_byte:.3f} bits per byte{interval_text(values['prediction'])}",
        *(f"    {bits:.3f} {name}" for name, bits in compared_with(values["prediction"])),
    ]
    if evaluation.samples:
        lines.append(
            f"{settings['samples']} continuations of prompts of {settings['prompt_tokens']} tokens, "
            "± one standard error"
        )
        lines += [f"  {line}" for line in table_lines(values)]
    copied = copy_line(values)
    return [*lines, *([f"  {copied}"] if copied else []), values["verdict"]]


def compared_with(prediction: dict[str, Any]) -> list[tuple[str, float]]:
    """What the model's bits per byte stand beside, the fewest bits first: names, and the bits of each."""
    counted_in = prediction["token_frequencies_counted_in"]
    rows = [
        ("xz -9, given the training books", prediction["xz_bits_per_byte"]),
        (
            f"knowing only how often each token comes, counted in {counted_in}",
            prediction["token_frequencies_bits_per_byte"],
        ),
        ("giving every token the same chance", prediction["guessing_bits_per_byte"]),
        *((other["checkpoint"], other["bits_per_byte"]) for other in prediction["beside"]),
    ]
    return sorted(((name, bits) for name, bits in rows if bits), key=lambda row: row[1])


def interval_text(prediction: dict[str, Any]) -> str:
    """The interval over books in words, the range of a few, a comma before it; empty for a single one."""
    if prediction["bits_per_byte_interval"]:
        low, high = prediction["bits_per_byte_interval"]
        return f", 95 % over books: {low:.3f} to {high:.3f}"
    if prediction["bits_per_byte_extremes"]:
        low, high = prediction["bits_per_byte_extremes"]
        return f", range over {prediction['books']} books: {low:.3f} to {high:.3f}"
    return ""


def copy_line(values: dict[str, Any]) -> str | None:
    """The longest copies of all samples in a line; None if they were not looked for."""
    lengths = sorted(s["longest_copy"] for s in values["samples"] if s["longest_copy"] is not None)
    if not lengths:
        return None
    return (
        f"longest exact copy from the training text: median {lengths[len(lengths) // 2]} tokens, "
        f"most {lengths[-1]}"
    )


def table_lines(values: dict[str, Any]) -> list[str]:
    """The comparison as lines for a terminal."""
    quality = values["quality"]
    lines = [f"{'':42}{'model':>16}{'human':>16}"]
    for measure in MEASURES:
        cells = (_plain(quality[writer][measure.key], measure) for writer in ("model", "human"))
        lines.append(f"{measure.quality:<11}{measure.label:<31}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def to_html(values: dict[str, Any]) -> str:
    """The page for what `to_json` returned."""
    facts = {**values["model"], **values["settings"]}
    return render(
        "evaluation.html.j2",
        title=f"Evaluation of {values['model']['checkpoint']}",
        model=values["model"],
        prediction=values["prediction"],
        verdict=values["verdict"],
        scores=_scores(values["prediction"]),
        beside=_beside(values["prediction"]),
        groups=[(name, list(group)) for name, group in groupby(MEASURES, key=lambda m: m.quality)],
        writers=("model", "human"),
        quality=values["quality"],
        samples=values["samples"],
        shown=values["samples"][:SHOWN_SAMPLES],
        json_name=JSON_NAME,
        settings=[(name, [any_value(value, digits=None)]) for name, value in facts.items()],
    )


def _scores(prediction: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers in large print, each with what it is."""
    return [
        (number(prediction["bits_per_byte"], 3), "bits per byte" + interval_text(prediction)),
        (number(prediction["perplexity"], 1), "perplexity"),
        (number(prediction["loss"], 3), "loss, nats per token"),
        (number(100 * prediction["accuracy"], 1) + " %", "accuracy"),
    ]


def _beside(prediction: dict[str, Any]) -> list[tuple[str, str, float, str]]:
    """Name, bits per byte, those as a share of the most, and how the model's are beside them."""
    own = prediction["bits_per_byte"]
    if own is None:
        return []
    rows = [*compared_with(prediction), ("this model", own)]
    most = max(bits for _, bits in rows)
    return [
        (name, number(bits, 3), bits / most, "" if name == "this model" else compared(own, bits))
        for name, bits in sorted(rows, key=lambda row: row[1])
    ]


def _plain(value: dict[str, Any], measure: Measure) -> str:
    text = number(value["value"], measure.decimals)
    error = value["standard_error"]
    return text if error is None else f"{text} ± {number(error, measure.decimals)}"


def _finite_pair(pair: tuple[float, float] | None) -> list[float] | None:
    return list(pair) if pair is not None and all(map(math.isfinite, pair)) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
