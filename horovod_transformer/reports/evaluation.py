"""`evaluation.json` and `evaluation.html`: what an evaluation found, for programs and for people.

The page needs nothing but itself. Books and model are untrusted: all text is escaped, and the page
forbids scripts and resources in its own security policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.book_scores import BookScore
from horovod_transformer.evaluation.text_quality import MEASURES, Measure, Sample, Value
from horovod_transformer.reports.html import escape, page
from horovod_transformer.system.files import write_text
from horovod_transformer.tokenizer import Tokenizer

FORMAT_VERSION = 1
JSON_NAME, HTML_NAME = "evaluation.json", "evaluation.html"
# Samples on the page; the JSON has all.
SHOWN_SAMPLES = 8


@dataclass(frozen=True)
class Evaluation:
    """Everything that goes into the report.

    Attributes:
        model: Facts about the model and its checkpoint, by name.
        settings: What decided the result: sampling, seed, numbers of books and samples.
        books: How many books were scored.
        score: Their score.
        xz_bits_per_byte: What `xz -9` needs for them, if that was asked for.
        quality: From `measure_samples`.
        samples: The samples.
        interval: Ends of the 95 % interval of the bits per byte over books, see `interval`.
        copies: For each sample the longest run of tokens copied from the training text, and where
            in the sample it begins; None if there was no training text to look in.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    books: int
    score: BookScore
    xz_bits_per_byte: float | None
    quality: dict[str, dict[str, Value]]
    samples: Sequence[Sample]
    interval: tuple[float, float] | None = None
    copies: Sequence[tuple[int, int]] | None = None


def to_json(evaluation: Evaluation, tokenizer: Tokenizer) -> dict[str, Any]:
    """The report as plain JSON values; what is not a finite number is None."""
    score = evaluation.score
    copies: Sequence[tuple[int, int] | None] = evaluation.copies or [None] * len(evaluation.samples)
    return {
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
            "xz_bits_per_byte": evaluation.xz_bits_per_byte,
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


def write_report(evaluation: Evaluation, tokenizer: Tokenizer, folder: Path) -> tuple[Path, Path]:
    """Write both files, each whole or not at all.

    Returns:
        The paths of the JSON and of the page.

    Raises:
        UserError: They cannot be written.
    """
    values = to_json(evaluation, tokenizer)
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


def interval_text(prediction: dict[str, Any]) -> str:
    """The interval over books in words, with a comma before it; empty if there is none."""
    ends = prediction.get("bits_per_byte_interval")
    return f", 95 % over books: {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""


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
    prediction, samples = values["prediction"], values["samples"]
    shown = samples[:SHOWN_SAMPLES]
    figures = [
        ("bits per byte" + interval_text(prediction), _number(prediction["bits_per_byte"], 3)),
        ("perplexity", _number(prediction["perplexity"], 1)),
        ("loss, nats per token", _number(prediction["loss"], 3)),
        ("accuracy", _number(100 * prediction["accuracy"], 1) + " %"),
    ]
    if prediction["xz_bits_per_byte"] is not None:
        figures.insert(1, ("bits per byte of xz -9", _number(prediction["xz_bits_per_byte"], 3)))
    cards = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for label, value in figures)
    facts = {**values["model"], **values["settings"]}
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(_shown(v))}</td></tr>" for k, v in facts.items())
    body = f"""
<h1>How good is this model?</h1>
<p class="note">{escape(values["model"]["checkpoint"])}, {values["model"]["parameters"]:,} parameters, after
{escape(values["model"]["updates"])} updates.</p>
<h2>Predicting held-out books</h2>
<div class="cards">{cards}</div>
<p class="note">{prediction["books"]:,} whole book{"s" * (prediction["books"] > 1)},
{prediction["tokens"]:,} tokens, {prediction["bytes"]:,} bytes; every token counts once, predicted from at
least half a context wherever the book has so much before it. Bits per byte
compare across tokenizers, and with compressors.</p>
<h2>Writing, beside human text</h2>
<p class="note">{len(samples)} prompts from the same books, each continued by the model and by the book, cut
to equal length but for the last three rows. ± is one standard error of the mean. A model writes like the
books where the two columns agree: higher is not always better.</p>
<table class="quality">
<thead><tr><th></th><th></th><th>model</th><th>human</th></tr></thead>
<tbody>
{_quality_rows(values["quality"])}
</tbody></table>
<details><summary>What the rows mean</summary><dl>
{"".join(f"<dt>{escape(m.label)}</dt><dd>{escape(m.meaning)}</dd>" for m in MEASURES)}
</dl></details>
<h2>Samples</h2>
{"".join(_sample_block(number, sample) for number, sample in enumerate(shown, 1))}
<p class="note">{len(shown)} of {len(samples)}; the others are in {JSON_NAME}.</p>
<h2>Settings</h2>
<table class="facts">{rows}</table>
"""
    return page(f"Evaluation of {values['model']['checkpoint']}", body)


def _quality_rows(quality: dict[str, Any]) -> str:
    rows = []
    for name, group in groupby(MEASURES, key=lambda measure: measure.quality):
        measures = list(group)
        for place, measure in enumerate(measures):
            first = f'<th class="group" rowspan="{len(measures)}">{escape(name)}</th>' if not place else ""
            cells = "".join(f"<td>{_cell(quality[w][measure.key], measure)}</td>" for w in ("model", "human"))
            css = ' class="first"' if not place else ""
            rows.append(
                f'<tr{css}>{first}<th title="{escape(measure.meaning)}">{measure.label}</th>{cells}</tr>'
            )
    return "\n".join(rows)


def _sample_block(number: int, sample: dict[str, Any]) -> str:
    copied = sample.get("longest_copy")
    note = (
        ""
        if copied is None
        else f'<p class="note">Longest run copied from the training text: {copied} tokens.</p>'
    )
    columns = "".join(
        f"<div><h4>{writer} <span>{sample[f'{writer}_tokens']} tokens{_ending(sample, writer)}</span></h4>"
        f'<p class="text">{escape(sample[writer]) or "<i>nothing</i>"}</p></div>'
        for writer in ("model", "human")
    )
    return (
        f'<section><h3>Prompt {number}</h3><p class="text prompt">{escape(sample["prompt"])}</p>'
        f'<div class="pair">{columns}</div>{note}</section>\n'
    )


def _ending(sample: dict[str, Any], writer: str) -> str:
    return ", came to an end" if sample[f"{writer}_ended"] else ""


def _cell(value: dict[str, Any], measure: Measure) -> str:
    text, error = _number(value["value"], measure.decimals), value["standard_error"]
    # The empty span keeps the numbers of a column below each other.
    return f"{text} <span>{'' if error is None else f'± {_number(error, measure.decimals)}'}</span>"


def _plain(value: dict[str, Any], measure: Measure) -> str:
    text = _number(value["value"], measure.decimals)
    error = value["standard_error"]
    return text if error is None else f"{text} ± {_number(error, measure.decimals)}"


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def _finite_pair(pair: tuple[float, float] | None) -> list[float] | None:
    return list(pair) if pair is not None and all(map(math.isfinite, pair)) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
