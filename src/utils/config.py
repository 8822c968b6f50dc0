"""The configuration."""

from horovod_transformer.config import Config, load_config

__all__ = ["Config", "load_config"]
