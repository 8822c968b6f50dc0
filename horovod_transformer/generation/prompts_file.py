"""Many prompts from a file: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation.text import Sample, Writing, write_samples
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.system.console import ProgressBar
from horovod_transformer.system.files import read_at_most, replacing
from horovod_transformer.tokenizer import Tokenizer

# Texts written at once: bounds the memory of keys and values.
BATCH = 16
_LARGEST_FILE = 1 << 28


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line, each with a text `prompt`; empty lines are passed over.

    Raises:
        UserError: The file cannot be read, or a line is something else; it is named.
    """
    name = f"--prompts {path}"
    try:
        with open(path, "rb") as file:
            text = read_at_most(file, _LARGEST_FILE).decode("utf-8-sig")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{name}: is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise UserError(f'{name}, line {number}: should be a JSON object such as {{"prompt": "Once"}}')
        if "samples" in row:
            raise UserError(f"{name}, line {number}: has `samples` already; that is what will be written")
        rows.append(row)
    if not rows:
        raise UserError(f"{name}: holds no prompts")
    return rows


def require_new_file(path: str | Path) -> None:
    """Refuse, before anything is computed, to write over a file or into a folder that is not there.

    Raises:
        UserError: `path` exists, or its folder does not.
    """
    if os.path.lexists(path):  # a link that leads nowhere is somebody's, too
        raise UserError(f"--output {path}: exists already; name another file, or remove it")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"--output {path}: its folder does not exist")


def write_continuations(
    path: str | Path,
    rows: Sequence[dict[str, Any]],
    model: TransformerLM,
    tokenizer: Tokenizer,
    settings: GenerationConfig,
    seed: int | None = None,
    probabilities: bool = False,
) -> int:
    """Continue each row's prompt and write the rows with `samples` added; whole or not at all.

    Args:
        path: The file.
        rows: From `read_prompts`.
        model: From `load_model_for_generation`.
        tokenizer: The one the model was trained with.
        settings: How tokens are drawn; `num_samples` for each prompt.
        seed: As for `Writing`; the texts do not depend on how prompts are grouped.
        probabilities: Add each token's text and log-probability.

    Returns:
        How many tokens were written.

    Raises:
        UserError: The file cannot be written, or as `Writing`.
    """
    path = Path(path)
    together = max(1, BATCH // settings.num_samples)
    bar = ProgressBar("writing", len(rows), unit="prompt")
    tokens = 0
    try:
        with replacing(path) as file:
            for start in range(0, len(rows), together):
                part = rows[start : start + together]
                prompts = [row["prompt"] for row in part]
                first = start * settings.num_samples
                if len(part) == 1:
                    written = list(
                        write_samples(model, tokenizer, prompts[0], settings, seed, probabilities, first)
                    )
                else:
                    writing = Writing(model, tokenizer, prompts, settings, seed, probabilities, first)
                    for _ in writing.pieces():
                        pass
                    written = writing.samples
                for number, row in enumerate(part):
                    samples = [sample for sample in written if sample.prompt == number]
                    described = [_described(sample, tokenizer) for sample in samples]
                    line = json.dumps({**row, "samples": described}, ensure_ascii=False)
                    # Half a surrogate pair has no bytes in UTF-8, but a way to be written in JSON: this one.
                    file.write(line.encode("utf-8", errors="backslashreplace") + b"\n")
                tokens += sum(len(sample.tokens) for sample in written)
                bar.advance(start + len(part))
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
    finally:
        bar.close()
    return tokens


def _described(sample: Sample, tokenizer: Tokenizer) -> dict[str, Any]:
    values: dict[str, Any] = {"text": sample.text, "ended": sample.ended, "tokens": len(sample.tokens)}
    if sample.log_probabilities:
        values["token_texts"] = [tokenizer.decode([token]) for token in sample.tokens]
        values["log_probabilities"] = [round(value, 6) for value in sample.log_probabilities]
    return values
