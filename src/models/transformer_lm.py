"""The language model."""

from horovod_transformer.model import TransformerLM

__all__ = ["TransformerLM"]
