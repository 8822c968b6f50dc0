"""The embedding's gradient and the output projection's, as one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from horovod_transformer.model.cpu.tied_embedding import embed
from horovod_transformer.model.losses import chunked_cross_entropy

IDS = torch.tensor([[3, 1, 3, 3], [0, 1, 6, 3]])


def gradient(look_up, batches=1, dtype=torch.float32):
    """Of a weight that embeds tokens and predicts them."""
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for number in range(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            vectors, projection = look_up((IDS + number) % 7, weight)
            hidden = vectors.sin().flatten(0, 1)
            loss, _, _ = chunked_cross_entropy(hidden, projection, IDS.flatten())
        loss.backward()
    return weight.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batches", [1, 3])
def test_no_bit_differs_from_what_autograd_adds(batches, dtype):
    left_to_autograd = gradient(lambda ids, weight: (F.embedding(ids, weight), weight), batches, dtype)
    assert torch.equal(gradient(embed, batches, dtype), left_to_autograd)


def test_no_second_matrix_is_made():
    weight = torch.randn(1000, 64, requires_grad=True)
    vectors, projection = embed(IDS, weight)
    loss, _, _ = chunked_cross_entropy(vectors.flatten(0, 1), projection, IDS.flatten())
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as made:
        loss.backward()
    assert max(event.cpu_memory_usage for event in made.events()) < weight.numel() * weight.element_size()


def test_without_gradients_it_is_a_plain_lookup():
    weight = torch.randn(7, 5, requires_grad=True)
    with torch.no_grad():
        vectors, projection = embed(IDS, weight)
    assert torch.equal(vectors, weight[IDS]) and projection is weight
