"""Data sets on the Hugging Face hub: their files are fetched, then read like any others.

    snapshot = fetch("OWNER/NAME")                       # all that is read of the branch `main`
    snapshot = fetch("OWNER/NAME@v1.0/data/train-*")     # of a tag, branch or commit; some of its files

Files lie in the hub's own cache (`HF_HOME`) and are fetched once. With `HF_HUB_OFFLINE=1`, or without a
network, what lies there is taken.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from horovod_transformer.books.find_files import E_BOOK, TABLES, TEXTS, refuse_mixed_splits
from horovod_transformer.errors import UserError

# As in `hf://datasets/OWNER/NAME@REVISION/PATH`; revisions with slashes are those that the hub makes.
_NAME = re.compile(
    r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@]+))?(?:/(?P<path>[^@]+))?"
)
# A README is no book, and archives and pages hold all sorts of things.
_FETCHED = tuple(f"*{suffix}" for suffix in (*TABLES, *TEXTS, E_BOOK) if suffix != ".md")


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit, on this machine.

    Attributes:
        name: `hub:OWNER/NAME@COMMIT`, and the path in it if one was given.
        folder: Where they lie.
        source: What of it is meant, as `find_files` takes it.
    """

    name: str
    folder: Path
    source: str


def fetch(name: str) -> Snapshot:
    """Fetch the parquet, JSON lines and text files of a data set on the hub.

    Args:
        name: `OWNER/NAME`, perhaps with `@REVISION` and `/PATH`: a file, a folder or a glob.

    Raises:
        UserError: There is no such thing, it cannot be reached, or its files belong to several splits.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(
            f"hub:{name}: is no name of a data set; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION/PATH"
        )
    repo, revision, path = found["repo"], found["revision"], found["path"]
    patterns = [path, *(f"{path}/{pattern}" for pattern in _FETCHED)] if path else list(_FETCHED)

    # Imported late: it takes half a second, and few need it.
    from huggingface_hub import snapshot_download

    try:
        _refuse_several_splits(name, repo, revision, patterns)
        folder = snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except UserError:
        raise
    except Exception as error:
        # The hub's client, its HTTP library and the file system each have their own.
        raise UserError(_explain(name, error)) from None
    place = Path(folder)
    if not place.is_dir():
        raise UserError(f"hub:{name}: has no files that are read ({', '.join(_FETCHED)})")
    source = f"{glob.escape(folder)}/{path}" if path and glob.has_magic(path) else str(place / (path or "."))
    return Snapshot(f"hub:{repo}@{place.name}" + (f"/{path}" if path else ""), place, source)


def _refuse_several_splits(name: str, repo: str, revision: str | None, patterns: list[str]) -> None:
    """Look at the names before hundreds of gigabytes are fetched for nothing."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    try:
        siblings = HfApi().dataset_info(repo, revision=revision, timeout=10).siblings or []
    except Exception:
        return  # what was fetched earlier may do; if not, fetching says what is wrong
    names = [sibling.rfilename for sibling in siblings]
    files = list(filter_repo_objects(names, allow_patterns=patterns))
    refuse_mixed_splits(f"hub:{name}", [(Path(file), file) for file in files], f"hub:{repo}/")


def _explain(name: str, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"hub:{name}: is gated; accept its terms on the hub, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"hub:{name}: no such data set, or it is private (`hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"hub:{name}: the data set has no such branch, tag or commit"
    reason = " ".join((str(error).strip().splitlines() or [""])[0][:160].split())
    return f"hub:{name}: cannot be read ({type(error).__name__}: {reason}); use a local copy if offline"
