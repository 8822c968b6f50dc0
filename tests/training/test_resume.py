"""What a run starts from: nothing, another run's weights, or its own checkpoint."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.checkpoint.run_folders import read_launch
from horovod_transformer.config import Config
from horovod_transformer.errors import UserError
from horovod_transformer.precision import choose_precision
from horovod_transformer.tokenizer import train_bpe
from horovod_transformer.training.resume import StartRequest, TrainState, find_start
from tests.conftest import PATIENCE_S, TINY

FP32 = choose_precision("auto", "cpu", [""])
BF16 = choose_precision("auto", "cpu", ["AMX-BF16"])
IDENTITY = {"seed": 7, "global_batch_size": 8, "data": "abc"}


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of a run that stopped after update 6."""
    progress = TrainState(
        "first", IDENTITY, update=6, tokens=60, best_validation_loss=2.5, validated_at=5, precision="fp32"
    )
    names = ((4, "update_00000004"), (6, "update_00000006"), (6, "last"), (5, "best_model"))
    for update, name in names:
        contents = {
            "model": {"w": torch.full((2,), float(update))},
            "optimizer": {"state": {}},
            "scheduler": {"decay_updates": 20},
            "progress": {**progress.state_dict(), "update": update},
            "config": Config(model=TINY).to_dict(),
            "tokenizer": None,
        }
        save_checkpoint(tmp_path / "checkpoints" / f"{name}.pt", contents)
    return CheckpointManager(tmp_path / "checkpoints")


def start(
    folder,
    resume=None,
    init_from=None,
    name=None,
    model=TINY,
    decay=20,
    tokenizer=None,
    precision=FP32,
    training=None,
    **identity,
):
    fresh = TrainState(name or "20260101-000000", {**IDENTITY, **identity})
    data = SimpleNamespace(tokenizer=tokenizer, folder="here")
    request = StartRequest(resume, init_from, name)
    before = sorted(folder.folder.rglob("*.pt"))
    config = Config(training=training or {})
    settings = {**config.to_dict(), "model": model.model_dump()}
    optimizer = config.training.optimizer
    found = find_start(fresh, folder, model, optimizer, data, decay, request, precision, settings)
    assert sorted(folder.folder.rglob("*.pt")) == before
    folder.take_over(found.takeover)  # as a run does after its first update
    return found


def test_auto_resumes_everything(folder):
    found = start(folder, "auto")
    assert found.model["w"].tolist() == [6, 6]
    assert found.optimizer == {"state": {}}
    assert found.state == TrainState(
        "first", IDENTITY, update=6, tokens=60, best_validation_loss=2.5, validated_at=5, precision="fp32"
    )
    assert found.notes == [f"resuming after update 6 from {folder.folder / 'update_00000006.pt'}"]
    assert len(list(folder.folder.glob("*.pt"))) == 4


def test_a_path_is_taken_at_its_word_and_a_name_wins(folder):
    found = start(folder, str(folder.folder / "update_00000004.pt"), name="second")
    assert (found.state.update, found.state.run_name) == (4, "second")


def test_auto_starts_afresh_where_nothing_is(tmp_path):
    found = start(CheckpointManager(tmp_path / "none"), "auto")
    assert (found.model, found.optimizer, found.state.update) == (None, None, 0)
    assert math.isinf(found.state.best_validation_loss)
    assert "starting afresh" in found.notes[0]


def test_auto_tells_of_what_it_passed_over(folder):
    (folder.folder / "update_00000006.pt").unlink()
    (folder.folder / "update_00000007.pt").write_bytes(b"junk")
    found = start(folder, "auto")
    assert found.state.update == 6
    assert found.notes[0].startswith("passed over a broken checkpoint: ")


def test_a_fresh_run_archives_the_earlier_one(folder):
    leftover = folder.folder / ".last.pt.partial-77"
    leftover.write_bytes(b"half")
    found = start(folder)
    assert (found.model, found.state.update) == (None, 0)
    (archive,) = [path for path in folder.folder.iterdir() if path.is_dir()]
    assert list(folder.folder.iterdir()) == [archive]
    assert len(list(archive.glob("*.pt"))) == 4


def test_init_from_takes_the_weights_alone(folder):
    found = start(folder, init_from=str(folder.folder / "last.pt"), seed=8, data="other")
    assert found.model["w"].tolist() == [6, 6]
    assert found.optimizer is None
    assert (found.state.update, found.state.data_fingerprint["seed"]) == (0, 8)


def test_another_schedule_is_pointed_out(folder):
    assert start(folder, "auto", decay=50).notes[-1] == (
        "the learning rate schedule now ends at update 50, no longer at 20"
    )


def test_other_settings_are_pointed_out(folder):
    found = start(folder, "auto", training={"learning_rate": 0.011, "schedule": "linear", "max_updates": 9})
    changed = "learning_rate 0.0006 -> 0.011", "schedule cosine -> linear", "max_updates null -> 9"
    (note,) = [note for note in found.notes if note.startswith("settings changed since: ")]
    told = note.removeprefix("settings changed since: ").split(", ")
    assert sorted(told) == sorted(f"training.{change}" for change in changed)
    fresh = start(folder, init_from=str(folder.folder / "last.pt"), training={"learning_rate": 0.011})
    assert not any("settings changed" in note for note in fresh.notes)


@pytest.mark.parametrize(("key", "value"), [("seed", 8), ("global_batch_size", 16), ("data", "other")])
def test_what_must_not_change_in_mid_run(folder, key, value):
    with pytest.raises(UserError, match=f"was trained with {key} = .*, now it is {value}: .*--init_from"):
        start(folder, "auto", **{key: value})


@pytest.mark.parametrize("chosen", ["auto", "update_00000004.pt"])
def test_another_optimizer_is_refused_before_anything_is_moved(folder, chosen):
    before = sorted(folder.folder.iterdir())
    resume = chosen if chosen == "auto" else str(folder.folder / chosen)
    with pytest.raises(UserError, match="trained with training.optimizer = adamw, now it is muon"):
        start(folder, resume, training={"optimizer": "muon"})
    assert sorted(folder.folder.iterdir()) == before


def test_a_fresh_run_forgets_a_rewind_that_was_cut_short(folder, tmp_path):
    other = tmp_path / "other.pt"
    (folder.folder / "update_00000004.pt").rename(other)
    note = folder.folder / ".rewind.json"
    note.write_text(json.dumps({"path": str(other), "update": 4}))
    start(folder)
    assert not note.exists()
    assert start(folder, "auto").state.update == 0


@pytest.mark.parametrize("key", ["vocab_size", "d_model", "n_layers", "n_heads", "d_ff"])
@pytest.mark.parametrize("way", ["resume", "init_from"])
def test_the_weights_must_fit(folder, key, way):
    model = TINY.model_copy(update={key: 1000})
    with pytest.raises(
        UserError, match=rf"its model has {key} = \d+, but the config says model.{key} = 1000"
    ):
        start(folder, model=model, **{way: str(folder.folder / "last.pt")})


def test_a_longer_context_fits_the_same_weights(folder):
    assert start(folder, "auto", model=TINY.model_copy(update={"max_seq_len": 64})).state.update == 6


def test_a_missing_checkpoint_is_a_mistake(folder):
    with pytest.raises(UserError, match="nowhere.pt: no such checkpoint file"):
        start(folder, "nowhere.pt")


def test_a_resumed_run_keeps_its_precision(folder):
    assert start(folder, "auto", precision=FP32).state.precision == "fp32"
    kept = start(folder, "auto", precision=BF16)
    assert (kept.state.precision, kept.precision_reason) == ("fp32", "as the resumed checkpoint was trained")
    asked = start(folder, "auto", precision=choose_precision("bf16", "cpu", ["AMX-BF16"]))
    assert (asked.state.precision, asked.precision_reason) == ("bf16", "as training.precision says")


def trained_in(folder, precision):
    """Rewrite the newest checkpoint as of a run of this precision."""
    path = folder.folder / "update_00000006.pt"
    contents = load_checkpoint(path)
    contents["progress"]["precision"] = precision
    save_checkpoint(path, contents)
    return path


def test_bf16_is_not_resumed_without_units_for_it_unless_told(folder):
    path = trained_in(folder, "bf16")
    before = sorted(folder.folder.iterdir())
    with pytest.raises(UserError, match="trained in bf16, but the CPU of rank 0 has no unit") as error:
        start(folder, str(path), precision=FP32)
    assert "--training.precision fp32" in str(error.value) and "\n" not in str(error.value)
    assert sorted(folder.folder.iterdir()) == before
    for told in ("fp32", "bf16"):
        assert start(folder, str(path), precision=choose_precision(told, "cpu", [""])).state.precision == told
    assert start(folder, "auto", precision=BF16).state.precision == "bf16"
    # A fresh run from its weights is another run.
    assert start(folder, init_from=str(path), precision=FP32).state.precision == "fp32"


@pytest.mark.parametrize("strange", ["", "auto", "int8", 3, ["bf16"]])
def test_a_strange_precision_is_a_mistake(folder, strange):
    trained_in(folder, strange)
    with pytest.raises(UserError, match="its record of progress is not of this program's making"):
        start(folder, "auto")


@pytest.mark.parametrize("broken", [{"progress": {"strange": 1}}, {"progress": None}, {"scheduler": {}}])
def test_strange_progress_is_a_mistake(folder, tmp_path, broken):
    contents = {
        "model": {},
        "optimizer": {},
        "scheduler": {"decay_updates": 1},
        "progress": TrainState("r", IDENTITY).state_dict(),
        "config": Config(model=TINY).to_dict(),
        "tokenizer": None,
    }
    save_checkpoint(tmp_path / "strange.pt", {**contents, **broken})
    with pytest.raises(UserError, match="its record of progress is not of this program's making"):
        start(folder, str(tmp_path / "strange.pt"))


@pytest.mark.slow
def test_an_older_checkpoint_stays_resumed_whenever_a_kill_comes(folder, tmp_path, root):
    # best_model.pt is of update 5, update_00000006.pt and last.pt are the future to be abandoned.
    folder.folder.rename(tmp_path / "filled")
    words = [sys.executable, str(root / "tests/training/rewind_program.py"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, cwd=root)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    # The first change writes the intention down; a kill before it leaves everything as it was.
    for number, killed, update, names in outcomes:
        before = number == 1 or (killed and names == outcomes[0][3])
        assert update == (6 if before else 5), (number, killed, names)
        kept = [name for name in names if "/" not in name]
        if not before:
            assert kept == ["best_model.pt", "last.pt", "update_00000004.pt", "update_00000005.pt"]
            assert any(name.endswith("/update_00000006.pt") for name in names)
    assert len(outcomes) > 8 and not outcomes[-1][1]
    assert sum(update == 6 for _, _, update, _ in outcomes) <= 4


def test_the_later_start_of_a_launch_means_auto():
    asked = StartRequest(resume="best_model.pt", run_name="mine")
    assert asked.on_attempt(again=False) == asked
    assert asked.on_attempt(again=True) == StartRequest(resume="auto", run_name="mine")
    assert StartRequest(init_from="x.pt").on_attempt(again=True) == StartRequest(resume="auto")


def test_a_launch_is_remembered(folder):
    assert read_launch(folder.folder) is None
    folder.record_launch(None)
    assert read_launch(folder.folder) is None
    folder.record_launch("slurm-7")
    assert read_launch(folder.folder) == "slurm-7"


def test_an_archived_best_is_announced_and_written_anew(folder):
    found = start(folder, str(folder.folder / "update_00000004.pt"))
    assert found.state.best_validation_loss == math.inf
    assert not (folder.folder / "best_model.pt").exists()
    assert any("the next validation writes one" in note for note in found.notes)


def test_a_best_checkpoint_that_a_kill_left_without_its_name_gets_it(folder):
    # As when the kill came between the writing of update 5 and its second name.
    path = folder.folder / "update_00000006.pt"
    contents = load_checkpoint(path)
    contents["progress"] |= {"validated_at": 6, "best_validation_loss": 1.5}
    save_checkpoint(path, contents)
    found = start(folder, "auto")
    assert found.state.best_validation_loss == 1.5
    assert (folder.folder / "best_model.pt").samefile(path)


def test_a_broken_newer_file_does_not_push_out_a_good_one(folder):
    (folder.folder / "update_00000009.pt").write_bytes(b"junk")
    one = CheckpointManager(folder.folder, keep=1)
    assert start(one, "auto").state.update == 6
    contents = load_checkpoint(folder.folder / "last.pt")
    one.save(contents, 7, periodic=True, best=False)
    one.wait()
    assert [path.name for path in sorted(folder.folder.glob("update_*.pt"))] == ["update_00000007.pt"]


def test_another_runs_checkpoint_takes_the_folder_over(folder, tmp_path):
    other = tmp_path / "other" / "update_00000006.pt"
    contents = load_checkpoint(folder.folder / "update_00000006.pt")
    save_checkpoint(other, {**contents, "model": {"w": torch.zeros(2)}})
    found = start(folder, str(other))
    assert found.model["w"].tolist() == [0, 0]
    assert sorted(path.name for path in folder.folder.glob("*.pt")) == ["last.pt", "update_00000006.pt"]
    again = start(folder, "auto")
    assert again.model["w"].tolist() == [0, 0]


@pytest.mark.parametrize("way", ["resume", "init_from"])
def test_another_tokenizer_is_refused(folder, tmp_path, way, tiny_tokenizer):
    path = tmp_path / "elsewhere.pt"
    contents = load_checkpoint(folder.folder / "last.pt")
    save_checkpoint(path, {**contents, "tokenizer": tiny_tokenizer.to_dict()})
    assert start(folder, tokenizer=tiny_tokenizer, **{way: str(path)}).model
    with pytest.raises(UserError, match="was trained with another tokenizer .* --data.tokenizer"):
        start(folder, tokenizer=train_bpe(["other words " * 50], 262), **{way: str(path)})
