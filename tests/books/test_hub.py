"""Data sets on the hub, from a server on this machine that speaks the little of its protocol that is used."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.books.sources import open_books
from horovod_transformer.errors import UserError

MAIN, OLD = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """Repositories: name -> revision -> (commit, files)."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, tuple[str, dict[str, bytes]]]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories = repositories
        self.fetched: list[str] = []


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/datasets/(\w+/\w+)(?:/(revision|tree)/(.+))?", path):
            self._describe(found[1], found[2], found[3] or "main")
        elif found := re.fullmatch(r"/datasets/(\w+/\w+)/resolve/(\w+)/(.+)", path):
            self._send_file(*found.groups())
        else:
            self._refuse("EntryNotFound")

    def _describe(self, repo: str, what: str | None, revision: str) -> None:
        revisions = self.server.repositories.get(repo)
        if revisions is None:
            self._refuse("RepoNotFound")
            return
        by_commit = {commit: (commit, files) for commit, files in revisions.values()}
        if revision not in revisions | by_commit:
            self._refuse("RevisionNotFound")
            return
        commit, files = (revisions | by_commit)[revision]
        if what == "tree":
            answer: Any = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        else:
            answer = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repo: str, revision: str, name: str) -> None:
        by_commit = dict(self.server.repositories[repo].values())
        content = by_commit[revision][name]
        if self.command == "GET":
            self.server.fetched.append(name)
        self._send(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": revision})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def parquet(*texts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an empty cache."""
    files = {
        "data/one.parquet": parquet("first", "second"),
        "more/two.jsonl": b'{"text": "third"}\n',
        "README.md": b"about",
        "picture.png": b"no text",
        "table.csv": b"a,b",
    }
    splits = {f"data/{split}-0.parquet": parquet(split) for split in ("train", "test")}
    server = Hub(
        {
            "owner/books": {
                "main": (MAIN, files),
                "v1": (OLD, {"old.txt": b"as it was"}),
                "refs/convert/parquet": (OLD, {"old.txt": b"as it was"}),
            },
            "owner/splits": {"main": (MAIN, splits)},
            "owner/nothing": {"main": (MAIN, {"README.md": b"about", "x.csv": b"a"})},
        }
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache [1]"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def texts(source: str) -> list[str]:
    return [book.text for book in open_books(source)]


def refusal(source: str) -> str:
    with pytest.raises(UserError) as caught:
        open_books(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_files_that_are_read_are_fetched_once_and_the_commit_is_kept(hub: Hub) -> None:
    books = open_books("hub:owner/books")
    assert [book.text for book in books] == ["first", "second", "third"]
    assert books.files == [[f"hub:owner/books@{MAIN}"]]
    assert books.taken == {".parquet": 1, ".jsonl": 1}
    assert sorted(hub.fetched) == ["data/one.parquet", "more/two.jsonl"]
    assert texts("hub:owner/books") == ["first", "second", "third"]
    assert len(hub.fetched) == 2, "the second time they are in the cache"


@pytest.mark.parametrize("revision", ["v1", OLD, "refs/convert/parquet"])
def test_another_revision(hub: Hub, revision: str) -> None:
    books = open_books(f"hub:owner/books@{revision}")
    assert [book.text for book in books] == ["as it was"]
    assert books.files == [[f"hub:owner/books@{OLD}"]]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("data/one.parquet", ["first", "second"]), ("more", ["third"]), ("*/t*.jsonl", ["third"])],
)
def test_a_file_a_folder_or_a_glob_of_it(hub: Hub, path: str, wanted: list[str]) -> None:
    books = open_books(f"hub:owner/books@main/{path}")
    assert [book.text for book in books] == wanted
    assert books.files == [[f"hub:owner/books@{MAIN}/{path}"]]
    assert len(hub.fetched) == 1


def test_without_a_network_what_was_fetched_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert len(texts("hub:owner/books")) == 3
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.repositories.clear()
    assert len(texts("hub:owner/books")) == len(texts(f"hub:owner/books@{MAIN}")) == 3
    assert re.search(
        "hub:owner/other: cannot be read .*; use a local copy if offline", refusal("hub:owner/other")
    )


def test_a_hub_that_is_gone_leaves_what_was_fetched(hub: Hub) -> None:
    assert len(texts("hub:owner/books")) == 3
    hub.shutdown()
    hub.server_close()
    assert len(texts("hub:owner/books")) == 3
    assert "use a local copy if offline" in refusal("hub:owner/splits")


def test_several_splits_are_refused_before_they_are_fetched(hub: Hub) -> None:
    said = refusal("hub:owner/splits")
    assert "holds several splits" in said and "hub:owner/splits/train-*.parquet" in said
    assert hub.fetched == []
    assert texts("hub:owner/splits/data/train-*.parquet") == ["train"]


def test_what_is_not_there(hub: Hub) -> None:
    assert "no such data set, or it is private" in refusal("hub:owner/other")
    assert "no such branch, tag or commit" in refusal("hub:owner/books@v9")
    assert "hub:owner/nothing: has no files that are read" in refusal("hub:owner/nothing")
    assert re.search("hub:owner/books/gone.*: (has no files|no such file)", refusal("hub:owner/books/gone"))
    for name in ("", "a b", "a/b@", "../x", "a/b@x@y"):
        assert f"hub:{name}: " in refusal(f"hub:{name}")


def test_tables_of_sentences_name_the_hub(hub: Hub) -> None:
    content = parquet(*[f"he went there for the {n} th time ." for n in range(1200)])
    hub.repositories["owner/short"] = {"main": (MAIN, {"x.parquet": content})}
    with pytest.raises(UserError, match="its rows are sentences"):
        texts("hub:owner/short")
