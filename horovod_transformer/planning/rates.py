"""How fast GPUs train: data sheets, measurements and guesses, each with its source; without torch.

The one place for such figures. `DEVICES` holds what a plan needs of each kind of GPU, `MEASUREMENTS` what has
been measured with this program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from horovod_transformer.errors import UserError

Origin = Literal["measured", "published", "guessed"]

# Time of one message between two GPUs of a node, seconds: assumed, as in docs/scaling.md.
MESSAGE_SECONDS = 5e-6
# A GPU's gradients travel as float32, unless `distributed.compression` says otherwise.
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Device:
    """A kind of GPU.

    Attributes:
        name: As `--gpu` takes it.
        memory_gb: Its memory in GB, 1e9 bytes, by its data sheet.
        peak_flops: Dense peak in `precision`, in FLOP/s, sums in float32; by its data sheet.
        precision: What `training.precision` should be on it: bf16, or fp16 before Ampere.
        link_bytes_per_s: To other GPUs of its node, each way, in bytes/s; by its data sheet.
        share: Of the peak, what training reaches (MFU), 0 to 1: that of the 124M model. Larger models usually
            reach more, smaller ones less; neither has been measured.
        origin: Where the share comes from: measured with this program, published of others, or guessed.
        date: When it was measured or guessed, ISO 8601.
        source: Of the share, in words.
    """

    name: str
    memory_gb: float
    peak_flops: float
    precision: Literal["bf16", "fp16"]
    link_bytes_per_s: float
    share: float
    origin: Origin
    date: str
    source: str

    def tokens_per_second(self, flops_per_token: float) -> float:
        """Speed of one such GPU by itself.

        Args:
            flops_per_token: Of a forward and backward pass, `model.size.flops_per_token`.
        """
        return self.peak_flops * self.share / flops_per_token

    def efficiency(self, gpus: int, parameters: int, seconds: float) -> float:
        """The share of their time that several GPUs of one node compute, by the model of docs/scaling.md.

        The gradients go around a ring once all of them are there, which takes
        2 (n - 1) x (message + bytes / n / link); nothing hides it. Modelled, not measured.

        Args:
            gpus: Number of them, all in one node.
            parameters: Of the model.
            seconds: That each of them computes for an update.

        Returns:
            0 to 1; 1 for a single GPU.
        """
        of_one = parameters * GRADIENT_BYTES / gpus / self.link_bytes_per_s
        exchange = 2 * (gpus - 1) * (MESSAGE_SECONDS + of_one)
        return seconds / (seconds + exchange)


@dataclass(frozen=True)
class Measurement:
    """A speed measured with this program.

    Attributes:
        device: Name of a device above.
        what: Model, precision and batch, in words.
        parameters: Of the model.
        tokens_per_s: Of one GPU.
        mfu: Share of the peak, 0 to 1.
        memory_gib: Most memory that torch had allocated, in GiB.
        date: ISO 8601.
        source: Where the figures stand as they came.
    """

    device: str
    what: str
    parameters: int
    tokens_per_s: int
    mfu: float
    memory_gib: float
    date: str
    source: str


_H200_FILE = "benchmarks/results/2026-11-26-NVIDIA-H200.json"

MEASUREMENTS = (
    Measurement(
        device="h200",
        what="config.yaml on one GPU, bf16, compiled, AdamW, 4 micro-batches of 64 blocks of 512 tokens",
        parameters=123_653_376,
        tokens_per_s=512_435,
        mfu=0.4138,
        memory_gib=13.89,
        date="2026-11-26",
        source=_H200_FILE,
    ),
    Measurement(
        device="h200",
        what="the same, 2 micro-batches of 128 blocks of 512 tokens",
        parameters=123_653_376,
        tokens_per_s=535_442,
        mfu=0.4323,
        memory_gib=23.84,
        date="2026-11-26",
        source=_H200_FILE,
    ),
    Measurement(
        device="h200",
        what="the same, 1 micro-batch of 32 blocks of 512 tokens",
        parameters=123_653_376,
        tokens_per_s=489_268,
        mfu=0.3950,
        memory_gib=8.43,
        date="2026-11-26",
        source=_H200_FILE,
    ),
    Measurement(
        device="h200",
        what="the same, 4 micro-batches of 32 blocks of 1,024 tokens",
        parameters=123_653_376,
        tokens_per_s=491_815,
        mfu=0.4253,
        memory_gib=13.89,
        date="2026-11-26",
        source=_H200_FILE,
    ),
    Measurement(
        device="h200",
        what="the same, 1 micro-batch of 64 blocks of 512 tokens, model.gradient_checkpointing",
        parameters=123_653_376,
        tokens_per_s=419_192,
        mfu=0.3385,
        memory_gib=4.79,
        date="2026-11-26",
        source=_H200_FILE,
    ),
)

DEVICES = (
    Device(
        name="h200",
        memory_gb=141,
        peak_flops=989e12,
        precision="bf16",
        link_bytes_per_s=450e9,
        share=0.414,
        origin="measured",
        date="2026-11-26",
        source="docs/gpu.md: the 124M model of configs/config.yaml on one GPU, 512,000 tokens/s",
    ),
    Device(
        name="h100",
        memory_gb=80,
        peak_flops=989e12,
        precision="bf16",
        link_bytes_per_s=450e9,
        share=0.38,
        origin="guessed",
        date="2026-11-30",
        source="from the H200's 0.414: the same matrix units, but memory of 3.35 TB/s instead of 4.8; were "
        "the third of an update that waits for memory slower by that: 0.36; llm.c's 468,000 tokens/s: 0.40",
    ),
    Device(
        name="a100-80gb",
        memory_gb=80,
        peak_flops=312e12,
        precision="bf16",
        link_bytes_per_s=300e9,
        share=0.41,
        origin="guessed",
        date="2026-11-30",
        source="as the H200: its memory is no slower beside its peak (153 FLOP a byte; the H200 206)",
    ),
    Device(
        name="a100-40gb",
        memory_gb=40,
        peak_flops=312e12,
        precision="bf16",
        link_bytes_per_s=300e9,
        share=0.41,
        origin="guessed",
        date="2026-11-30",
        source="as the H200: its memory is as fast beside its peak (201 FLOP a byte; the H200 206)",
    ),
    Device(
        name="v100-32gb",
        memory_gb=32,
        peak_flops=125e12,
        precision="fp16",
        link_bytes_per_s=150e9,
        share=0.3,
        origin="guessed",
        date="2026-11-30",
        source="below the H200's: fp16 with a loss scale, and PyTorch's flash attention wants Ampere. "
        "PyTorch for CUDA 13, which PyPI has, does not run on it (pytorch/pytorch issue 172352); that for "
        "CUDA 12.6 does",
    ),
    Device(
        name="v100-16gb",
        memory_gb=16,
        peak_flops=125e12,
        precision="fp16",
        link_bytes_per_s=150e9,
        share=0.3,
        origin="guessed",
        date="2026-11-30",
        source="as the V100 with 32 GB",
    ),
    Device(
        name="rtx4090",
        memory_gb=24,
        peak_flops=165e12,
        precision="bf16",
        link_bytes_per_s=32e9,
        share=0.38,
        origin="guessed",
        date="2026-11-30",
        source="a little below the H200's: its memory is no slower beside its peak (164 FLOP a byte), but "
        "it is a card for desktops, which may slow down when hot; its link is PCIe 4.0",
    ),
)

# The shorter names that leave no doubt, or the smaller card, which the larger one can do as well.
_OTHER_NAMES = {
    "h10080gb": "h100",
    "h200141gb": "h200",
    "a100": "a100-40gb",
    "v100": "v100-16gb",
    "4090": "rtx4090",
}


def find_device(name: str) -> Device:
    """The GPU of this name; case, spaces, hyphens and underscores make no difference.

    Args:
        name: Such as h100, A100-80GB, "RTX 4090". Where there are two sizes of memory, a name without one
            means the smaller.

    Raises:
        UserError: There are no figures of it; the line names those that there are.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia"))
    known = {re.sub(r"[^a-z0-9]", "", device.name): device for device in DEVICES}
    for short, full in _OTHER_NAMES.items():
        known[short] = next(device for device in DEVICES if device.name == full)
    if plain not in known:
        names = ", ".join(device.name for device in DEVICES)
        raise UserError(f"no figures of a GPU called {name!r}; there are {names}")
    return known[plain]
