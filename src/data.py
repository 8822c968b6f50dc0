"""Prepared data: `load_preprocessed_data(data_dir)` and `get_dataloaders(config)`."""

from horovod_transformer.data.dataset import load_preprocessed_data
from horovod_transformer.data.loader import get_dataloaders

__all__ = ["get_dataloaders", "load_preprocessed_data"]
