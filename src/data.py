"""Prepared data: `load_preprocessed_data(data_dir)` and `get_dataloaders(config)`."""

from horovod_transformer.data.loading import get_dataloaders, load_preprocessed_data

__all__ = ["get_dataloaders", "load_preprocessed_data"]
