"""Forwards to `horovod_transformer.prepare.figures`, its home: documents have promised this name."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(import_module("horovod_transformer.prepare.figures"), name)
