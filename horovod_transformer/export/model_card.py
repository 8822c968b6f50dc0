"""The README.md of an exported model: what is known of it, and what its owner still has to say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from horovod_transformer.metrics import bits_per_byte, perplexity
from horovod_transformer.tokenizer import END_OF_TEXT

_NAMES = {"gpt2": "GPT-2", "gpt_neox": "GPT-NeoX", "llama": "Llama", "qwen3": "Qwen3"}
TO_FILL_IN = "*to be filled in*"


def model_card(
    name: str,
    contents: dict[str, Any],
    parameters: int,
    manifest: dict[str, Any] | None,
    samples: Sequence[str],
) -> str:
    """Write the card from a run's own facts; what is not known is left out, not made up.

    Args:
        name: Of the model.
        contents: Its checkpoint, as `load_checkpoint` returns it; the weights are not looked at.
        parameters: How many it has.
        manifest: Of the data it was trained on, if that is at hand.
        samples: Texts it wrote.
    """
    config = contents["config"]
    form = "gpt_neox" if config["model"].get("positions") == "rotary" else "gpt2"
    if config["model"].get("architecture") == "llama":
        form = "qwen3" if config["model"]["qk_norm"] else "llama"
    facts = _facts(contents, parameters, manifest)
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    # Paths of the machine it was trained on are nobody's business.
    shown = {section: config[section] for section in ("model", "training", "generation")}
    origin = "trained with" if contents["progress"].get("update") else "imported into"
    texts = "\n\n".join(_fenced(text, "text") for text in samples)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [{form}, horovod_transformer]
# license: to be filled in
---

# {name}

A language model in the manner of {_NAMES[form]}, of {parameters:,} parameters, {origin} horovod_transformer.

| | |
| --- | --- |
{table}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

A new text begins after the token `{END_OF_TEXT}`. Written out in a text, these characters are that token
to `transformers`; training took them for plain characters.

## What it wrote

Not chosen: the first {len(samples)} with seed 0.

{texts}

## Data, intended use, limits, licence

- Data: {_data_line(manifest)}
- Intended use: {TO_FILL_IN}
- Limits and risks: {TO_FILL_IN}
- Licence of the weights: {TO_FILL_IN}
- Licence of the data: {TO_FILL_IN}

## Configuration

{_fenced(yaml.safe_dump(shown, sort_keys=False).strip(), "yaml")}
"""


def _facts(contents: dict[str, Any], parameters: int, manifest: dict[str, Any] | None) -> dict[str, str]:
    model, progress = contents["config"]["model"], contents["progress"]
    kind = (contents["tokenizer"] or {"kind": "gpt2"})["kind"]
    facts = {
        "parameters": f"{parameters:,}",
        "shape": f"{model['n_layers']} layers, width {model['d_model']}, {model['n_heads']} heads",
        "context": f"{model['max_seq_len']:,} tokens",
        "vocabulary": f"{model['vocab_size']:,} tokens ({kind})",
    }
    updates, tokens = progress.get("update"), progress.get("tokens")
    if updates and isinstance(updates, int) and isinstance(tokens, int):
        facts["trained for"] = f"{updates:,} updates, {tokens:,} tokens"
    loss = progress.get("best_validation_loss")
    if isinstance(loss, int | float) and math.isfinite(loss):
        facts["best validation loss"] = f"{loss:.4f} nats per token, perplexity {perplexity(loss):.2f}"
        split = (manifest or {}).get("splits", {}).get("validation", {})
        if split.get("bytes") and split.get("tokens"):
            facts["the same in bits per byte"] = (
                f"{bits_per_byte(loss, split['bytes'] / split['tokens']):.4f}"
            )
    return facts


def _data_line(manifest: dict[str, Any] | None) -> str:
    split = (manifest or {}).get("splits", {}).get("train")
    if not split:
        return TO_FILL_IN
    return (
        f"{split['books']:,} books, {split['bytes']:,} bytes, {split['tokens']:,} tokens to train on; "
        "which books, and by what right: " + TO_FILL_IN
    )


def _fenced(text: str, language: str) -> str:
    """Put text between fences longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
