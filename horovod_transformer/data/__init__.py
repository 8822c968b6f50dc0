"""Books in, blocks out: `data.prepare` writes blocks to disk, `data.loading` reads them."""

from horovod_transformer.data.sources import Book, Books, open_books

# `prepare` is not among them: the function would hide the module of the same name.
__all__ = ["Book", "Books", "open_books"]
