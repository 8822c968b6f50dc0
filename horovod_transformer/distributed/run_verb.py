"""Forwards to `horovod_transformer.launch.subcommand`, its home: documents have promised this name."""

from typing import Any


def __getattr__(name: str) -> Any:
    from horovod_transformer.launch import subcommand

    return getattr(subcommand, "run_subcommand" if name == "run_verb" else name)
