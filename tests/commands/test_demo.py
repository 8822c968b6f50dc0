"""`make demo`'s command: what it says, what it writes, what it leaves alone."""

from __future__ import annotations

import pytest

from horovod_transformer.errors import UserError

SMALL = [
    *("--config", "configs/quickstart.yaml", "--minutes", "0.01"),
    *("--model.vocab_size", "300", "--model.d_model", "16", "--model.n_heads", "2", "--model.n_layers", "1"),
    *("--model.d_ff", "32", "--model.max_seq_len", "64", "--generation.max_new_tokens", "10"),
    *("--training.global_batch_size", "4", "--training.per_gpu_batch_size", "4"),
    *("--paths.checkpoint_dir", "here", "--paths.tensorboard_dir", "there"),
]
WITHOUT_HOROVOD = (
    "import sys; sys.modules['horovod'] = None; "
    "from horovod_transformer.__main__ import main; sys.exit(main())"
)


@pytest.mark.slow
def test_without_horovod_on_one_process_beside_files_of_others(root, run_python, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    (tmp_path / "configs").symlink_to(root / "configs")
    theirs = [
        tmp_path / "demo/mine.txt",
        tmp_path / "demo/run/notes.txt",
        tmp_path / "demo/calibration/a.txt",
    ]
    for file in theirs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("not the demo's")
    done = run_python("-c", WITHOUT_HOROVOD, "demo", *SMALL, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [
        "Training on 1 process ",
        "Horovod is not installed here, so one process trains. Left out: the second process",
        "first a calibration: 12 updates",
        "updates fit; now the run itself",
        "compressing them with xz -9",
        "this model  ",
        "--- To be, or not to be ---",
        "Done in ",
        "Its page:    demo/run/there/structured/demo/report.html (open it in a browser)",
        "horovod-transformer generate --checkpoint demo/run/here/best_model.pt --prompt",
        "horovod-transformer demo --minutes 20 --data.source ~/books",
    ]
    places = [done.stdout.find(text) for text in said]
    assert -1 not in places and places == sorted(places), dict(zip(said, places, strict=True))
    # Of the calibration, whose paths are gone, nothing is shown.
    assert done.stdout.count("parameters, 1 process on cpu") == 1
    assert "horovod-transformer-demo-" not in done.stdout
    assert "(s)" not in done.stdout and "(es)" not in done.stdout
    assert "reading 38 plays of the sample" in done.stdout
    assert [file.read_text() for file in theirs] == ["not the demo's"] * 3
    assert (tmp_path / "demo/loss.png").is_file()
    assert (tmp_path / "demo/run/here/best_model.pt").is_file()
    assert (tmp_path / "demo/run/there/structured/demo/report.html").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--minutes", "0"],
        ["--processes", "0"],
        ["--minutes", "soon"],
        ["--training.max_updates", "9"],
    ],
)
def test_a_mistake_is_one_line(root, run_python, arguments):
    done = run_python("-m", "horovod_transformer", "demo", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and arguments[0] in line


@pytest.mark.slow
def test_a_calibration_that_fails_shows_what_it_printed(root, monkeypatch, capsys):
    from horovod_transformer.commands import demo
    from horovod_transformer.config import Config

    monkeypatch.setattr(demo, "CALIBRATION_UPDATES", "many")
    with pytest.raises(UserError, match="`train` on 1 process ended with exit code 2"):
        demo._seconds_per_update(Config(), 1, ["--config", str(root / "configs/quickstart.yaml")])
    assert "training.max_updates" in capsys.readouterr().err
