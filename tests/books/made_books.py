"""E-books and archives made by hand for tests, honest ones and hostile ones."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

CONTAINER = (
    '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">'
    '<rootfiles><rootfile full-path="{path}" media-type="application/oebps-package+xml"/></rootfiles>'
    "</container>"
)
PACKAGE = """<?xml version="1.0"?>{doctype}
<package xmlns="http://www.idpf.org/2007/opf" version="{version}"><metadata
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:opf="http://www.idpf.org/2007/opf">{metadata}</metadata>
<manifest>{items}</manifest><spine>{spine}</spine>{guide}</package>"""
PROSE = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. " * 20


def page(body: str, title: str = "") -> str:
    """A chapter as e-books have them."""
    return (
        '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml" '
        f'xmlns:epub="http://www.idpf.org/2007/ops"><head><title>{title}</title></head><body>{body}</body></html>'
    )


def write_zip(path: Path, files: dict[str, str | bytes]) -> Path:
    """A zip archive with these files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, str | bytes], more: list[tarfile.TarInfo] | None = None) -> Path:
    """A tar with these files in this order, and with links and the like; packed if its name says so."""
    mode = "w" if path.suffix == ".tar" else "w:gz"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more or []:
            archive.addfile(info)
    return path


def write_epub(
    path: Path,
    pages: dict[str, str | bytes],
    *,
    metadata: str = "<dc:title>Paul Clifford</dc:title><dc:creator>Edward Bulwer-Lytton</dc:creator>",
    version: str = "3.0",
    doctype: str = "",
    properties: dict[str, str] | None = None,
    spine: str | None = None,
    guide: str = "",
    package: str = "OEBPS/content.opf",
    **more: str | bytes,
) -> Path:
    """An e-book with these pages, by their names beside the package.

    Args:
        properties: What the manifest says of some pages.
        spine: All of it; by default the pages in their order.
        more: Other files, by names in which `__` stands for `/` and `_dot_` for a full stop.
    """
    folder = package.rpartition("/")[0]
    items = "".join(
        f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml" '
        f'properties="{(properties or {}).get(name, "")}"/>'
        for n, name in enumerate(pages)
    )
    if spine is None:
        spine = "".join(f'<itemref idref="i{n}"/>' for n in range(len(pages)))
    files: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER.format(path=package),
        package: PACKAGE.format(
            version=version, metadata=metadata, items=items, spine=spine, guide=guide, doctype=doctype
        ),
    }
    files |= {f"{folder}/{name}" if folder else name: content for name, content in pages.items()}
    files |= {name.replace("__", "/").replace("_dot_", "."): content for name, content in more.items()}
    return write_zip(path, {name: content for name, content in files.items() if content != b"gone"})
