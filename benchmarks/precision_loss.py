"""What smaller weights cost: bits per byte of held-out books, with each `--precision` this machine can do.

    .venv/bin/python benchmarks/precision_loss.py --checkpoint checkpoints/best_model.pt

Every token is scored as `evaluate` does it, but with the output projection that writing uses.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.book_scores import books_of, score_books
from horovod_transformer.generation import load_model_for_generation
from horovod_transformer.generation.quantization import PRECISIONS
from horovod_transformer.model.losses import IGNORED_LABEL
from horovod_transformer.model.transformer import TransformerLM


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument(
        "--data", metavar="DIR", help="prepared with the checkpoint's tokenizer (default: its own)"
    )
    options = parser.parse_args()
    print("precision | bits per byte | more than fp32\n--- | --- | ---")
    exact = 0.0
    for precision in PRECISIONS:
        try:
            model, tokenizer, config = load_model_for_generation(
                options.checkpoint, device="cpu", precision=precision
            )
        except UserError as error:
            print(f"{precision} | {error} |")
            continue
        if options.data:
            config = config.with_overrides({"data.data_dir": options.data}, "--data")
        books = books_of(open_prepared_data(config).validation, tokenizer)
        model.loss_sums = partial(loss_sums, model)
        bits = score_books(model, books, tokenizer).bits_per_byte
        exact = exact or bits
        print(f"{precision} | {bits:.5f} | {bits - exact:+.5f}", flush=True)


def loss_sums(model: TransformerLM, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`TransformerLM.loss_sums`, from the logits that writing sees."""
    logits, targets = model(ids)[0][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    nats = F.cross_entropy(logits.float(), targets, reduction="sum")
    return nats, (targets != IGNORED_LABEL).sum(), (logits.argmax(-1) == targets).sum()


if __name__ == "__main__":
    main()
