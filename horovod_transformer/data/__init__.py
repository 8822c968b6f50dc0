"""What training reads: prepared blocks, checked, in the order of the updates."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Documents have promised these here, before books had a room of their own.
    if name in ("Book", "Books", "open_books"):
        from horovod_transformer.books import sources

        return getattr(sources, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
