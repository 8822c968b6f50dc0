"""Train a GPT-style language model on books, on any number of GPUs, through Horovod.

The public names, each loaded when it is first asked for (torch takes seconds to import):

    load_config, Config                               configuration
    TransformerLM                                     model
    load_preprocessed_data, get_dataloaders           data
    setup_horovod                                     processes
    run_distributed_training, save_checkpoint, load_checkpoint
    load_model_for_generation, generate_text, stream_text, interactive_generation
"""

from importlib import import_module
from typing import Any

from horovod_transformer.system.openmp import wait_briefly

wait_briefly()  # before anything here imports torch

_HOMES = {
    "Config": "config",
    "load_config": "config",
    "UserError": "errors",
    "TransformerLM": "model.transformer",
    "load_preprocessed_data": "data.dataset",
    "get_dataloaders": "data.loader",
    "setup_horovod": "distributed",
    "run_distributed_training": "training.run",
    "save_checkpoint": "checkpoint.format",
    "load_checkpoint": "checkpoint.format",
    "load_model_for_generation": "generation",
    "generate_text": "generation",
    "stream_text": "generation",
    "interactive_generation": "generation",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
