"""Writing text, ours and Hugging Face's GPT-2 of the same shape, on this machine's CPU.

    .venv/bin/python benchmarks/generation.py [--rounds 5]

124M, a prompt of 32 tokens and 64 new ones, greedy, one text and eight at a time. Hugging Face's weights are
fp32, ours packed as `generate` packs them, and the smaller ones of `--precision`; all take turns, medians of
new tokens/s. The last column, for one text, is the share of the memory's bandwidth: each new token reads
every weight once, and the bandwidth is measured by reading 400 MB over and over.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from side_by_side import GPT2_124M, TINY, Row, hugging_face, in_turn, part

from horovod_transformer.generation.quantization import pack_weights, shrink_weights
from horovod_transformer.model.transformer import build_model
from horovod_transformer.precision import cpu_bf16_unit
from horovod_transformer.system.machine import cpu_flags

# Of a weight.
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
if cpu_bf16_unit(cpu_flags()):
    BYTES["bf16"] = 2


def memory_bandwidth() -> float:
    """Bytes per second that all threads read of a tensor far larger than the caches."""
    large = torch.ones(100_000_000)
    return large.numel() * large.element_size() / in_turn({"sum": large.sum}, 7)["sum"]


def measure(rounds: int, tiny: bool) -> list[Row]:
    """One text, and eight."""
    shape, prompt_length, new = (TINY, 8, 8) if tiny else (GPT2_124M, 32, 64)
    torch.manual_seed(0)
    model, theirs = build_model(shape).eval(), hugging_face(shape).eval()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    ours = {precision: copy.deepcopy(model) for precision in BYTES}
    for precision, each in ours.items():
        shrink_weights(each, precision)
    rows = []
    for batch in (1, 8):
        pack_weights(ours["fp32"], batch)  # as the command `generate` does
        prompt = torch.randint(0, shape.vocab_size, (batch, prompt_length))
        options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": new, "do_sample": False}
        contenders = {
            precision: partial(each.generate, prompt, new, temperature=0.0)
            for precision, each in ours.items()
        }
        contenders["theirs"] = partial(theirs.generate, prompt, **options)
        bandwidth = memory_bandwidth()
        seconds = in_turn(contenders, rounds)
        speed = {who: batch * new / each for who, each in seconds.items()}
        name = f"{'tiny' if tiny else '124M'}, {prompt_length} + {new} tokens, B={batch}"
        for precision, size in BYTES.items():
            share = speed[precision] * numbers * size / bandwidth if batch == 1 else None
            rows.append(
                Row(f"{name}, {precision}", "tokens/s", speed[precision], speed["theirs"], share=share)
            )
    return rows


if __name__ == "__main__":
    part("generation", __doc__, measure, rounds=5)
