"""`data verify` finds every kind of damage and names it; `show` and `stats` tell what is there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.config import config_from_dict
from horovod_transformer.data.inspection import show, stats, verify
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import prepare

BLOCK = 16


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of twelve books."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "books").mkdir()
    for n in range(12):
        text = f"Book {n} begins. " + f"It has {n} pages and more than {n * 7} words. " * (9 + n) + "The end."
        (folder / "books" / f"{n:02}.txt").write_text(text)
    config = config_from_dict(
        {
            "model": {"vocab_size": 290, "max_seq_len": BLOCK},
            "data": {"source": str(folder / "books"), "data_dir": str(folder / "v1"), "tokenizer": "bpe"},
        },
        "test",
    )
    prepare(config.with_overrides({"data.validation_fraction": 0.2}), progress=False)
    return folder / "v1"


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "v1"))


def change(data: Path, **splits: dict) -> None:
    path = data / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, values in splits.items():
        manifest["splits"][name].update(values)
    path.write_text(json.dumps(manifest))


def rewrite(data: Path, **splits: list[list[int]]) -> None:
    """Put other blocks in the place of a split's, with a manifest that knows the new sizes."""
    held = datasets.load_from_disk(str(data))
    # Out of the mapped files, which are about to be replaced.
    blocks = {name: splits.get(name, split["input_ids"][:]) for name, split in held.items()}
    features = held["train"].features
    manifest = json.loads((data / "manifest.json").read_text())
    shutil.rmtree(data)
    datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"input_ids": rows}, features=features)
            for name, rows in blocks.items()
        }
    ).save_to_disk(str(data))
    del manifest["sizes"]
    (data / "manifest.json").write_text(json.dumps(manifest))


def rows_of(data: Path, name: str) -> list[list[int]]:
    return datasets.load_from_disk(str(data))[name]["input_ids"][:]


def wrong_with(data: Path) -> str:
    checked, wrong = verify(data)
    assert wrong and all("\n" not in line for line in wrong)
    return "; ".join(wrong)


def test_sound_data_is_sound(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked, wrong = verify(sound)
    assert wrong == [] and checked == {name: len(rows_of(sound, name)) for name in ("train", "validation")}
    assert run_command(_dispatch, ["data", "verify", str(sound)]) == 0
    assert capsys.readouterr().out.startswith(f"{sound}: sound (")


def test_every_flipped_byte_of_a_split_is_found(data: Path) -> None:
    path = next((data / "train").glob("*.arrow"))
    whole = path.read_bytes()
    block = b"".join(token.to_bytes(2, "little") for row in rows_of(data, "train") for token in row)
    start = whole.index(block)
    for place in (start, start + len(block) // 2, start + len(block) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        assert "train: its blocks are not those that were written" in wrong_with(data)
    path.write_bytes(whole)
    assert verify(data)[1] == []


@pytest.mark.parametrize("name", ["train/state.json", "validation/data-00000-of-00001.arrow"])
def test_a_missing_and_a_shortened_file_are_named(
    data: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (data / name).read_bytes()
    (data / name).write_bytes(content[:-1])
    assert f"its file {name} has {len(content) - 1:,} bytes" in wrong_with(data)
    (data / name).unlink()
    assert f"its file {name} cannot be read: No such file" in wrong_with(data)
    assert run_command(_dispatch, ["data", "verify", str(data)]) == 2
    captured = capsys.readouterr()
    assert f"wrong: its file {name}" in captured.out
    assert "prepare --force` makes it again" in captured.err and captured.err.count("\n") == 1


def test_other_counts_than_said(data: Path) -> None:
    change(data, train={"blocks": 3, "books": 5})
    text = wrong_with(data)
    assert "blocks and should have 3" in text and "ends of books and should have 5" in text


def test_ids_beyond_the_vocabulary(data: Path) -> None:
    rows = rows_of(data, "train")
    rows[7][3] = 290
    rewrite(data, train=rows)
    assert "train, block 7: token id 290 is outside the vocabulary of 290" in wrong_with(data)


def test_a_book_on_both_sides(data: Path) -> None:
    rewrite(data, train=[*rows_of(data, "validation"), *rows_of(data, "train")])
    assert "books are in train and in validation" in wrong_with(data)


def test_a_test_split_is_verified_too(sound: Path, tmp_path: Path) -> None:
    config = config_from_dict(
        {
            "model": {"vocab_size": 290, "max_seq_len": BLOCK},
            "data": {
                "source": str(sound.parent / "books"),
                "data_dir": str(tmp_path / "v1"),
                "tokenizer": str(sound),
                "test_fraction": 0.2,
            },
        },
        "test",
    )
    prepare(config, progress=False)
    checked, wrong = verify(tmp_path / "v1")
    assert list(checked) == ["train", "validation", "test"] and wrong == []
    assert set(stats(tmp_path / "v1")["splits"]) == set(checked)
    assert show(tmp_path / "v1", "test")
    rewrite(tmp_path / "v1", train=[*rows_of(tmp_path / "v1", "test"), *rows_of(tmp_path / "v1", "train")])
    assert "books are in train and in test" in wrong_with(tmp_path / "v1")


def test_padding_that_is_text(data: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    name = next(name for name, split in manifest["splits"].items() if split["padding"])
    rows = rows_of(data, name)
    rows[-1][-1] = 65
    rewrite(data, **{name: rows})
    assert f"{name}: its last" in wrong_with(data)


def test_blocks_of_another_length(data: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, "block_size": 32}))
    assert "blocks have 16 tokens and should have 32" in wrong_with(data)


def test_show_gives_the_books_back(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = {path.read_text() for path in (sound.parent / "books").iterdir()}
    found = set()
    for split in ("train", "validation"):
        number = len(rows_of(sound, split))
        whole = "".join(show(sound, split, block, border="\0") for block in range(number))
        found |= set(whole.split("\0")[:-1])
    assert found == books
    assert show(sound, "train", -1) == show(sound, "train", len(rows_of(sound, "train")) - 1)
    assert run_command(_dispatch, ["data", "show", str(sound), "--block", "0"]) == 0
    assert capsys.readouterr().out.startswith("Book ")


def test_stats_are_the_manifests(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((sound / "manifest.json").read_text())
    found = stats(sound)
    assert found["splits"]["train"]["books"] + found["splits"]["validation"]["books"] == 12
    assert found["tokens"] == sum(split["tokens"] for split in manifest["splits"].values())
    assert run_command(_dispatch, ["data", "stats", str(sound), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert run_command(_dispatch, ["data", "stats", str(sound)]) == 0
    assert "tokens per book" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", "{d}/none"], "no prepared data here"),
        (["verify", "{d}/train"], "has no manifest that `prepare` wrote"),
        (["show", "{d}", "--split", "test"], "no split test; there are train, validation"),
        (["show", "{d}", "--block", "99999"], "has the blocks 0 to"),
        (["verify", "{d}", "--split", "validation"], "--split: only `data show` has this option"),
        (["show", "{d}", "--json"], "--json: only `data stats` has this option"),
        (["shw", "{d}"], "shw: no such choice; did you mean show?"),
    ],
)
def test_a_mistake_is_one_line(
    sound: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(_dispatch, ["data", *(word.replace("{d}", str(sound)) for word in words)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("wrong", [None, "x", -1, 1.5, [], True])
@pytest.mark.parametrize(
    "place",
    [
        "splits",
        "splits train",
        *(f"splits train {key}" for key in ("books", "characters", "bytes", "tokens", "blocks", "padding")),
        "sizes train/state.json",
        "block_size",
        "dropped counts empty",
        "unreadable count",
        "reencoded count",
    ],
)
def test_a_manifest_with_other_kinds_of_values_is_one_line(data: Path, place: str, wrong: object) -> None:
    path = data / "manifest.json"
    manifest = json.loads(path.read_text())
    *above, key = place.split()
    part = manifest
    for name in above:
        part = part[name]
    part[key] = wrong
    path.write_text(json.dumps(manifest))
    for words in (["verify"], ["stats"], ["show", "--block=-1"]):
        assert run_command(_dispatch, ["data", words[0], str(data), *words[1:]]) in (0, 2)


def test_a_manifest_that_may_not_be_read_is_not_said_to_be_damaged(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(data))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"manifest.json: cannot be read: Permission denied$"):
        stats(data)


def test_json_of_the_right_size_that_is_none(data: Path) -> None:
    path = data / "train" / "dataset_info.json"
    path.write_bytes(bytes(path.stat().st_size))  # as after a power failure
    assert "its file train/dataset_info.json is not the JSON that was written" in verify(data)[1]


def test_data_in_a_folder_whose_name_is_not_utf_8(data: Path) -> None:
    odd = data.rename(data.with_name("b\udcff"))
    assert verify(odd)[1] == [] and show(odd).startswith("Book ")


@pytest.mark.parametrize("key", ["splits", "block_size", "tokenizer", "dropped", "unreadable", "reencoded"])
def test_a_manifest_that_lacks_something_is_not_ours(data: Path, key: str) -> None:
    path = data / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="has no manifest that `prepare` wrote"):
        stats(data)
