"""The tables of docs/recipes.md: sizes of models with their settings, memory, hours and expected quality.

    .venv/bin/python benchmarks/recipes.py           # write the tables into docs/recipes.md
    .venv/bin/python benchmarks/recipes.py 355M      # print the settings of one size, for a command line

Nothing is measured here. What is computed comes from functions of the package; SIZES holds the choices.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.model.size import checkpoint_bytes, count_parameters, gpu_bytes
from horovod_transformer.planning.expectation import parameters_of_layers
from horovod_transformer.planning.law import OF_LARGE_CORPORA
from horovod_transformer.planning.machine import modelled_speed
from horovod_transformer.planning.rates import find_device

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
DEVICE = find_device("h100")
GPUS = (1, 4, 8)
# Of BookCorpusOpen with GPT-2's tokenizer (docs/data.md), 95 % of which are trained on.
TOKENS = 1_700_000_000
# Hoffmann et al. 2022 (arXiv:2203.15556): about the best for an amount of work.
TOKENS_PER_PARAMETER = 20
# Tokens of a micro-batch, as measured (docs/gpu.md), and the share of the memory that it may fill: Horovod's
# buffers, which no function of ours counts, need the rest.
MICRO_BATCH = 32_768
SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Size:
    """A size with what was chosen for it.

    Attributes:
        name: As people call it.
        layers, width: Its heads are 64 wide, its feed-forward layers four times the width.
        context: Tokens of a block.
        batch: Tokens of an update.
        rate: Peak learning rate of AdamW.
    """

    name: str
    layers: int
    width: int
    context: int
    batch: int
    rate: float

    @property
    def model(self) -> ModelConfig:
        """The shape, with GPT-2's vocabulary."""
        heads = self.width // 64
        shape = {"d_model": self.width, "n_layers": self.layers, "n_heads": heads, "d_ff": 4 * self.width}
        return ModelConfig(max_seq_len=self.context, **shape)

    @property
    def tokens(self) -> int:
        """Tokens that suit the size."""
        return TOKENS_PER_PARAMETER * count_parameters(self.model)

    def training(self, gpus: int) -> TrainingConfig:
        """The settings of training on so many GPUs."""
        blocks = self.batch // self.context
        return TrainingConfig(
            learning_rate=self.rate,
            global_batch_size=blocks,
            per_gpu_batch_size=min(self.piece, blocks // gpus),
        )

    @property
    def piece(self) -> int:
        """Blocks of a micro-batch: as many as were measured, or half of that until they fit."""
        tokens = MICRO_BATCH
        while gpu_bytes(self.model, tokens, True, self.memory) > SHARE_OF_MEMORY * self.memory:
            tokens //= 2
        return tokens // self.context

    @property
    def memory(self) -> int:
        """Bytes of the GPU."""
        return int(DEVICE.memory_gb * 1e9)

    def hours(self, tokens: int, gpus: int) -> float:
        """Of training on so many tokens."""
        return tokens / modelled_speed(DEVICE, gpus, self.model, self.training(gpus)) / 3600

    def overrides(self) -> list[str]:
        """What configs/config.yaml needs to be this size."""
        model, training = self.model, self.training(1)
        values = {
            "model.n_layers": model.n_layers,
            "model.d_model": model.d_model,
            "model.n_heads": model.n_heads,
            "model.d_ff": model.d_ff,
            "model.max_seq_len": model.max_seq_len,
            "training.learning_rate": training.learning_rate,
            "training.global_batch_size": training.global_batch_size,
            "training.per_gpu_batch_size": training.per_gpu_batch_size,
        }
        return [word for key, value in values.items() for word in (f"--{key}", str(value))]


# From 124M on the shapes are GPT-2's (Radford et al. 2019), and the rates those of the nearest sizes of GPT-3
# (Brown et al. 2020, arXiv:2005.14165, table 2.1); batches are smaller than theirs, for the text is less. All
# else is a guess.
SIZES = (
    Size("15M", 3, 256, 512, 65_536, 1e-3),
    Size("30M", 6, 384, 512, 65_536, 1e-3),
    Size("60M", 8, 576, 512, 131_072, 8e-4),
    Size("124M", 12, 768, 512, 131_072, 6e-4),
    Size("355M", 24, 1024, 1024, 262_144, 3e-4),
    Size("774M", 36, 1280, 1024, 524_288, 2.5e-4),
    Size("1.5B", 48, 1600, 1024, 524_288, 2e-4),
)


def settings() -> list[str]:
    """Shape, settings and memory of each size."""
    head = (
        "| size | parameters | layers | width | heads | feed-forward | context | tokens an update | peak rate"
    )
    lines = [f"{head} | blocks a micro-batch | memory, GB | checkpoint, GB |", "| --- " * 12 + "|"]
    for size in SIZES:
        model, parameters = size.model, count_parameters(size.model)
        memory = gpu_bytes(model, size.piece * size.context, True, size.memory)
        row = (
            size.name,
            f"{parameters / 1e6:,.1f} M",
            size.layers,
            f"{size.width:,}",
            model.n_heads,
            f"{model.d_ff:,}",
            f"{size.context:,}",
            f"{size.batch:,}",
            f"{size.rate * 1e4:g}e-4",
            size.piece,
            f"{memory / 1e9:.0f}",
            f"{checkpoint_bytes(model) / 1e9:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    return lines


def hours() -> list[str]:
    """How long each size takes on 1, 4 and 8 GPUs of one node."""
    names = " | ".join(f"{gpus}" for gpus in GPUS)
    lines = [
        f"| size | one pass, on {names} | 20 tokens a parameter | passes | these, on {names} |",
        "| --- " * (2 * len(GPUS) + 3) + "|",
    ]
    for size in SIZES:
        pass_, whole = (
            [_hours(size.hours(tokens, gpus)) for gpus in GPUS] for tokens in (TOKENS, size.tokens)
        )
        lines.append(
            f"| {size.name} | {' | '.join(pass_)} | {size.tokens / 1e9:.1f} B | {size.tokens / TOKENS:.1f} | "
            f"{' | '.join(whole)} |"
        )
    return lines


def quality() -> list[str]:
    """What to expect of each size, with the range of the law."""
    lines = ["| size | one pass, bits per byte | 20 tokens a parameter |", "| --- | --- | --- |"]
    for size in SIZES:
        parameters = parameters_of_layers(size.model)
        expected = (
            OF_LARGE_CORPORA.bits_per_byte(parameters, TOKENS, tokens) for tokens in (TOKENS, size.tokens)
        )
        error = OF_LARGE_CORPORA.error
        ranges = " | ".join(f"{bits:.2f} ({bits - error:.2f} to {bits + error:.2f})" for bits in expected)
        lines.append(f"| {size.name} | {ranges} |")
    return lines


def _hours(hours: float) -> str:
    return (
        f"{max(1, hours * 60):.0f} min"
        if hours < 1
        else f"{hours:.1f} h"
        if hours < 100
        else f"{hours:,.0f} h"
    )


TABLES = {"settings": settings, "hours": hours, "quality": quality}


def with_tables(text: str) -> str:
    """The document with each table between `<!-- NAME -->` and `<!-- end -->` made anew."""
    for name, table in TABLES.items():
        before, found, after = text.partition(f"<!-- {name} -->\n")
        assert found, f"{DOCUMENT} has no place for {name}"
        text = before + found + "\n".join(["", *table(), "", after[after.index("<!-- end -->") :]])
    return text


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or print the settings of the size that is named."""
    if arguments:
        size = next((size for size in SIZES if size.name.lower() == arguments[0].lower()), None)
        if size is None:
            print(
                f"no size {arguments[0]}; there are {', '.join(size.name for size in SIZES)}", file=sys.stderr
            )
            return 2
        print(shlex.join(size.overrides()))
        return 0
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
