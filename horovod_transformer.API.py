"""A tour of the API in a minute on a laptop: the six parts of horovod_transformer.API.md as one program.

    python horovod_transformer.API.py

It works in a temporary folder and leaves nothing behind. The models are tiny: the losses show that
things work, the text does not show what a trained model writes.
"""

import csv
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import torch

from horovod_transformer import UserError
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.launch.subcommand import run_subcommand
from horovod_transformer.prepare.prepare import prepare
from src.data import get_dataloaders, load_preprocessed_data
from src.generate import generate_text, load_model_for_generation
from src.models.transformer_lm import TransformerLM
from src.train import load_checkpoint, run_distributed_training
from src.utils.config import Config, load_config
from src.utils.distributed import (
    get_rank,
    get_world_size,
    is_main_process,
    metric_average,
    setup_horovod,
)

QUICKSTART = Path(__file__).resolve().parent / "configs" / "quickstart.yaml"

# The quickstart config, smaller. Any key of a config can be replaced by its dotted name.
SMALL = {
    "model.vocab_size": 512,
    "model.d_model": 64,
    "model.n_layers": 2,
    "model.n_heads": 4,
    "model.d_ff": 256,
    "model.max_seq_len": 64,
    "training.max_updates": 20,
    "training.learning_rate": 3e-3,
    "training.warmup_updates": 5,
    "training.global_batch_size": 16,
    "training.per_gpu_batch_size": 8,
    "training.log_interval": 5,
    "training.eval_interval": 10,
    "training.eval_blocks": 32,
    "training.save_interval": 10,
}


def show_configuration() -> Config:
    """Read a config, look into it, and make a mistake on purpose."""
    heading("Configuration")
    config = load_config(QUICKSTART, SMALL)
    print(f"d_model {config.model.d_model}, {config.training.max_updates} updates, section by section:")
    print(", ".join(config.to_dict()))
    try:
        config.with_overrides({"model.n_heads": 5})
    except UserError as error:
        print(f"a mistake is one line: {error}")
    return config


def show_model() -> None:
    """Make a model, compute a loss, count the default model's parameters."""
    heading("Model")
    with torch.device("meta"):  # shapes without memory
        default = TransformerLM()
    print(f"the default model has {sum(p.numel() for p in default.parameters()):,} parameters")
    torch.manual_seed(0)
    model = TransformerLM(vocab_size=512, d_model=64, n_heads=4, n_layers=2, d_ff=256, max_seq_len=64)
    tokens = torch.randint(0, 512, (2, 32))
    logits, loss = model(tokens, labels=tokens)
    assert loss is not None
    print(f"logits of shape {tuple(logits.shape)}, loss {loss.item():.2f}; ln(512) is 6.24")


def show_data(config: Config) -> None:
    """Turn the sample's plays into blocks, and blocks into batches."""
    heading("Data")
    prepare(config)
    train, validation = load_preprocessed_data(config.data.data_dir)
    print(f"{len(train):,} blocks to train on, {len(validation):,} held out")
    train_loader, _ = get_dataloaders(config)
    batch = next(iter(train_loader))
    print(f"a batch: {', '.join(f'{key} {tuple(value.shape)}' for key, value in batch.items())}")


def show_distributed() -> None:
    """Ask where we are; the same calls work under horovodrun."""
    heading("Distributed")
    setup_horovod()
    print(f"rank {get_rank()} of {get_world_size()}, main process: {is_main_process()}")
    print(f"the average of 0.5 over all ranks: {metric_average(0.5, 'half')}")
    try:
        setup_horovod(require_distributed=True)
    except UserError as error:
        print(f"asked for company: {error}")


def show_training(config: Config) -> Path:
    """Train in this process, then resume for a few updates; return the best checkpoint."""
    heading("Training")
    world_size, rank, local_rank, _ = setup_horovod()
    run_distributed_training(config, rank, world_size, local_rank, run_name="tour", output_dir="alone")
    print(f"losses on 1 process: {losses(Path('alone'))}", flush=True)

    if importlib.util.find_spec("horovod"):
        arguments = ["--config", str(QUICKSTART), "--output_dir", "pair", "--run_name", "tour"]
        for key, value in {**SMALL, "data.data_dir": config.data.data_dir}.items():
            arguments += [f"--{key}", str(value)]
        run_subcommand(2, "train", arguments)
        print(f"losses on 2 processes: {losses(Path('pair'))}")
    else:
        print("Horovod is not installed: no second run on two processes")

    longer = config.with_overrides({"training.max_updates": 25})
    result = run_distributed_training(
        longer, rank, world_size, local_rank, resume_checkpoint="auto", output_dir="alone"
    )
    best = Path(result["checkpoint_dir"]) / "best_model.pt"
    print(f"resumed, to update {result['update']}; {best} holds {', '.join(load_checkpoint(best))}")
    return best


def show_generation(checkpoint: Path) -> None:
    """Write a few words."""
    heading("Generation")
    model, tokenizer, _ = load_model_for_generation(checkpoint, device="cpu")
    print(repr(generate_text(model, tokenizer, "O Romeo", max_new_tokens=30, seed=1)))


def losses(output_dir: Path) -> str:
    """Read the training losses of a run from its table."""
    with open(output_dir / "runs" / "structured" / "tour" / "train.csv", newline="") as file:
        return " ".join(f"{float(row['loss']):.4f}" for row in csv.DictReader(file))


def heading(text: str) -> None:
    """Begin a part."""
    print(f"\n=== {text} ===", flush=True)


def main(arguments: object) -> int:
    """Take the tour, configuration first since the others need one."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            config = show_configuration()
            show_model()
            show_data(config)
            show_distributed()
            show_generation(show_training(config))
        finally:
            os.chdir(home)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
