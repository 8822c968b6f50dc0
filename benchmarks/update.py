"""One update, ours and Hugging Face's GPT-2 of the same shape, on this machine's CPU in fp32.

    .venv/bin/python benchmarks/update.py [--rounds 3]

An update is forward, backward, clipping and fused AdamW on the same random tokens. Both take turns; medians
of tokens/s. The last column is the share of this machine's own fp32 matrix product rate that ours reaches:
products take turns with the updates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from side_by_side import GPT2_30M, GPT2_124M, TINY, Row, hugging_face, in_turn, part, products
from torch import Tensor, nn

from horovod_transformer.config import ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import UpdatePlan
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.training.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep
from horovod_transformer.training.throughput import flops_per_token

RATE = 6e-4


def our_update(model: TransformerLM, shape: ModelConfig, tokens: Tensor) -> Callable[[], object]:
    """What training does for one update of these tokens, int64 (B, T)."""
    batch, length = tokens.shape
    optimizer = build_optimizer(model, TrainingConfig(learning_rate=RATE))
    plan = UpdatePlan(batch, length, 0, batch, batch, 1, 10**6, 1337)
    step = UpdateStep(
        model, optimizer, plan, torch.device("cpu"), "fp32", 1.0, uses_dropout=shape.dropout > 0
    )
    return lambda: step.run(0, iter([{"input_ids": tokens, "labels": tokens}]), RATE)


def their_update(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    """The same with what transformers' own trainer takes by default."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def update() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def our_gradients(model: TransformerLM, tokens: Tensor) -> None:
    """Forward and backward."""
    (model.loss_sums(tokens, tokens)[0] / tokens.numel()).backward()
    model.zero_grad()


def their_gradients(model: nn.Module, tokens: Tensor) -> None:
    """The same."""
    model(input_ids=tokens, labels=tokens).loss.backward()
    model.zero_grad()


def measure(rounds: int, tiny: bool) -> list[Row]:
    """Both shapes, with and without dropout."""
    cases = [
        ("124M, T=512, B=2", GPT2_124M, 2),
        ("30M, T=256, B=8", GPT2_30M, 8),
        ("30M, T=256, B=8, dropout 0.1", GPT2_30M.model_copy(update={"dropout": 0.1}), 8),
    ]
    if tiny:
        cases = [("tiny", TINY, 2), ("tiny, dropout 0.1", TINY.model_copy(update={"dropout": 0.1}), 2)]
    rows = []
    for name, shape, batch in cases:
        torch.manual_seed(0)
        tokens = torch.randint(0, shape.vocab_size, (batch, shape.max_seq_len))
        ours, theirs = build_model(shape).train(), hugging_face(shape).train()
        parameters = sum(parameter.numel() for parameter in ours.parameters())
        work = flops_per_token(shape, parameters, shape.max_seq_len)
        half = {
            "ours": partial(our_gradients, ours, tokens),
            "theirs": partial(their_gradients, theirs, tokens),
        }
        whole = {"ours": our_update(ours, shape, tokens), "theirs": their_update(theirs, tokens)}
        for what, contenders in (("an update", whole), ("forward and backward", half)):
            multiply, flops = products(64) if tiny else products()
            seconds = in_turn({**contenders, "products": multiply}, rounds)
            rate = flops / seconds.pop("products")
            speed = {who: tokens.numel() / each for who, each in seconds.items()}
            share = speed["ours"] * work / rate
            rows.append(Row(f"{what}, {name}", "tokens/s", speed["ours"], speed["theirs"], share=share))
    return rows


if __name__ == "__main__":
    part("update", __doc__, measure, rounds=3)
