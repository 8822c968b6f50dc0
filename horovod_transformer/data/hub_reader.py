"""A data set on the hub to books, as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from horovod_transformer.data.readers import Book, ReadOptions, Unreadable, documents
from horovod_transformer.errors import UserError


def check_hub(name: str, options: ReadOptions) -> str:
    """Check that a data set can be reached and has texts; return its version.

    Raises:
        UserError: It cannot, or has not.
    """
    try:
        rows = _open(name)
        columns = rows.column_names
    except Exception as error:
        raise UserError(_unreachable(name, error)) from None
    if columns is not None and options.text_column not in columns:
        raise UserError(f"hub:{name}: has no column `{options.text_column}` but {', '.join(columns[:8])}")
    return str(rows.info.version)


def read_hub(name: str, options: ReadOptions) -> Iterator[Book | Unreadable]:
    """Read the books of a data set on the hub.

    Raises:
        UserError: The connection is lost, or a row is no text.
    """
    return documents(_rows(name, options), options, f"hub:{name}")


def _open(name: str) -> Any:
    import datasets

    return datasets.load_dataset(name, split="train", streaming=True)


def _rows(name: str, options: ReadOptions) -> Iterator[Book | Unreadable]:
    number, stream = 0, None
    while True:
        try:
            stream = stream or iter(_open(name))
            row = next(stream, None)
        except Exception as error:
            raise UserError(_unreachable(f"{name}, row {number}", error)) from None
        if row is None:
            return
        text, title = row.get(options.text_column), row.get(options.title_column)
        if not isinstance(text, str | None):
            raise UserError(
                f"hub:{name}, row {number}: `{options.text_column}` is {type(text).__name__}, not a string"
            )
        yield Book(f"row {number}" if title is None else str(title), text or "", f"hub:{name}, row {number}")
        number += 1


def _unreachable(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0][:160]
    return f"hub:{name}: cannot be read ({type(error).__name__}: {reason}); use a local copy if offline"
