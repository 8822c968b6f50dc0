"""README.md: every command and the Python sample run as written; every promised name is there.

The commands run in a folder that has the repository's configs, made small.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import sys

import pytest

NP_4 = "horovodrun -np 4 python -m src.train --config configs/config.yaml"
TRAINED_ALONE = "python -m src.train --config configs/quickstart.yaml"
TRAINED_BY_TWO = f"horovodrun -np 2 {TRAINED_ALONE}"
LAUNCHED = f"horovod-transformer launch -np 2 --max-restarts 3 -- {TRAINED_ALONE}"

PROMISED_NAMES = {
    "src.train": ["run_distributed_training", "save_checkpoint", "load_checkpoint"],
    "src.utils.config": ["load_config", "Config"],
    "src.utils.distributed": [
        "setup_horovod",
        "get_rank",
        "get_world_size",
        "get_local_rank",
        "metric_average",
        "is_main_process",
    ],
    "src.generate": ["load_model_for_generation", "generate_text", "interactive_generation"],
    "src.data": ["load_preprocessed_data", "get_dataloaders"],
    "src.models.transformer_lm": ["TransformerLM"],
    "horovod_transformer.example": ["TransformerTrainingExample"],
}

PROMISED_FILES = [
    "configs/config.yaml",
    "configs/quickstart.yaml",
    "scripts/train_zaratan.sh",
    "notebooks/00_data_preprocessing.ipynb",
    "horovod_transformer.example.py",
    "horovod_transformer.example.md",
    "horovod_transformer.API.md",
    "horovod_transformer.API.py",
    "README.md",
    "LICENSE",
    "Makefile",
]

PROMISED_KEYS = {
    "model": "vocab_size d_model n_heads n_layers d_ff max_seq_len dropout gradient_checkpointing",
    "training": "epochs max_updates learning_rate warmup_updates weight_decay per_gpu_batch_size "
    "gradient_accumulation_steps max_grad_norm precision seed log_interval save_interval eval_interval "
    "global_batch_size",
    "data": "data_dir num_workers",
    "generation": "max_new_tokens temperature top_k top_p num_samples",
    "paths": "checkpoint_dir log_dir tensorboard_dir",
    "distributed": "compression",
}


@pytest.fixture(scope="module")
def readme(read_document):
    return read_document("README.md")


# --- What is written


def test_commands_and_names(readme, check_commands, check_names):
    check_commands(readme)
    check_names(
        readme,
        {
            "config.until_update_N.yaml",
            "config.yaml",
            "runs/structured/first",
            "exported/plays",
            "report.html",
        },
    )


def test_each_command_listed_here_is_in_the_readme(readme, commands_run_by):
    assert set(commands_run_by("test_readme.py")) <= set(readme.commands())


# --- What is promised


@pytest.mark.parametrize("module", PROMISED_NAMES)
def test_promised_names(module):
    for name in PROMISED_NAMES[module]:
        assert hasattr(importlib.import_module(module), name)


def test_promised_arguments():
    from horovod_transformer.example import TransformerTrainingExample
    from src.models.transformer_lm import TransformerLM
    from src.train import run_distributed_training

    def names(function):
        return [name for name in inspect.signature(function).parameters if name != "self"]

    arguments = ["config", "rank", "world_size", "local_rank", "resume_checkpoint", "run_name", "output_dir"]
    assert names(run_distributed_training)[:7] == arguments
    shape = ["vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_seq_len", "dropout"]
    assert names(TransformerLM)[:9] == [*shape, "pad_token_id", "gradient_checkpointing"]
    assert names(TransformerLM.forward) == ["input_ids", "attention_mask", "labels"]
    sampling = ["max_new_tokens", "temperature", "top_k", "top_p", "eos_token_id"]
    assert names(TransformerLM.generate)[:6] == ["input_ids", *sampling]
    workflow = names(TransformerTrainingExample.run_complete_workflow)
    assert workflow == ["train", "generate", "checkpoint_path"]


def test_package_gives_the_same_names():
    package = importlib.import_module("horovod_transformer")
    for name in package.__all__:
        getattr(package, name)
    for module, names in PROMISED_NAMES.items():
        for name in set(names) & set(package.__all__):
            assert getattr(package, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", PROMISED_FILES)
def test_promised_files(root, name):
    assert (root / name).is_file()


def test_promised_config_keys(root):
    from src.utils.config import load_config

    values = load_config(root / "configs" / "config.yaml").to_dict()
    for section, keys in PROMISED_KEYS.items():
        assert set(keys.split()) <= set(values[section])
    assert values["data"]["data_dir"] == "notebooks/data/preprocessed/v1"


# --- What is run


def losses(workspace):
    """The training losses of the newest run."""
    tables = (workspace / "runs" / "structured").glob("*/train.csv")
    with open(max(tables, key=lambda path: path.stat().st_mtime), newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained_alone(workspace, run_command):
    result = run_command(TRAINED_ALONE, workspace)
    assert result.returncode == 0, result.stderr
    return losses(workspace)


@pytest.mark.slow
def test_one_process_trains(trained_alone, workspace):
    assert len(trained_alone) == 4
    for name in ("best_model.pt", "last.pt"):
        assert (workspace / "checkpoints" / name).is_file()
    (run,) = (workspace / "runs" / "structured").iterdir()
    assert (workspace / "runs" / run.name / "checkpoints" / "update_00000004.pt").is_file()
    files = sorted(path.name for path in run.iterdir())
    assert set(files) >= {"config.yaml", "environment.json", "train.csv", "val.csv"}


@pytest.mark.slow
def test_generates_from_it(trained_alone, workspace, run_command, commands_run_by):
    (command,) = [line for line in commands_run_by("test_readme.py") if "src.generate" in line]
    result = run_command(command, workspace)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Once upon a time")
    talk = run_command(
        f"{command} --interactive".replace('--prompt "Once upon a time" ', ""),
        workspace,
        given="/temperature 0\nO Romeo\n/quit\n",
    )
    assert talk.returncode == 0 and "O Romeo" in talk.stdout


@pytest.mark.slow
def test_measures_it(trained_alone, workspace, run_command):
    result = run_command("horovod-transformer evaluate --checkpoint checkpoints/best_model.pt", workspace)
    assert result.returncode == 0, result.stderr
    (page,) = workspace.glob("runs/*/evaluation/evaluation.html")
    assert str(page) in result.stdout


@pytest.mark.slow
def test_a_clone_has_what_make_needs(root, tmp_path, run_command, commands_run_by):
    """The first command, and what the two after it would do."""
    if not (root / ".git").exists():
        pytest.skip("these sources were not cloned")
    (command,) = [line for line in commands_run_by("test_readme.py") if line.startswith("git clone")]
    result = run_command(f"{command.replace('<this repository>', str(root))} && make -n demo test", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "horovod_transformer demo" in result.stdout and "pytest" in result.stdout


def test_it_begins_with_what_a_newcomer_looks_for(readme):
    """A sentence, a text that a model wrote, a table of results, and how to have it."""
    text = readme.path.read_text(encoding="utf-8")
    parts = [
        "Train a GPT-style language model on books",
        "```text\nEnter the KING",
        "bits per byte",
        "git clone",
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places and places == sorted(places) and text[: places[-1]].count("\n## ") == 0
    assert readme.commands()[1:3] == ["make demo", "make test"]


@pytest.mark.slow
def test_doctor(workspace, run_command):
    result = run_command("horovod-transformer doctor --config configs/quickstart.yaml", workspace)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "training can run here" in result.stdout and "data/quickstart" in result.stdout


@pytest.mark.distributed
@pytest.mark.parametrize("command", [TRAINED_BY_TWO, LAUNCHED], ids=["horovodrun", "launch"])
def test_two_processes_walk_the_same_curve(trained_alone, workspace, run_command, command):
    result = run_command(command, workspace)
    assert result.returncode == 0, result.stderr
    assert losses(workspace) == pytest.approx(trained_alone, abs=1e-5)


@pytest.mark.distributed
def test_four_processes_train_the_default_config(workspace, run_command):
    result = run_command(NP_4, workspace)
    assert result.returncode == 0, result.stderr
    assert "4 processes" in result.stdout
    assert len(losses(workspace)) == 4
    assert sorted(path.name for path in (workspace / "logs").iterdir())[:4] == [
        f"train_rank{rank}.log" for rank in range(4)
    ]


@pytest.mark.distributed
def test_python_sample(readme, workspace, run_command):
    (sample,) = [fence.text for fence in readme.fences if fence.language == "python"]
    result = run_command([sys.executable, "-c", sample], workspace)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n--- ") == 3 and "2 processes" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "horovod-transformer",
        "horovod-transformer prepare",
        "horovod-transformer demo",
        "horovod-transformer evaluate",
        "horovod-transformer doctor",
        "horovod-transformer export",
        "horovod-transformer import",
        "horovod-transformer report",
        "python -m src.train",
        "python -m src.generate",
    ],
)
def test_help(command, tmp_path, run_command):
    result = run_command(f"{command} --help", tmp_path)
    assert result.returncode == 0 and "usage:" in result.stdout
