"""Books in, blocks out: `prepare` writes blocks to disk, `dataset` and `loader` read them."""

from horovod_transformer.data.sources import Book, Books, open_books

# `prepare` is not among them: the function would hide the module of the same name.
__all__ = ["Book", "Books", "open_books"]
