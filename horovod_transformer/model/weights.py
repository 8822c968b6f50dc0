"""A model around weights that exist already."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.model.transformer import TransformerLM, build_model


class _SkipInit(TorchFunctionMode):
    """Skips `torch.nn.init`: there is nothing to draw on the meta device.

    Drawing there all the same loads torch's compiler: 1.5 s and 70 MB.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def empty_model(config: ModelConfig) -> TransformerLM:
    """Make the model of a config on the meta device: its names and shapes, without memory."""
    with _SkipInit(), torch.device("meta"):
        return build_model(config)


def model_with_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> TransformerLM:
    """Make the model of a config around existing weights: nothing is drawn, nothing is copied.

    Args:
        config: Its shape.
        weights: A state dict; its tensors become the model's parameters.

    Raises:
        RuntimeError: They do not fit the shape.
    """
    if len(weights) < config.n_layers:
        # Before a model of the stated size is laid out: it may be stated as a million layers.
        raise RuntimeError(f"{len(weights)} weights for {config.n_layers} layers")
    model = empty_model(config)
    model.load_state_dict(weights, assign=True)
    model.make_position_table("cpu")
    return model
