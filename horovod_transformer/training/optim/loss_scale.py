"""The loss scale: keeps gradients that pass through fp16 from vanishing."""

from __future__ import annotations


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740).

    The factor is halved when a gradient overflows and doubled after a long time without.

    Args:
        dynamic: Whether anything passes through fp16; otherwise the factor is 1 for ever.

    Attributes:
        dynamic: As given.
        factor: What the loss is multiplied with.
    """

    GROWTH_INTERVAL = 2000  # good updates before the factor is doubled

    def __init__(self, dynamic: bool) -> None:
        self.dynamic = dynamic
        self.factor = 2.0**16 if dynamic else 1.0
        self._good_updates = 0

    def update(self, finite: bool) -> None:
        """Take note of one update's gradients; every rank must be told the same."""
        if not self.dynamic:
            return
        if not finite:
            self.factor = max(1.0, self.factor / 2)
            self._good_updates = 0
            return
        self._good_updates += 1
        if self._good_updates == self.GROWTH_INTERVAL:
            self.factor *= 2
            self._good_updates = 0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps; nothing if the factor never changes."""
        return {"factor": self.factor, "good_updates": self._good_updates} if self.dynamic else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Resume from `state_dict()`; a run that had no scale and now has one begins with the default."""
        if self.dynamic and state:
            self.factor = float(state["factor"])
            self._good_updates = int(state["good_updates"])
