"""When something is due in a run: validation, checkpoints, sample texts, a row of the log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Every:
    """Due after every `interval`-th update, and after the last one of a run.

    Attributes:
        interval: Updates between two times; None: never, but for `last`.
        last: The run's last update; None: it is due like any other.
    """

    interval: int | None
    last: int | None = None

    def is_due(self, update: int) -> bool:
        """Whether it is due after this many updates."""
        at_interval = self.interval is not None and update > 0 and update % self.interval == 0
        return at_interval or update == self.last
