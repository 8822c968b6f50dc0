"""An alpha-beta model of training speed: fitted on two measured points, checked on the others, and drawn.

    .venv/bin/python benchmarks/scaling_model.py

Reads benchmarks/results/scaling.csv, writes the tables of docs/scaling.md, draws docs/pictures/scaling.png.

The model: an update on n ranks takes compute + 2 (n - 1) alpha + 2 (n - 1) / n x bytes / bandwidth (a ring
all-reduce; alpha is the time of one message). Nothing is hidden behind the computation, because all gradients
are summed as one group, after the last of them is there.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scaling.csv"
DOCUMENT = ROOT / "docs" / "scaling.md"
PICTURE = ROOT / "docs" / "pictures" / "scaling.png"
# Mbit/s of the two points that the model is fitted on, without compression.
FITTED_ON = (10_000, 200)
BYTES_PER_GRADIENT = {"none": 4, "fp16": 2}

# H100s: figures of data sheets, and one published speed; see docs/scaling.md.
PARAMETERS = 124e6
TOKENS_PER_GPU_AND_UPDATE = 32 * 512
TOKENS_PER_S_OF_ONE_GPU = 468e3  # llm.c on an H100, the same model at a context of 1,024
NVLINK = 450e9  # bytes per second and direction
GPUS_PER_NODE = {
    "8 GPUs, eight ports of 400 Gbit/s": (8, 8 * 50e9),
    "4 GPUs, one port of 100 Gbit/s, as on Zaratan": (4, 12.5e9),
}
ALPHA_S = 5e-6
GPUS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
# GPUs, efficiency, what, and where its label stands beside the star; other models on other machines.
PUBLISHED = [
    (512, 0.90, "Horovod, Inception V3 and ResNet-101", (-12, -34)),
    (512, 0.68, "Horovod, VGG-16", (-12, -14)),
    (256, 0.91, "NVIDIA, BERT-large", (-12, 20)),
]


@dataclass(frozen=True)
class Fit:
    """Seconds of an update = `fixed` + `overhead` x ideal seconds on the link."""

    fixed: float
    overhead: float

    def seconds(self, row: Row) -> float:
        """What the model expects of a measured point."""
        return self.fixed + self.overhead * row.ideal


@dataclass(frozen=True)
class Row:
    """A measured point: two ranks, one link."""

    compression: str
    mbit_per_s: int
    seconds: float
    tokens: int
    parameters: int

    @property
    def ideal(self) -> float:
        """Seconds that the gradients need on the link: two ranks send 2 (n - 1) / n = 1 times their bytes."""
        return self.parameters * BYTES_PER_GRADIENT[self.compression] * 8 / (self.mbit_per_s * 1e6)


def read_rows() -> list[Row]:
    """The measured points: of each the quickest update, the one that other work disturbed least."""
    points: dict[tuple[str, int], Row] = {}
    with open(RESULTS, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = (row["compression"], int(row["mbit_per_s"]))
            seconds = float(row["seconds"])
            if key not in points or seconds < points[key].seconds:
                points[key] = Row(*key, seconds, int(row["tokens_per_update"]), int(row["parameters"]))
    return [points[key] for key in sorted(points, key=lambda key: (key[0] != "none", -key[1]))]


def fit(rows: list[Row]) -> Fit:
    """The line through the two chosen points."""
    first, second = (
        next(row for row in rows if (row.compression, row.mbit_per_s) == ("none", rate)) for rate in FITTED_ON
    )
    overhead = (second.seconds - first.seconds) / (second.ideal - first.ideal)
    return Fit(first.seconds - overhead * first.ideal, overhead)


def efficiency(gpus: int, per_node: int, node_bandwidth: float, bytes_per_gradient: int) -> float:
    """Share of n single GPUs' speed that n GPUs reach together, each with the same number of blocks."""
    compute = TOKENS_PER_GPU_AND_UPDATE / TOKENS_PER_S_OF_ONE_GPU
    if gpus == 1:
        return 1.0
    # A ring goes through every GPU of a node and leaves it once: the slower of the two ways decides.
    bandwidth = NVLINK if gpus <= per_node else min(NVLINK, node_bandwidth)
    exchange = 2 * (gpus - 1) * (ALPHA_S + PARAMETERS * bytes_per_gradient / gpus / bandwidth)
    return compute / (compute + exchange)


def write_table(name: str, lines: list[str]) -> None:
    """Put lines between `<!-- NAME -->` and `<!-- end -->` of docs/scaling.md."""
    before, found, after = DOCUMENT.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    assert found, f"{DOCUMENT} has no place for {name}"
    after = after[after.index("<!-- end -->") :]
    DOCUMENT.write_text(before + found + "\n".join(["", *lines, "", after]), encoding="utf-8")


def measured_table(rows: list[Row], model: Fit) -> list[str]:
    """Each measured point beside what the model expects of it."""
    lines = [
        f"The fit: fixed {model.fixed:.2f} s, {model.overhead:.2f} times the ideal seconds on the link.",
        "",
        "| compression | Mbit/s | s per update | tokens/s | model, s | off by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        expected = model.seconds(row)
        fitted = " (fitted)" if row.compression == "none" and row.mbit_per_s in FITTED_ON else ""
        speed = row.tokens / row.seconds
        lines.append(
            f"| {row.compression} | {row.mbit_per_s:,} | {row.seconds:.2f} | {speed:,.0f} | {expected:.2f} | "
            f"{expected / row.seconds - 1:+.0%}{fitted} |"
        )
    return lines


def modelled_tables() -> list[str]:
    """The model's H100s, one table for each kind of node."""
    lines: list[str] = []
    for name, (per_node, bandwidth) in GPUS_PER_NODE.items():
        lines += ["", f"**{name}**", ""] if lines else [f"**{name}**", ""]
        lines += ["| GPUs | efficiency | with fp16 compression | tokens/s |", "| --- | --- | --- | --- |"]
        for gpus in GPUS:
            plain, halved = (efficiency(gpus, per_node, bandwidth, size) for size in (4, 2))
            speed = gpus * plain * TOKENS_PER_S_OF_ONE_GPU
            lines.append(f"| {gpus:,} | {plain:.0%} | {halved:.0%} | {speed / 1e6:,.1f} M |")
    return lines


def draw(rows: list[Row], model: Fit) -> None:
    """Measured beside modelled on the left; nothing but model, and published points, on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for compression, colour in (("none", "C0"), ("fp16", "C1")):
        mine = [row for row in rows if row.compression == compression]
        rates = [row.mbit_per_s for row in mine]
        left.plot(
            rates, [r.tokens / r.seconds for r in mine], "o", color=colour, label=f"{compression}, measured"
        )
        expected = [row.tokens / model.seconds(row) for row in mine]
        left.plot(rates, expected, "-", color=colour, label=f"{compression}, model")
    left.set(
        xscale="log",
        ylim=(0, None),
        xlabel="link, Mbit/s",
        ylabel="tokens/s",
        title="30M parameters, two CPU ranks, one link: measured",
    )
    left.legend()
    for (name, (per_node, bandwidth)), colour in zip(GPUS_PER_NODE.items(), ("C2", "C3"), strict=True):
        for size, style in ((4, "-"), (2, "--")):
            label = name + (", fp16" if size == 2 else "")
            values = [100 * efficiency(gpus, per_node, bandwidth, size) for gpus in GPUS]
            right.plot(GPUS, values, style, color=colour, label=label)
    for gpus, share, what, place in PUBLISHED:
        right.plot(gpus, 100 * share, "k*")
        right.annotate(
            what,
            (gpus, 100 * share),
            textcoords="offset points",
            xytext=place,
            ha="right",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5},
        )
    right.set(
        xscale="log",
        ylim=(0, 110),
        xlabel="H100 GPUs",
        ylabel="efficiency, %",
        title="124M parameters: model only; stars: others, published",
    )
    right.set_xscale("log", base=2)
    right.legend(fontsize=7)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Write and draw."""
    rows = read_rows()
    model = fit(rows)
    write_table("measured", measured_table(rows, model))
    write_table("modelled", modelled_tables())
    draw(rows, model)


if __name__ == "__main__":
    main()
