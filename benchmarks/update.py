"""One update, ours beside Hugging Face's GPT-2 and a plain GPT of the same shape, on this machine's CPU.

With rotary positions it stands beside Hugging Face's GPT-NeoX and our own update with sinusoidal ones.

    .venv/bin/python benchmarks/update.py [--rounds 3]

An update is forward, backward, clipping and fused AdamW on the same random tokens. All take turns, each in a
process of its own, as training is; medians of tokens/s. The last column is the share that ours reaches of
this machine's own rate of `torch.mm`, whose products take turns with the updates. In fp32, and on a CPU with
a unit for it in bf16, all under the same autocast. The plain GPT has nanoGPT's operations (plain_gpt.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from plain_gpt import PlainGPT
from side_by_side import GPT2_30M, GPT2_124M, TINY, OwnProcess, Row, hugging_face, in_turn, part, products
from torch import Tensor, nn

from horovod_transformer.config_sections import ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.model.losses import IGNORED_LABEL
from horovod_transformer.model.size import count_parameters, flops_per_token
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.precision import DTYPES, autocast, cpu_bf16_unit
from horovod_transformer.system.machine import cpu_flags
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep

RATE = 6e-4
OURS, HUGGING_FACE, PLAIN, SINUSOIDAL = "ours", "Hugging Face", "plain GPT", "sinusoidal positions"
WHOLE, PASSES = "an update", "forward and backward"


def our_update(
    model: TransformerLM, shape: ModelConfig, tokens: Tensor, precision: str = "fp32"
) -> Callable[[], object]:
    """What training does for one update of these tokens, int64 (B, T)."""
    batch, length = tokens.shape
    optimizer = build_optimizer(model, TrainingConfig(learning_rate=RATE))
    plan = BatchPlan(batch, length, 0, batch, batch, 1, 10**6, 1337)
    step = UpdateStep(
        model, optimizer, plan, torch.device("cpu"), precision, 1.0, uses_dropout=shape.dropout > 0
    )
    return lambda: step.run(0, iter([{"input_ids": tokens, "labels": tokens}]), RATE)


def their_update(loss_of: Callable[[], Tensor], model: nn.Module) -> Callable[[], None]:
    """The same with what transformers' own trainer and nanoGPT take by default."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def update() -> None:
        loss_of().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def gradients(loss_of: Callable[[], Tensor], model: nn.Module) -> None:
    """Forward and backward."""
    loss_of().backward()
    model.zero_grad()


def loss_of(model: nn.Module, tokens: Tensor, precision: str) -> Callable[[], Tensor]:
    """How a contender computes its mean loss of these tokens, int64 (B, T)."""
    cpu = torch.device("cpu")
    next_tokens = F.pad(tokens[:, 1:], (0, 1), value=IGNORED_LABEL)

    def loss() -> Tensor:
        with autocast(precision, cpu):
            if isinstance(model, TransformerLM):
                return model.loss_sums(tokens, tokens)[0] / tokens.numel()
            if isinstance(model, PlainGPT):
                return model(tokens, next_tokens)
            return model(input_ids=tokens, labels=tokens).loss

    return loss


def contender(who: str, shape: ModelConfig, batch: int, precision: str) -> dict[str, Callable[[], object]]:
    """Make a contender: its whole update, and its forward and backward passes alone."""
    torch.manual_seed(0)
    tokens = torch.randint(0, shape.vocab_size, (batch, shape.max_seq_len))
    if who == SINUSOIDAL:
        shape = shape.model_copy(update={"positions": "sinusoidal"})
    build = {OURS: build_model, SINUSOIDAL: build_model, HUGGING_FACE: hugging_face, PLAIN: PlainGPT}[who]
    model = build(shape).train()
    loss = loss_of(model, tokens, precision)
    if isinstance(model, TransformerLM):
        whole = our_update(model, shape, tokens, precision)
    else:
        whole = their_update(loss, model)
    return {WHOLE: whole, PASSES: partial(gradients, loss, model)}


def compare(name: str, shape: ModelConfig, batch: int, precision: str, rounds: int, size: int) -> list[Row]:
    """Whole updates, and forward and backward alone; one row for each of the others."""
    tokens = batch * shape.max_seq_len
    work = flops_per_token(shape, count_parameters(shape), shape.max_seq_len)
    peers = (HUGGING_FACE, SINUSOIDAL if shape.positions == "rotary" else PLAIN)
    processes = {who: OwnProcess(contender, who, shape, batch, precision) for who in (OURS, *peers)}
    multiply, flops = products(size, dtype=DTYPES[precision])
    rows = []
    for what in (WHOLE, PASSES):
        contenders = {who: partial(process, what) for who, process in processes.items()}
        seconds = in_turn({**contenders, "products": multiply}, rounds)
        rate = flops / seconds.pop("products")
        speed = {who: tokens / each for who, each in seconds.items()}
        share = speed[OURS] * work / rate
        for peer in peers:
            what_of = f"{what}, {name}, {precision}"
            rows.append(Row(what_of, "tokens/s", speed[OURS], speed[peer], peer_name=peer, share=share))
    for process in processes.values():
        process.end()
    return rows


def measure(rounds: int, tiny: bool) -> list[Row]:
    """All shapes in all precisions."""
    dropped = GPT2_30M.model_copy(update={"dropout": 0.1})
    cases = [
        ("124M, T=512, B=2", GPT2_124M, 2, "fp32"),
        ("30M, T=256, B=8", GPT2_30M, 8, "fp32"),
        ("30M, T=256, B=8, dropout 0.1", dropped, 8, "fp32"),
    ]
    if tiny:
        cases = [
            ("tiny", TINY, 2, "fp32"),
            ("tiny, dropout 0.1", TINY.model_copy(update={"dropout": 0.1}), 2, "fp32"),
        ]
    if unit := cpu_bf16_unit(cpu_flags()):
        print(f"bf16 by {unit}")
        in_bf16 = [("124M, T=512, B=4", GPT2_124M, 4), ("30M, T=256, B=8", GPT2_30M, 8)]
        cases += [(*case, "bf16") for case in ([("tiny", TINY, 2)] if tiny else in_bf16)]
    else:
        print("bf16: this CPU has no unit for it, not measured")
    cases += [
        (f"{name}, rotary", shape.model_copy(update={"positions": "rotary"}), batch, precision)
        for name, shape, batch, precision in cases
        if not shape.dropout
    ]
    rows = []
    for name, shape, batch, precision in cases:
        rows += compare(name, shape, batch, precision, rounds, 64 if tiny else 2048)
    return rows


if __name__ == "__main__":
    part("update", __doc__, measure, rounds=3)
