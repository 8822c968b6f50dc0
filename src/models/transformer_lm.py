"""The language model."""

from horovod_transformer.model.transformer import TransformerLM

__all__ = ["TransformerLM"]
