"""Which versions of what are installed."""

from __future__ import annotations

from importlib import metadata


def installed_version(name: str) -> str | None:
    """The version of an installed package; None if it is not, as this one when run from its sources."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
