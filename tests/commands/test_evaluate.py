"""`horovod-transformer evaluate`: what it prints and writes, its options, and mistakes."""

from __future__ import annotations

import errno
import gzip
import json
import math
import re
import shutil

import numpy as np
import pytest

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.commands import evaluate
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.evaluation import evaluate as evaluation
from horovod_transformer.evaluation.text_quality import MEASURES
from horovod_transformer.model.transformer import build_model
from horovod_transformer.reports import evaluation as reports
from horovod_transformer.tokenizer import Tokenizer, train_bpe
from tests.conftest import LINE, TINY, tiny_checkpoint_contents

CONTEXT = TINY.max_seq_len


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The command sets the number of threads; here it stays as it is."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write_data(folder, tokenizer: Tokenizer, books: list[str]):
    """Prepared data as far as `evaluate` reads it: both splits hold these books."""
    import datasets

    stream = [token for book in books for token in [*tokenizer.encode(book), tokenizer.eos_token_id]]
    padding = -len(stream) % CONTEXT
    rows = np.array(stream + [0] * padding).reshape(-1, CONTEXT).tolist()
    splits = {name: datasets.Dataset.from_dict({"input_ids": rows}) for name in ("train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    described = {
        "padding": padding,
        "tokens": len(stream),
        "bytes": sum(len(book.encode()) for book in books),
    }
    manifest = {"tokenizer": tokenizer.to_dict(), "splits": {"train": described, "validation": described}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_checkpoint, tiny_tokenizer):
    """A run with a checkpoint that recites LINE, and books of that and more."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    shutil.copy(tiny_checkpoint, folder / "checkpoints" / "best_model.pt")
    write_data(folder / "data", tiny_tokenizer, [LINE, LINE + " <b>The sea</b> & the land. " + LINE])
    return folder


def command(folder, *arguments: str) -> list[str]:
    return [
        "--checkpoint",
        str(folder / "checkpoints" / "best_model.pt"),
        "--data.data_dir",
        str(folder / "data"),
        "--samples",
        "6",
        *arguments,
    ]


def test_command(run_folder, run_python):
    done = run_python("-m", "horovod_transformer", "evaluate", *command(run_folder, "--xz"))
    assert done.returncode == 0, done.stderr
    result = json.loads((run_folder / "evaluation" / "evaluation.json").read_text())
    assert set(result) == {
        *("format_version", "model", "settings", "prediction", "quality", "samples", "verdict")
    }
    prediction = result["prediction"]
    assert prediction["books"] == 2 and prediction["xz_bits_per_byte"] > 0
    assert prediction["perplexity"] == pytest.approx(math.exp(prediction["loss"]))
    assert prediction["bits_per_byte"] == pytest.approx(
        prediction["loss"] * prediction["tokens"] / math.log(2) / prediction["bytes"]
    )
    for writer in ("model", "human"):
        assert list(result["quality"][writer]) == [measure.key for measure in MEASURES]
    assert len(result["samples"]) == 6
    assert all(sample["human_tokens"] <= 7 for sample in result["samples"])  # the checkpoint's own limit
    page = (run_folder / "evaluation" / "evaluation.html").read_text()
    assert "<b>The sea" not in page and page.startswith("<!DOCTYPE html>")
    assert f"{prediction['bits_per_byte']:.3f}" in done.stdout and "own prompt fits best" in done.stdout


def test_the_seed_decides(run_folder, tmp_path, capsys):
    texts = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = command(run_folder, "--seed", seed, "--output", str(tmp_path / name), "--device", "cpu")
        assert evaluate.main([*arguments, "--generation.temperature", "1"]) == 0
        texts.append((tmp_path / name / "evaluation.json").read_text())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"evaluation.json", "evaluation.html"}


def test_text_files_instead_of_books(run_folder, tmp_path, capsys):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(LINE, encoding="utf-8-sig")
    second.write_text(LINE * 3, encoding="utf-8")
    more = ["--text", str(first), "--text", str(second), "--samples", "3", "--output", str(tmp_path / "out")]
    assert evaluate.main(command(run_folder, *more)) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    prediction = result["prediction"]
    assert (prediction["books"], prediction["bytes"]) == (2, 4 * len(LINE.encode()))
    assert prediction["bits_per_byte_interval"] is None  # of two books
    low, high = prediction["bits_per_byte_extremes"]
    assert low <= prediction["bits_per_byte"] <= high
    # The model recites its only book, which the training data has, too.
    for sample in result["samples"]:
        assert (
            sample["longest_copy"] == sample["model_tokens"] or sample["longest_copy_text"] in sample["model"]
        )
    assert max(sample["longest_copy"] for sample in result["samples"]) > 3
    told = capsys.readouterr().out
    assert f" bits per byte, range over 2 books: {low:.3f} to {high:.3f}\n" in told
    assert "longest exact copy from the training text: median" in told
    assert prediction["xz_bits_per_byte"] > 0 and told.splitlines()[-3] == result["verdict"]
    assert told.splitlines()[-1] == "next: horovod-transformer report"
    # Without any prepared data it goes as well, but for the copies and the compressor.
    more += ["--data.data_dir", str(tmp_path / "nowhere")]
    assert evaluate.main(command(run_folder, *more)) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    alone = result["prediction"]
    assert result["samples"][0]["longest_copy"] is None and alone["xz_bits_per_byte"] is None
    assert alone["token_frequencies_counted_in"] == "the books themselves"
    assert all(alone[key] == prediction[key] for key in ("bits_per_byte", "loss", "tokens", "beside"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "is empty"),
        (b"caf\xe9", "is not UTF-8 text"),
        (b" \n", "is empty"),
    ],
)
def test_texts_that_are_none(run_folder, tmp_path, content, words):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"text.txt: {words}"):
        evaluate.main(command(run_folder, "--text", str(tmp_path / "text.txt")))


def test_line_ends_are_those_of_prepared_books(run_folder, tmp_path):
    scores = []
    for name, end in (("unix", "\n"), ("windows", "\r\n"), ("old mac", "\r")):
        (tmp_path / name).write_bytes(f"{LINE}{end}{LINE}".encode())
        more = ["--text", str(tmp_path / name), "--samples", "2", "--output", str(tmp_path / "out")]
        assert evaluate.main(command(run_folder, *more)) == 0
        scores.append(json.loads((tmp_path / "out" / "evaluation.json").read_text())["prediction"])
    assert scores[0] == scores[1] == scores[2]


def test_a_text_needs_no_data_that_fit(run_folder, tmp_path):
    (tmp_path / "text.txt").write_text(LINE, encoding="utf-8")
    write_data(tmp_path / "data", train_bpe([LINE[::-1]], 260), [LINE])
    more = ["--text", str(tmp_path / "text.txt"), "--samples", "2", "--output", str(tmp_path / "out")]
    more += ["--data.data_dir", str(tmp_path / "data")]
    assert evaluate.main(command(run_folder, *more)) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["samples"][0]["longest_copy"] is None
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate.main(command(run_folder, *more, "--xz"))


@pytest.mark.parametrize(("trained_on", "searched"), [("abc", True), ("other", False), (None, True)])
def test_copies_are_looked_for_in_what_the_model_has_seen(run_folder, tmp_path, trained_on, searched):
    shutil.copytree(run_folder / "data", tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "abc"}))
    contents = load_checkpoint(run_folder / "checkpoints" / "best_model.pt")
    contents["progress"] = {"run_name": "mine", "identity": {"data": trained_on} if trained_on else {}}
    save_checkpoint(tmp_path / "checkpoints" / "best_model.pt", contents)
    assert evaluate.main(command(tmp_path)) == 0
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert (result["samples"][0]["longest_copy"] is not None) == searched
    assert result["model"]["run"] == "mine"


def test_a_report_that_cannot_be_written_costs_no_scoring(run_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluation, "score_each", lambda *_, **__: pytest.fail("it was scored"))
    with pytest.raises(UserError, match="--output .*/file/here: cannot be written to: Not a directory"):
        evaluate.main(command(run_folder, "--output", str(tmp_path / "file" / "here")))


def test_the_same_tokenizer_in_other_words(run_folder, tmp_path, tiny_tokenizer):
    """As an exported and imported checkpoint has it."""
    shutil.copytree(run_folder / "data", tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    text = manifest["tokenizer"]["tokenizer_json"]
    manifest["tokenizer"]["tokenizer_json"] = json.dumps(json.loads(text), indent=1)
    assert manifest["tokenizer"]["tokenizer_json"] != text
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    more = ["--data.data_dir", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert evaluate.main(command(run_folder, *more)) == 0


def test_overrides_and_fewer_books(run_folder, tmp_path, capsys):
    more = ["--books", "1", "--generation.max_new_tokens", "3", "--output", str(tmp_path)]
    assert evaluate.main(command(run_folder, *more)) == 0
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["prediction"]["books"] == 1
    assert result["settings"]["max_new_tokens"] == 3


def test_beside_another_model_and_without_the_compressor(run_folder, tmp_path, capsys):
    checkpoint = str(run_folder / "checkpoints" / "best_model.pt")
    more = ["--beside", checkpoint, "--no-xz", "--output", str(tmp_path)]
    assert evaluate.main(command(run_folder, *more)) == 0
    prediction = json.loads((tmp_path / "evaluation.json").read_text())["prediction"]
    own = prediction["bits_per_byte"]
    assert prediction["beside"] == [{"checkpoint": checkpoint, "bits_per_byte": pytest.approx(own)}]
    assert prediction["xz_bits_per_byte"] is None
    assert f"as many as {checkpoint}" in capsys.readouterr().out


def test_without_samples_the_scores_alone(run_folder, tmp_path, capsys):
    """So has a text a score that is too short for prompts."""
    short = tmp_path / "short.txt"
    short.write_text(LINE[:7], encoding="utf-8")
    more = ["--samples", "0", "--text", str(short), "--output", str(tmp_path)]
    assert evaluate.main(command(run_folder, *more)) == 0
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["samples"] == [] and result["quality"] == {}
    assert result["prediction"]["bytes"] == len(LINE[:7].encode())
    page = (tmp_path / "evaluation.html").read_text()
    assert "bits per byte" in page and "Writing, beside human text" not in page and "Samples" not in page
    told = capsys.readouterr().out
    assert told.startswith("1 held-out book, ") and "continuations" not in told
    with pytest.raises(UserError, match="--samples 0 .scores alone., or longer books"):
        evaluate.main(command(run_folder, "--text", str(short), "--output", str(tmp_path)))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--checkpoint", "absent.pt"], "absent.pt"),
        (["--samples", "1"], "--samples 1"),
        (["--samples", "many"], "--samples many"),
        (["--samples", "99999"], "places for a prompt"),
        (["--seed", "-1"], "--seed -1"),
        (["--books", "0"], "--books 0"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--model.d_model", "8"], "--model.d_model"),
        (["--generation.top_p", "2"], "top_p"),
        (["--data.data_dir", "absent"], "absent"),
        (["--output", __file__], "is a file"),
        (["--beside", "absent.pt"], "absent.pt"),
        (["--beside", "."], "--beside .: is a folder; .*import --from"),
        (["--output", ""], "--output: is empty"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_mistakes(run_folder, more, words):
    with pytest.raises(UserError, match=words):
        evaluate.main(command(run_folder, *more))


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.html"])
def test_files_of_others_by_these_names_are_not_written_over(run_folder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"its {name} is no evaluation's; name another folder"):
        evaluate.main(command(run_folder, "--output", str(tmp_path)))
    assert (tmp_path / name).read_text() == "mine"


def test_an_earlier_evaluation_is_replaced(run_folder, tmp_path):
    for _ in range(2):
        score_of(run_folder, tmp_path)


def test_mistakes_are_one_line(run_folder, run_python):
    done = run_python("-m", "horovod_transformer", "evaluate", *command(run_folder, "--samples", "1"))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_data_of_another_tokenizer(run_folder, tmp_path):
    write_data(tmp_path / "data", train_bpe([LINE[::-1]], 260), [LINE])
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate.main(command(run_folder, "--data.data_dir", str(tmp_path / "data")))


def test_a_checkpoint_too_small_for_its_tokenizer(run_folder, tmp_path, tiny_tokenizer):
    config = config_from_dict({"model": {**TINY.model_dump(), "vocab_size": 200}}, "test")
    path = tmp_path / "small.pt"
    save_checkpoint(path, tiny_checkpoint_contents(build_model(config.model), config, tiny_tokenizer))
    with pytest.raises(UserError):
        evaluate.main(command(run_folder, "--checkpoint", str(path)))


HEADER = "The Project Gutenberg eBook of The Sea\n\n*** START OF THE PROJECT GUTENBERG EBOOK THE SEA ***\n\n"
LICENCE = (
    "\n\n*** END OF THE PROJECT GUTENBERG EBOOK THE SEA ***\n" + "Terms of use of this electronic work. " * 40
)


def score_of(run_folder, tmp_path, *arguments: str) -> dict:
    more = ["--samples", "2", "--output", str(tmp_path / "out"), *arguments]
    assert evaluate.main(command(run_folder, *more)) == 0
    return json.loads((tmp_path / "out" / "evaluation.json").read_text())["prediction"]


def test_a_text_is_read_and_cleaned_as_prepare_does(run_folder, tmp_path, capsys):
    book = f"{LINE}\n{LINE}\n{LINE}"
    ways = {
        "plain.txt": book.encode(),
        "gutenberg.txt": (HEADER + book + LICENCE).encode(),
        "packed.txt.gz": gzip.compress(book.encode()),
        "rows.jsonl": json.dumps({"text": book}).encode(),
        "no suffix": book.encode(),
        "mac.txt": b"\xef\xbb\xbf" + book.replace("\n", "\r").encode(),
    }
    scores, notes = {}, {}
    for name, content in ways.items():
        (tmp_path / name).write_bytes(content)
        scores[name] = score_of(run_folder, tmp_path, "--text", str(tmp_path / name))
        notes[name] = capsys.readouterr().err
    assert all(score == scores["plain.txt"] for score in scores.values())
    cut = len(HEADER) + len(LICENCE)
    assert (
        f"note: --text {tmp_path}/gutenberg.txt: gutenberg cut {cut:,} characters" in notes["gutenberg.txt"]
    )
    assert "note" not in notes["plain.txt"]
    as_it_is = score_of(run_folder, tmp_path, "--text", str(tmp_path / "gutenberg.txt"), "--data.clean", "[]")
    assert as_it_is["bytes"] == len(ways["gutenberg.txt"])


def test_a_text_in_another_encoding(run_folder, tmp_path, capsys):
    book = LINE.replace("—", "-")
    (tmp_path / "utf8.txt").write_text(book, encoding="utf-8")
    (tmp_path / "latin.txt").write_text(book, encoding="latin-1")
    wanted = score_of(run_folder, tmp_path, "--text", str(tmp_path / "utf8.txt"))
    latin = ["--text", str(tmp_path / "latin.txt")]
    assert score_of(run_folder, tmp_path, *latin, "--data.encoding", "latin-1") == wanted
    assert "latin.txt: was read as latin-1" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"latin.txt: is not UTF-8 text .* data\.encoding"):
        score_of(run_folder, tmp_path, *latin)


def test_a_text_from_stdin(run_folder, tmp_path, run_python):
    arguments = command(run_folder, "--samples", "2", "--text", "-", "--output", str(tmp_path))
    done = run_python("-m", "horovod_transformer", "evaluate", *arguments, input=LINE)
    assert done.returncode == 0, done.stderr
    prediction = json.loads((tmp_path / "evaluation.json").read_text())["prediction"]
    assert prediction["bytes"] == len(LINE.encode())


def test_a_text_that_is_too_short_says_what_would_do(run_folder, tmp_path):
    (tmp_path / "short.txt").write_text("The sea", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        score_of(run_folder, tmp_path, "--text", str(tmp_path / "short.txt"))
    text = str(caught.value)
    assert "a text of 10 tokens is enough for 2 samples" in text and "--samples 1" not in text
    (tmp_path / "short.txt").write_text(LINE, encoding="utf-8")
    with pytest.raises(UserError, match=r"take --samples (\d+) or fewer, or --samples 0 ") as caught:
        score_of(run_folder, tmp_path, "--text", str(tmp_path / "short.txt"), "--samples", "1000")
    fewer = re.findall(r"--samples (\d+) or", str(caught.value))[0]
    score_of(run_folder, tmp_path, "--text", str(tmp_path / "short.txt"), "--samples", fewer)


def test_figures_are_on_the_screen_before_the_report_can_fail(run_folder, tmp_path, monkeypatch, capsys):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reports, "write_text", full)
    with pytest.raises(UserError, match="cannot be written to: No space left"):
        evaluate.main(command(run_folder, "--output", str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert "bits per byte" in printed and "own prompt fits best" in printed
