"""A plan in words: the table that is printed, and the command that starts the run."""

from __future__ import annotations

import math
import shlex

from horovod_transformer.planning.config_file import describe_corpus
from horovod_transformer.planning.plan import Plan
from horovod_transformer.planning.rates import find_device
from horovod_transformer.reports.formats import byte_size, duration

GPUS_OF_A_NODE = 4
HEAD = (
    "",
    "size",
    "layers",
    "width",
    "tokens",
    "epochs",
    "tokens/s",
    "time",
    "memory",
    "disk",
    "bits per byte",
)


def describe(plan: Plan, measured: set[int]) -> None:
    """Print the books, the machine, the table and what in it is measured, modelled and guessed."""
    print(f"\nbooks:    {plan.corpus.source}: {describe_corpus(plan.corpus)}")
    print(f"machine:  {plan.machine.name}, {byte_size(plan.machine.memory_bytes)} of memory each")
    print(f"time:     {plan.hours:g} hour{'s' * (plan.hours != 1)}\n")
    rows = [HEAD, *(_row(plan, place, measured) for place in _worth_showing(plan))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD) - 1)]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]))
    print(f"\n* recommended: {plan.reason}.")
    how = "measured here; ~ modelled from the largest one measured"
    if not measured:
        how = "~ modelled from one rate of this GPU (docs/recipes.md)"
    print(f"tokens/s: {how}. Memory and disk: reckoned. Bits per byte of held-out books:")
    print(f"{plan.law.source}; repeated tokens count as in arXiv:2305.16264.")


def _worth_showing(plan: Plan) -> list[int]:
    """All options that can be trained, and the first larger one that cannot, for its reason."""
    places = [place for place, option in enumerate(plan.options) if not option.obstacle]
    after = places[-1] + 1
    return [*places, after] if after < len(plan.options) else places


def _row(plan: Plan, place: int, measured: set[int]) -> tuple[str, ...]:
    option = plan.options[place]
    low, high = option.bits_per_byte - option.error, option.bits_per_byte + option.error
    return (
        "*" if place == plan.recommended else "",
        f"{option.parameters / 1e6:,.1f}M",
        str(option.model.n_layers),
        str(option.model.d_model),
        f"{option.tokens / 1e6:,.1f}M",
        f"{option.epochs:.2g}",
        ("" if option.parameters in measured else "~") + f"{option.tokens_per_second:,.0f}",
        duration(option.seconds),
        byte_size(option.device_bytes),
        byte_size(option.disk_bytes),
        option.obstacle or f"{option.bits_per_byte:.2f} ({low:.2f} to {high:.2f})",
    )


def start_line(plan: Plan, file: str) -> str:
    """The command that starts the recommended run."""
    config, machine = shlex.quote(file), plan.machine
    train = f"horovod-transformer train --config {config}"
    if machine.here:
        return (
            train
            if machine.processes == 1
            else f"horovod-transformer launch -np {machine.processes} -- {train}"
        )
    device = find_device(machine.name.rpartition(" ")[2])
    nodes = -(-machine.processes // GPUS_OF_A_NODE)
    each = -(-machine.processes // nodes)
    minutes = math.ceil(plan.choice.seconds / 60 * 1.1) + 10
    where = f"--nodes={nodes} --ntasks-per-node={each} --gres=gpu:{device.name.partition('-')[0]}:{each}"
    return f"scripts/submit.sh {where} --time={minutes // 60:02d}:{minutes % 60:02d}:00 train {config}"
