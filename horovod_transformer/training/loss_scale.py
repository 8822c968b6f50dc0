"""The fp16 loss scale."""

from __future__ import annotations


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740): keeps fp16 gradients from vanishing.

    The factor is halved when a gradient overflows and doubled after a long time without.

    Attributes:
        factor: What the loss is multiplied with; 1 for ever unless the precision is fp16.
    """

    GROWTH_INTERVAL = 2000  # good updates before the factor is doubled

    def __init__(self, precision: str) -> None:
        self._dynamic = precision == "fp16"
        self.factor = 2.0**16 if self._dynamic else 1.0
        self._good_updates = 0

    def update(self, finite: bool) -> None:
        """Take note of one update's gradients; every rank must be told the same."""
        if not self._dynamic:
            return
        if not finite:
            self.factor = max(1.0, self.factor / 2)
            self._good_updates = 0
            return
        self._good_updates += 1
        if self._good_updates == self.GROWTH_INTERVAL:
            self.factor *= 2
            self._good_updates = 0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"factor": self.factor, "good_updates": self._good_updates}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        if self._dynamic:
            self.factor = float(state["factor"])
            self._good_updates = int(state["good_updates"])
