"""Books in, blocks out: `prepare` writes them, `load_preprocessed_data` and `get_dataloaders` read them."""

from horovod_transformer.data.prepare import prepare
from horovod_transformer.data.sources import Book, Books, open_books

__all__ = ["Book", "Books", "open_books", "prepare"]
