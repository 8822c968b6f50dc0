"""torch's AdamW without torch's compiler, which the plain one loads into every process."""

from __future__ import annotations

import inspect

import torch


class EagerAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), torch's own to the bit, that starts sooner.

    torch wraps these methods so that its compiler leaves them alone, and loads the compiler to tell
    it so: most of a second in every rank, and nothing here compiles an optimizer. `inspect.unwrap`
    finds what stands under the wrappers; with a torch that has none it finds the method itself.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
