"""What sums by host, fp16 and the embedding's gradient in two parts are worth over links of many speeds.

    .venv/bin/python benchmarks/scaling_hosts.py

Reads benchmarks/results/scaling_hosts.csv, which `benchmarks/scaling.py --ranks-per-host 2` writes, and
writes a table of docs/scaling.md. The model that stands beside the measured seconds takes from an update of
the same setting at 10,000 Mbit/s how long everything but a slow link takes, and from one in one step how long
the backward pass goes on once the projection's gradient is there. So long a slower link hides behind it, but
not the embedding's bytes unless these leave in two parts.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from scaling_model import BYTES_PER_GRADIENT, RESULTS, write_table

RESULTS_OF_HOSTS = RESULTS.with_name("scaling_hosts.csv")
FAST = 10_000  # Mbit/s
USUAL_GROUPS = 4
EMBEDDING_SHARE = {"30M": 50_257 * 384 / 29_946_240, "third": 1 / 3}


@dataclass(frozen=True)
class Setting:
    """What is the same at all links."""

    model: str
    hosts: int
    hierarchical: bool
    compression: str
    in_two: bool
    groups: int

    @property
    def name(self) -> str:
        """As the documents call it."""
        words = ["by host" if self.hierarchical else "in one step"]
        words += [self.compression] if self.compression != "none" else []
        words += ["embedding in two parts"] if self.in_two else []
        words += [f"{self.groups} groups"] if self.groups != USUAL_GROUPS else []
        return ", ".join(words)

    def seconds_on_link(self, parameters: int, rate: int, ranks_per_host: int = 2) -> float:
        """How long a host's link is busy with an update, each way: a ring over ranks or hosts."""
        ring = self.hosts if self.hierarchical else self.hosts * ranks_per_host
        sent = 2 * (ring - 1) / ring * parameters * BYTES_PER_GRADIENT[self.compression]
        return sent * 8 / (rate * 1e6)


def read() -> tuple[dict[tuple[Setting, int], list[float]], dict[str, int], dict[Setting, float]]:
    """Seconds of each update by setting and rate, the models' parameters, and backward passes at FAST."""
    seconds: dict[tuple[Setting, int], list[float]] = defaultdict(list)
    backward: dict[Setting, list[float]] = defaultdict(list)
    parameters = {}
    with open(RESULTS_OF_HOSTS, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["backward"]:
                continue  # of another day and machine: see the document
            setting = Setting(
                row["model"],
                int(row["hosts"]),
                row["hierarchical"] == "True",
                row["compression"],
                row["in_two"] == "True",
                int(row["groups"]),
            )
            rate = int(row["mbit_per_s"])
            seconds[setting, rate].append(float(row["seconds"]))
            parameters[row["model"]] = int(row["parameters"])
            if rate == FAST:
                backward[setting].append(float(row["backward"]))
    return seconds, parameters, {setting: median(each) for setting, each in backward.items()}


def expected(setting: Setting, fast: float, backward: float, parameters: int, rate: int) -> float:
    """Seconds of an update over a link, as the model has it.

    Args:
        setting: With how many hosts, and so on.
        fast: Seconds of an update at FAST.
        backward: Seconds of it once the projection's gradient is there.
        parameters: Of the model.
        rate: Of the link, Mbit/s.
    """
    wire = setting.seconds_on_link(parameters, rate) - setting.seconds_on_link(parameters, FAST)
    early = 1.0 if setting.in_two else 1.0 - EMBEDDING_SHARE[setting.model]
    return fast + max(wire - backward, wire * (1 - early))


def main() -> None:
    """Write the table."""
    seconds, parameters, backward = read()
    rates = sorted({rate for _, rate in seconds}, reverse=True)
    settings = sorted({setting for setting, _ in seconds}, key=lambda s: (s.model, s.hosts, s.in_two, s.name))
    lines = ["| model, hosts | gradients | " + " | ".join(f"{rate:,}" for rate in rates) + " |"]
    lines.append("| --- " * (2 + len(rates)) + "|")
    for setting in settings:
        plain = Setting(setting.model, setting.hosts, False, "none", False, USUAL_GROUPS)
        if not all((each, FAST) in seconds for each in (plain, setting)):
            continue
        best, fast = (median(seconds[each, FAST]) for each in (plain, setting))
        cells = []
        for rate in rates:
            model = expected(setting, fast, backward[plain], parameters[setting.model], rate)
            measured = seconds.get((setting, rate))
            if measured is None:
                cells.append("–")
                continue
            beside = "" if rate == FAST else f" ({model:.1f})"
            cells.append(f"{median(measured):.2f}{beside}, {best / median(measured):.0%}")
        lines.append(f"| {setting.model}, {setting.hosts} | {setting.name} | " + " | ".join(cells) + " |")
    write_table("links", lines)


if __name__ == "__main__":
    main()
