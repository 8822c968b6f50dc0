"""The loss curve of a run, as a picture and on the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from horovod_transformer.reports.charts import smoothed
from horovod_transformer.reports.run_records import read_table


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

    updates, losses = _losses(run / "train.csv")
    val_updates, val_losses = _losses(run / "val.csv")
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(updates, losses, color="#9ecae1", linewidth=1, label="training, each update")
    average = np.array(smoothed(losses), dtype=float)
    axes.plot(updates, average, color="#2171b5", linewidth=1.8, label="training, smoothed")
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

    updates, losses = _losses(run / "train.csv")
    val_updates, val_losses = _losses(run / "val.csv")
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.plot(updates, smoothed(losses), label="training loss", marker="braille")
    plotext.scatter(val_updates, val_losses, label="validation loss", marker="o")
    plotext.xlabel("optimizer update")
    return plotext.uncolorize(plotext.build())


def _losses(table: Path) -> tuple[list[float], list[float]]:
    """The updates of a table and their losses, as far as these are numbers."""
    columns = read_table(table)
    pairs = zip(columns["update"], columns["loss"], strict=True)
    known = [(update, loss) for update, loss in pairs if update is not None and loss is not None]
    return [update for update, _ in known], [loss for _, loss in known]
