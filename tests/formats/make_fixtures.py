"""Write what test_written_by_efaa3e3.py reads: checkpoints, prepared data, an export, and facts about them.

    cd CHECKOUT && .venv/bin/python .../tests/formats/make_fixtures.py .../tests/formats/efaa3e3

CHECKOUT is a checkout of the commit that is to have written them, with a `.venv` of its own. All commands run
in a temporary folder and name files relative to it, so that no file says where it was made.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

CHECKOUT = Path.cwd()
CONFIG = Path(__file__).with_name("config.yaml")
PROMPT = "The sea was"
# Checkpoint -> what its run changes in config.yaml.
RUNS = {
    "adamw": [],
    "muon": ["--training.optimizer", "muon", "--model.positions", "learned", "--model.dropout", "0"],
}
LINES = [
    "The sea was calm — so said the captain, né à Brême.",
    "A gull sat on the mast and looked at the bread.",
    "Nobody had seen the island since the war.",
    "“Turn her into the wind,” she said, and they turned.",
    "By noon the rain had come, and with it the cold.",
    "The cook sang of a town with seven bridges.",
]


def main() -> None:
    """Make everything in a temporary folder, and keep what is to be kept in the one named."""
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copy(CONFIG, "config.yaml")
        with open("books.jsonl", "w", encoding="utf-8") as file:
            for first in range(len(LINES)):
                lines = LINES[first:] + LINES[:first] + LINES[::-1]
                file.write(json.dumps({"title": f"Voyage {first}", "text": "\n".join(lines)}) + "\n")
        run("horovod_transformer", "prepare", "--config", "config.yaml")
        facts = {"prompt": PROMPT, "data": data_facts()}
        for name, changes in RUNS.items():
            train = [
                "src.train",
                "--config",
                "config.yaml",
                "--output_dir",
                name,
                "--run_name",
                name,
                *changes,
            ]
            run(*train)
            shutil.copy(f"{name}/checkpoints/last.pt", f"{name}.pt")
            run(*train, "--resume", f"{name}.pt", "--training.max_updates", "202")
            run("horovod_transformer", "evaluate", "--checkpoint", f"{name}.pt", "--output", "evaluation")
            facts[name] = {
                **model_facts(f"{name}.pt"),
                "resumed_losses": losses(Path(name, "runs/structured", name)),
                "evaluated_loss": json.loads(Path("evaluation/evaluation.json").read_text())["prediction"][
                    "loss"
                ],
            }
        run("horovod_transformer", "export", "--checkpoint", "muon.pt", "--to", "exported")
        Path("expected.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in (*(f"{run}.pt" for run in RUNS), "data", "exported", "expected.json"):
            shutil.move(name, target / name)
        for page in target.rglob("*.html"):
            page.unlink()


def run(module: str, *arguments: str) -> None:
    """Run a module of the checkout as its user would."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=True)


def data_facts() -> dict[str, object]:
    """How many prepared blocks there are, the first of them, and a digest of all."""
    from src.data import load_preprocessed_data

    splits = dict(zip(("train", "validation"), load_preprocessed_data("data"), strict=True))
    return {
        name: {"blocks": len(split), "first": split[0]["input_ids"], "digest": digest(split)}
        for name, split in splits.items()
    }


def digest(split: Iterable[dict[str, list[int]]]) -> str:
    """SHA-256 of the ids of all blocks, in order."""
    return hashlib.sha256(json.dumps([block["input_ids"] for block in split]).encode()).hexdigest()


def model_facts(checkpoint: str) -> dict[str, object]:
    """The logits of a few tokens, and a text."""
    import torch

    from src.generate import generate_text, load_model_for_generation

    model, tokenizer, _ = load_model_for_generation(checkpoint, device="cpu")
    tokens = torch.arange(0, 300, 23).reshape(1, -1)
    with torch.no_grad():
        logits = model(tokens)[0]
    return {
        "tokens": tokens.tolist(),
        "every_11th_logit": [round(value, 6) for value in logits.flatten()[::11].tolist()],
        "text": generate_text(model, tokenizer, PROMPT, max_new_tokens=20, temperature=0),
    }


def losses(folder: Path) -> list[float]:
    """The losses of a run's last two updates."""
    with open(folder / "train.csv", newline="", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)][-2:]


if __name__ == "__main__":
    sys.path.insert(0, str(CHECKOUT))
    main()
