"""Sums in bfloat16 between hosts, with error feedback: what rounding took is sent with the next update.

Half of float32's bytes travel. Each number is rounded twice: on its host before it is sent, and as the sum
of all hosts before it is sent back. Both remainders are kept and added to the next update's numbers, so that
errors do not pile up (Seide et al. 2014, 1-bit stochastic gradient descent; Karimireddy et al. 2019,
arXiv:1901.09847). A sum of bfloat16 numbers in a ring would round once more at every hop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ErrorFeedback:
    """Adds flat tensors up over hosts in bfloat16 and keeps the remainders.

    Remainders are kept in bfloat16, too: that loses 2**-18 of a number, at most.

    Args:
        sizes: Numbers in this rank's share of each group of gradients, multiples of `hosts`.
        hosts: How many.
        exchange: Sends the first of as many equal pieces of a bfloat16 tensor to the first host, and so on;
            returns those that came, by host.
        gather: Puts the hosts' bfloat16 tensors in a row. Both are *collective* and also take a name.
        device: Of the gradients.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        hosts: int,
        exchange: Callable[[Tensor, str], Tensor],
        gather: Callable[[Tensor, str], Tensor],
        device: torch.device,
    ) -> None:
        self._hosts, self._exchange, self._gather = hosts, exchange, gather
        # Of all groups in a row: what was lost before sending, then what was lost of the sums.
        lengths = [*sizes, *(size // hosts for size in sizes)]
        self._remainders = torch.zeros(sum(lengths), dtype=torch.bfloat16, device=device)
        parts = self._remainders.split(lengths)
        self._before_sending, self._of_sums = parts[: len(sizes)], parts[len(sizes) :]
        # Where numbers are rounded to: new memory for each group would cost more than the arithmetic.
        self._rounded = torch.empty(max(sizes), dtype=torch.bfloat16, device=device)
        self._scale = 1.0

    def begin_update(self, loss_scale: float) -> None:
        """Say what the next update's gradients are multiplied with, a power of two: remainders follow it."""
        if loss_scale != self._scale:
            self._remainders.mul_(loss_scale / self._scale)
            self._scale = loss_scale

    def sum(self, share: Tensor, group: int) -> Tensor:
        """Add this rank's share of a group, float32, up over hosts, in place. *Collective.*"""
        rounded = self._round(share, self._before_sending[group])
        mine, *others = self._exchange(rounded, f"send.{group}").view(self._hosts, -1)
        total = share[: len(mine)].copy_(mine)
        for other in others:
            total.add_(other)
        return share.copy_(self._gather(self._round(total, self._of_sums[group]), f"return.{group}"))

    def end_update(self, skipped: Tensor) -> None:
        """Forget all remainders if the update is skipped: they may be infinite or NaN.

        Args:
            skipped: Scalar, not 0 if it is; on the device of the gradients.
        """
        if skipped.is_cuda or skipped.item():  # `.item()` is free on a CPU; it would synchronize a GPU
            self._remainders.masked_fill_(skipped.bool(), 0.0)

    def state(self) -> Tensor:
        """This rank's remainders in a row, bfloat16, without the loss scale."""
        return self._remainders / self._scale

    def load_state(self, remainders: Tensor) -> bool:
        """Go on with the remainders of a checkpoint; return whether they fit."""
        if remainders.dtype != torch.bfloat16 or remainders.shape != self._remainders.shape:
            return False
        self._remainders.copy_(remainders * self._scale)
        return True

    def _round(self, numbers: Tensor, remainder: Tensor) -> Tensor:
        """Add what was lost the last time and round; numbers and remainder then hold what is lost now."""
        rounded = self._rounded[: len(numbers)].copy_(numbers.add_(remainder))
        remainder.copy_(numbers.sub_(rounded))
        return rounded
