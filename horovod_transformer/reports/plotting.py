"""The loss curve of a run, as a picture and on the terminal."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from horovod_transformer.errors import UserError


def read_curve(table: Path, column: str = "loss") -> tuple[list[int], list[float]]:
    """Read updates and one column of a run's `train.csv` or `val.csv`.

    Raises:
        UserError: There is no such table, or it is empty.
    """
    if not table.exists():
        raise UserError(f"{table}: no such table; has the run started?")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise UserError(f"{table}: has no rows yet")
    return [int(row["update"]) for row in rows], [float(row[column]) for row in rows]


def draw_curve(run: Path, picture: Path, title: str) -> None:
    """Draw training and validation loss over updates into a PNG.

    Args:
        run: The run's folder below `runs/structured/`.
        picture: The PNG to write.
        title: Above the plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    updates, losses = read_curve(run / "train.csv")
    val_updates, val_losses = read_curve(run / "val.csv")
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(updates, losses, color="#9ecae1", linewidth=1, label="training, each update")
    axes.plot(updates, _smoothed(losses), color="#2171b5", linewidth=1.8, label="training, smoothed")
    axes.plot(val_updates, val_losses, color="#d94801", marker="o", markersize=4, label="validation")
    axes.set(xlabel="optimizer update", ylabel="loss, nats per token", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    plt.close(figure)


def terminal_curve(run: Path, width: int = 90, height: int = 20) -> str:
    """Draw the same as text."""
    import plotext

    updates, losses = read_curve(run / "train.csv")
    val_updates, val_losses = read_curve(run / "val.csv")
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.plot(updates, _smoothed(losses), label="training loss", marker="braille")
    plotext.scatter(val_updates, val_losses, label="validation loss", marker="o")
    plotext.xlabel("optimizer update")
    return plotext.uncolorize(plotext.build())


def _smoothed(values: list[float], window: int = 15) -> list[float]:
    """Centred moving average, shorter at the ends."""
    padded = np.cumsum([0.0, *values])
    low = np.maximum(np.arange(len(values)) - window // 2, 0)
    high = np.minimum(np.arange(len(values)) + window // 2 + 1, len(values))
    return list((padded[high] - padded[low]) / (high - low))
