"""The page of a run: what is read, what is shown, and that nothing in it can act."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.errors import UserError
from horovod_transformer.reports import methods
from horovod_transformer.reports import runs as run_report
from horovod_transformer.reports.charts import Chart, Curve, draw, nice_ticks, smoothed
from horovod_transformer.reports.run_records import read_run
from horovod_transformer.reports.runs import run_page, write_run_report

HOSTILE = "</p><script>alert(1)</script><img src=x onerror='a'>"
TRAIN = ["update", "epoch", "loss", "learning_rate", "gradient_norm", "tokens", "skipped_updates"]
TRAIN += ["tokens_per_second", "mfu", "memory_gib", "seconds"]


def write_table(path, columns, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_run(folder, rate=0.001, name="first"):
    """Twelve updates: a restart after the fifth, the ninth skipped, the last row cut off."""
    run = folder / "runs" / "structured" / name
    run.mkdir(parents=True)
    rows = []
    for update in range(1, 13):
        seconds = update if update <= 5 else update - 5
        loss = "nan" if update == 9 else 9 - update / 2
        rows.append(
            [update, update / 10, loss, rate, 1.5, update * 1000, int(update >= 9), 500, "", 0.5, seconds]
        )
    write_table(run / "train.csv", TRAIN, [*rows, [13, 1.3, 5]])
    write_table(
        run / "val.csv",
        ["update", "loss", "bits_per_byte", "seconds"],
        [[4, 7.5, 2.5, 0.5], [8, 6.25, 2.25, 0.5], [12, 6.5, 2.3, 0.5]],
    )
    config = {
        "model": {"n_layers": 2, "d_model": 8, "max_seq_len": 16},
        "training": {"optimizer": HOSTILE, "learning_rate": rate},
        "paths": {"log_dir": str(folder / "logs"), "checkpoint_dir": str(folder / "checkpoints")},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(
        json.dumps({"world_size": 2, "packages": {"horovod_transformer": "9.9"}, "git_commit": "abc"})
    )
    (run / "samples.txt").write_text(
        "".join(f"=== update {u}, prompt 'O' ===\n{HOSTILE} {u}\n\nmore\n\n" for u in range(1, 11))
    )
    (folder / "logs").mkdir(exist_ok=True)
    with open(folder / "logs" / "train_rank0.log", "a") as log:
        log.write(
            f"2026 run {name}: 5 parameters\n2026 checkpoints held training up for 0.60 s of 12.0 s (5%)\n"
        )
    return run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def test_what_is_read(run, tmp_path):
    records = read_run(run)
    assert records.train["update"] == list(range(1, 13))  # not the row that was cut off
    assert records.train["loss"][8] is None and records.train["mfu"] == [None] * 12
    assert (records.restarts, records.skipped, records.seconds) == ([5.0], [9.0], 5 + 7)
    assert len(records.samples) == 10 and records.samples[3] == (4, "'O'", f"{HOSTILE} 4\n\nmore")
    assert records.stall == (0.6, 12.0)
    for folder in (tmp_path, tmp_path / "runs", tmp_path / "runs" / "structured"):
        assert read_run(folder).name == "first"


@pytest.mark.parametrize("model", ['{"run": "second"}', "{}", "[]"])
def test_another_runs_evaluation_is_not_this_ones(run, tmp_path, model):
    """Runs take turns in a folder of checkpoints, beside which the evaluation lies."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/evaluation.json").write_text(
        f'{{"model": {model}, "prediction": {{"bits_per_byte": 2.125, "books": 3}}}}'
    )
    assert read_run(run).evaluation == {}
    assert "2.125" not in write_run_report([run], tmp_path / "page.html").read_text()


def test_the_page_tells_the_run(run, tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/evaluation.json").write_text(
        '{"model": {"run": "first"}, "prediction": {"bits_per_byte": 2.125, "books": 3}}'
    )
    page = write_run_report([run], tmp_path / "new" / "page.html").read_text()
    for words in (
        "2 layers, width 8",
        "on 2 processes",
        "lowest validation loss is 6.2500, at update 8",
        "6.2500 (update 8)",
        "<th>time training</th><td>12 s</td>",
        "1.50 s, 12.50%",
        "0.60 s, 5.00%",
        "<th>started again</th><td>once</td>",
        "<th>skipped updates</th><td>1</td>",
        "<td>2.125</td>",
        "Version 9.9, commit abc",
        "Dashed: the run was started again",
    ):
        assert words in page, words
    # loss, bits per byte, learning rate, norm, tokens per second; no MFU was known.
    assert page.count("<figure>") == 5
    assert page.count('class="restart"') == page.count('class="skipped"') == 5
    assert page.count("<section>") == 6 and "update 1," in page and "update 10," in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_several_runs_side_by_side(run, tmp_path):
    second = write_run(tmp_path, rate=0.5, name="second")
    page = run_page([read_run(run), read_run(second)])
    assert "2 training runs" in page and page.count("<figure>") == 5
    assert "<th>training.learning_rate</th><td>0.001</td><td>0.5</td>" in page
    assert "<th>model.n_layers</th>" not in page
    assert page.count("#2f6f9f") > 5 and page.count("#d9782d") > 5


def test_nothing_on_the_page_can_act(run):
    page = run_page([read_run(run)])
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(?<!\w)(src|href)\s*=(?!x)|url\(|@import|https?:", page)
    opened = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "line", "circle", "polyline", "polygon", "rect"):
                opened.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("line", "circle", "polyline", "polygon", "rect"):
                assert opened.pop() == tag

    Checker().feed(page)
    assert opened == []


def test_a_run_of_which_little_is_left(run):
    for name in ("val.csv", "config.yaml", "environment.json", "samples.txt"):
        (run / name).write_bytes(b"\xff{[broken\n\x00")
    page = run_page([read_run(run)])
    assert page.count("<figure>") == 4 and "<th>lowest validation loss</th><td>–</td>" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "update,loss,seconds\n1,1e308,1e308\n2,-1e308,5\n3,2,1e308\n"),
        ("val.csv", f"update,loss\n{'9' * 320},5\n"),
        ("config.yaml", "model: {x: &a [*a], n_layers: 2020-01-01}\n"),
        ("config.yaml", "model: {x: [2020-01-01]}\n"),
        ("config.yaml", "model: {x: !!bool maybe}\n"),
        ("config.yaml", "model: {x: !!timestamp now}\n"),
        ("config.yaml", 'paths: {output_dir: "a\\0b", log_dir: x}\n'),
        ("samples.txt", f"=== update {'9' * 5000}, prompt 'O' ===\nhi\n"),
        (
            "../../../logs/train_rank0.log",
            "2026 run first: 5 parameters\ncheckpoints held training up for 1.2.3 s of . s\n",
        ),
    ],
)
def test_odd_records_are_passed_over(name, content, run):
    (run / name).write_text(content)
    assert "<svg" in run_page([read_run(run)])


@pytest.mark.parametrize("name", ["val.csv", "config.yaml", "environment.json", "samples.txt"])
def test_a_pipe_among_the_records_is_not_waited_for(name, run):
    (run / name).unlink()
    os.mkfifo(run / name)
    assert "<svg" in run_page([read_run(run)])


def test_a_table_saved_by_a_spreadsheet_is_read(run):
    (run / "train.csv").write_bytes(b"\xef\xbb\xbf" + (run / "train.csv").read_bytes())
    assert read_run(run).train["update"] == list(range(1, 13))


@pytest.mark.parametrize("kind", ["table", "pipe", "dangling link"])
def test_what_is_no_page_is_not_replaced_by_one(kind, run, tmp_path, capfd):
    place = run / "train.csv" if kind == "table" else tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    if kind == "dangling link":
        place.symlink_to("nowhere")
    before = os.lstat(place)
    assert run_command(_dispatch, ["report", str(run), "--output", str(place)]) == 2
    assert "is there already and is no page" in capfd.readouterr().err
    assert os.lstat(place) == before


def test_a_run_that_may_not_be_read_is_not_blamed_on_the_page(run, tmp_path, monkeypatch, capfd):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/else/where")

    monkeypatch.setattr(run_report, "read_runs", refuse)
    assert run_command(_dispatch, ["report", str(run), "--output", str(tmp_path / "x.html")]) == 2
    assert capfd.readouterr().err.startswith("error: /else/where: Permission denied; ")


def test_a_page_and_an_empty_file_are_replaced(run, tmp_path):
    place = tmp_path / "page.html"
    place.touch()
    for _ in range(2):
        assert run_command(_dispatch, ["report", str(run), "--output", str(place)]) == 0
        assert "<svg" in place.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{w}/nothing", "--output", "{w}/x.html"], "nothing: no such folder"),
        (["{w}/logs", "--output", "{w}/x.html"], "logs: holds no run"),
        (["{w}/empty", "--output", "{w}/x.html"], "holds no updates yet"),
        (["{w}", "--output", "{w}/logs"], "logs: is a folder"),
        (["{w}/runs", "--output", "/proc/none/x.html"], "/proc/none/x.html: cannot be written"),
        ([], "runs: no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments, words, run, tmp_path, capfd, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train.csv").write_text("update,loss\n")
    arguments = [word.replace("{w}", str(tmp_path)) for word in arguments]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_command(_dispatch, ["report", *arguments]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "x.html").exists()


def test_without_arguments_it_shows_all_runs_of_the_working_folder(run, tmp_path, monkeypatch, capfd):
    write_run(tmp_path, name="second")
    monkeypatch.chdir(tmp_path)
    assert run_command(_dispatch, ["report"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "second" in page
    assert "next: open report.html in a browser" in capfd.readouterr().out


def test_which_of_several_runs(run, tmp_path):
    write_run(tmp_path, name="second")
    with pytest.raises(UserError, match="holds 2 runs; name one, such as .*second"):
        read_run(tmp_path)


def test_a_folder_of_runs_is_sorted_by_their_results_and_the_best_marked(run, tmp_path, capsys):
    for name, bits in (("worst", 3.5), ("best", 1.5), ("without", None)):
        made = write_run(tmp_path, rate=bits, name=name)
        rows = [] if bits is None else [[4, 2 * bits, bits, 0.5]]
        write_table(made / "val.csv", ["update", "loss", "bits_per_byte", "seconds"], rows)
    (tmp_path / "runs/structured/empty").mkdir()
    (tmp_path / "runs/structured/empty/train.csv").write_text("update,loss\n")
    page = write_run_report([tmp_path / "runs", run], tmp_path / "page.html").read_text()  # one of them twice
    assert "<h1>4 training runs</h1>" in page and "Best: best, 1.500 bits per byte" in page
    assert "next: first, 2.250" in page
    (ranking,) = re.findall(r'<table class="figures">.*?</table>', page, re.S)
    assert re.findall(r"<tr><th>([^<]+)", ranking)[1:] == ["★ best", "first", "worst", "without"]
    assert "<th>learning_rate</th>" in ranking and "<td>1.5</td>" in ranking
    assert "empty/train.csv: holds no updates yet" in capsys.readouterr().out


def test_of_many_runs_the_best_are_drawn(tmp_path):
    for place in range(10):
        write_run(tmp_path, rate=place, name=f"run-{place}")
    page = write_run_report([tmp_path], tmp_path / "page.html").read_text()
    assert "10 training runs" in page and "Below the table are the best 8." in page
    (ranking,) = re.findall(r'<table class="figures">.*?</table>', page, re.S)
    assert ranking.count("<tr>") == 11 and page.count("<section>") == 8  # each run's last sample


def test_runs_on_different_data_are_said_not_to_compare(run, tmp_path):
    second = write_run(tmp_path, name="second")
    pages = []
    for digest in ("abc", "other"):
        for folder, own in ((run, "abc"), (second, digest)):
            (folder / "environment.json").write_text(json.dumps({"data_fingerprint": own}))
        pages.append(run_page([read_run(run), read_run(second)]))
    assert ["on different data" in page for page in pages] == [False, True]


@pytest.mark.parametrize("place", ["evaluation", "evaluation/novel", "checkpoints/evaluation"])
def test_the_evaluation_of_a_checkpoint_that_was_moved_is_found_and_named(run, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "evaluation.json").write_text(
        '{"model": {"run": "first", "checkpoint": "kept/best.pt", "updates": 8}, '
        '"prediction": {"bits_per_byte": 2.125, "books": 3}}'
    )
    page = write_run_report([run], tmp_path / "page.html").read_text()
    assert "<td>kept/best.pt, after 8 updates</td>" in page
    assert f"<td>{tmp_path}/{place}/evaluation.json</td>" in page
    assert '<p class="verdict">2.12 bits per byte on 3 held-out books' in page


def test_of_several_evaluations_the_one_on_the_runs_own_books_is_shown(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": {"data_dir": "data/plays"}}))
    for place, data in (("evaluation", "novel.txt"), ("evaluation/whole", "data/plays")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "evaluation.json").write_text(
            json.dumps({"model": {"run": "first"}, "settings": {"data": data}, "prediction": {}})
        )
    page = write_run_report([run], tmp_path / "page.html").read_text()
    assert "<th>on</th><td>data/plays</td>" in page and "novel.txt" not in page


# --- charts


def test_ticks():
    assert nice_ticks(0.3, 3.9) == [0, 1, 2, 3, 4]
    assert nice_ticks(5, 5) == [5]
    assert nice_ticks(0, 0.0007) == pytest.approx([0, 0.0002, 0.0004, 0.0006, 0.0008])


def lines_of(svg):
    return [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline [^>]*points="([^"]+)"', svg)
    ]


def test_points_lie_where_they_should():
    svg = draw(Chart("a", [Curve([0, 5, 10], [0.0, None, 4.0], "#123456", dots=True)]))
    # The plot is 412 by 206; some of the height is free above and below.
    assert lines_of(svg) == [[(58, pytest.approx(208.4, abs=0.1)), (470, pytest.approx(17.6, abs=0.1))]]
    assert svg.count("<circle") == 2
    assert draw(Chart("nothing", [Curve([1], [None], "#123456")])) == ""
    assert lines_of(draw(Chart("flat", [Curve([0, 10], [3.0, 3.0], "#123456")]))) == [[(58, 113), (470, 113)]]


def test_charts_of_a_page_have_one_axis_of_updates():
    half = Chart("half", [Curve([0, 5], [1.0, 2.0], "#123456")])
    assert lines_of(draw(half, last=10))[0][-1][0] == 58 + 412 / 2
    assert lines_of(draw(half))[0][-1][0] == 470


def test_the_y_axis_belongs_to_most_points_and_the_title_says_what_it_leaves_out():
    losses = [9.0, 8.0, *(4.0 - update / 200 for update in range(200))]
    whole, cut = (
        draw(Chart("loss", [Curve(range(202), losses, "#123456")], may_cut=may_cut))
        for may_cut in (False, True)
    )
    heights = [lines_of(svg)[0][2][1] - lines_of(svg)[0][-1][1] for svg in (whole, cut)]
    assert abs(heights[0]) < 60 < 150 < abs(heights[1])
    assert "outside" not in whole
    assert "loss (cut: 1 % of the points lie outside the axis, up to 9)</figcaption>" in cut
    # A curve that falls all the time is shown whole.
    even = draw(Chart("loss", [Curve(range(100), range(100, 0, -1), "#123456")], may_cut=True))
    assert "outside" not in even


def test_training_and_validation_share_a_chart(run):
    (loss,) = re.findall(
        r"<figure>(?:(?!</figure>).)*loss, nats per token</figcaption>", run_page([read_run(run)])
    )
    raw, smooth, validation = lines_of(loss)[:3]
    assert raw[0] == smooth[0]  # the smoothed curve begins where the loss begins
    assert validation[-1][0] == raw[-1][0]
    for words in ("training", "training, smoothed", "validation"):
        assert f">{words}</text>" in loss


def test_long_curves_are_thinned_and_keep_their_end():
    points = Curve(range(10_001), range(10_001), "#123456").points()
    assert len(points) < 500 and points[0] == (0, 0) and points[-1] == (10_000, 10_000)


def test_smoothing_begins_at_the_first_value_and_passes_over_what_is_missing():
    assert smoothed([5.0]) == [5.0]
    assert smoothed([None]) == [None]
    assert smoothed([3.0] * 40) == pytest.approx([3.0] * 40)
    # Weights 1 and 4/5 for the newest and the one before.
    assert smoothed([None, 1.0, None, 2.0]) == [None, 1.0, None, pytest.approx((2 + 0.8 * 1) / 1.8)]


def test_smoothing_has_no_kink():
    steps = np.diff(smoothed([10 * 0.9**update for update in range(60)]))
    assert (np.diff(steps[1:]) > 0).all()  # it falls less and less


def test_a_version_that_nobody_knows_is_said_to_be_so(tmp_path, monkeypatch):
    """As where the sources were never installed."""
    run = write_run(tmp_path)
    (run / "environment.json").write_text(json.dumps({"packages": {"horovod_transformer": None}}))
    monkeypatch.setattr(methods, "installed_version", lambda name: None)
    page = write_run_report([run], tmp_path / "page.html").read_text()
    assert "note = {Version not known}" in page
