"""The folder of prepared data: no data is taken for other data, and nothing of anybody else's is touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from horovod_transformer.data.manifest import read_manifest
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.manifest import first_difference
from horovod_transformer.prepare.prepare import prepare, settings_of
from horovod_transformer.tokenizer import gpt2_tokenizer
from tests.prepare.conftest import (
    config_for,
    digest,
    refusal,
    run_quietly,
    some_text,
)


def test_prepared_data_is_left_as_it_is(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_quietly(library, tmp_path / "v1")
    before = (tmp_path / "v1" / "manifest.json").stat()
    assert prepare(config_for(library, tmp_path / "v1", num_workers=0)) == first
    assert "already prepared with these settings" in capsys.readouterr().out
    after = (tmp_path / "v1" / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )


def test_other_settings_are_named_and_force_replaces(library: Path, tmp_path: Path) -> None:
    run_quietly(library, tmp_path / "v1")
    before = digest(tmp_path / "v1")
    for key, value, was in (("split_seed", 3, 0), ("validation_fraction", 0.5, 0.05)):
        text = refusal(library, tmp_path / "v1", **{key: value})
        assert f"data.{key} was {was}, now it is {value}; use --force" in text
    (library / "03.txt").write_text(some_text(99), encoding="utf-8")
    assert "the source file 03.txt has changed" in refusal(library, tmp_path / "v1")
    (library / "03.txt").unlink()
    assert "the source file 03.txt is gone" in refusal(library, tmp_path / "v1")
    (library / "new.md").write_text(some_text(98), encoding="utf-8")
    assert "the source file new.md was not there" in refusal(library, tmp_path / "v1")
    assert digest(tmp_path / "v1") == before
    manifest = run_quietly(library, tmp_path / "v1", force=True)
    assert manifest["splits"]["train"]["books"] + manifest["splits"]["validation"]["books"] == 20
    assert sorted(os.listdir(tmp_path)) == ["books", "v1"]
    assert run_quietly(library, tmp_path / "v1") == manifest


def test_another_order_of_files_is_other_data(library: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(library.iterdir())]
    run_quietly(files, tmp_path / "v1")
    assert "the source files come in another order" in refusal(files[::-1], tmp_path / "v1")


def test_what_ranks_read_does_not_grow_with_the_files(library: Path, tmp_path: Path) -> None:
    manifest = run_quietly(library, tmp_path / "v1")
    assert len(manifest["source"]["files"]) == len(os.listdir(library))
    stored = read_manifest(tmp_path / "v1")
    assert "files" not in stored["source"] and stored["splits"] == manifest["splits"]
    (library / "new.md").write_text("Another book. " * 50)
    assert "the source file new.md was not there" in refusal(library, tmp_path / "v1")


def test_another_tokenizer_is_named_whether_or_not_it_is_trained() -> None:
    settings = settings_of(config_for("x", Path("v1")).with_overrides({"data.tokenizer_characters": 5000}))
    trained, chosen = settings.recorded(None), settings.recorded(gpt2_tokenizer())
    trained["data.tokenizer"] = "bpe"
    for had, wanted in ((trained, chosen), (chosen, trained)):
        manifest = {"format_version": 1, "settings": had, "source": {"files": []}}
        was, now = had["data.tokenizer"], wanted["data.tokenizer"]
        assert first_difference(manifest, wanted, []) == f"data.tokenizer was {was}, now it is {now}"


def test_a_hundred_thousand_files_are_compared_in_no_time() -> None:
    config = config_for("x", Path("v1"))
    files = [[f"books/{n}.txt", n, n] for n in range(100_000)]
    settings = settings_of(config).recorded(None)
    manifest = {"format_version": 1, "settings": settings, "source": {"files": files}}
    now = [list(entry) for entry in files]
    began = time.process_time()
    assert first_difference(manifest, settings, now) is None
    now[70_000][1] += 1
    assert first_difference(manifest, settings, now) == "the source file books/70000.txt has changed"
    del now[70_000]
    assert first_difference(manifest, settings, now).endswith("70000.txt is gone")
    assert time.process_time() - began < 10  # each with each takes hours; what else runs does not count


def test_a_lost_split_is_noticed(library: Path, tmp_path: Path) -> None:
    run_quietly(library, tmp_path / "v1")
    (tmp_path / "v1" / "train" / "state.json").unlink()
    assert "its file train/state.json cannot be read: No such file or directory; use --force" in refusal(
        library, tmp_path / "v1"
    )


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"settings": 1, "source": {"files": []}}'])
def test_a_folder_that_is_not_ours_is_never_touched(
    library: Path, tmp_path: Path, content: str | None
) -> None:
    target = tmp_path / "v1"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    if content is not None:
        (target / "manifest.json").write_text(content)
    for force in (False, True):
        assert "is not empty and not ours" in refusal(library, target, force)
    assert (target / "thesis.txt").read_text() == "years of work"


def test_places_where_nothing_can_be_written(library: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file; data.data_dir names a folder" in refusal(library, tmp_path / "file")
    assert "a part of this path is a file" in refusal(library, tmp_path / "file" / "v1")
    with pytest.raises(UserError, match="cannot be written: .*; choose another place"):
        run_quietly(library, Path("/proc/1/v1"))


def test_an_empty_folder_and_a_link_are_fine_places(library: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "scratch" / "real")
    run_quietly(library, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "scratch" / "real" / "manifest.json").is_file()


def test_what_dead_tries_left_is_cleared_and_the_living_are_spared(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host, dead = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [
        f"v1.unfinished-{host}-{dead.pid}",
        f"v1.unfinished-{host}-{os.getppid()}",
        "v1.unfinished-far-7",
    ]
    for name in [*names, f"v1.replaced-{host}-{dead.pid}"]:
        (tmp_path / name).mkdir()
    (tmp_path / f"v1.replaced-{host}-{dead.pid}" / "old").touch()
    (tmp_path / "v10.unfinished-x").mkdir()
    # A try that was killed between its two renames: the old data comes back and is then refused as not ours.
    with pytest.raises(UserError, match="not ours"):
        prepare(config_for(library, tmp_path / "v1"))
    assert os.listdir(tmp_path / "v1") == ["old"]
    assert sorted(os.listdir(tmp_path)) == sorted(["books", "v1", "v10.unfinished-x", *names[1:]])
    said = capsys.readouterr().out
    assert f"{names[0]}: removed" in said and "v1: brought back" in said
    assert f"{names[1]}: belongs to another process" in said and f"{names[2]}: belongs to" in said


@pytest.mark.parametrize("place", ["/", "/tmp/..", "//"])
def test_the_root_folder_is_refused_in_a_line(place: str, library: Path) -> None:
    assert "is the root of the file system; name a folder in it" in refusal(library, Path(place))
