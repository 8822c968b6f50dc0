"""Which gradients travel together, and in which order they leave."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.distributed.gradients import WholeNumbers, group_parameters
from horovod_transformer.model.transformer import build_model
from tests.conftest import TINY


@pytest.mark.parametrize("number", [1, 2, 4, 7, 1000])
def test_each_parameter_is_in_one_group(tiny_model, number):
    parameters = list(tiny_model.parameters())
    groups = group_parameters(parameters, number)
    assert len(groups) <= number and all(groups)
    # In the backward pass's order, the embedding last.
    flat = [id(parameter) for group in groups for parameter in group]
    assert flat == [id(parameter) for parameter in reversed(parameters)]
    if number > 1:
        assert len(groups[-1]) == 1 and groups[-1][0] is tiny_model.token_embedding.weight


def test_groups_are_of_about_one_size():
    with torch.device("meta"):
        parameters = list(build_model(ModelConfig(vocab_size=2048, d_model=256, n_heads=4)).parameters())
    sizes = [sum(p.numel() for p in group) for group in group_parameters(parameters, 4)]
    assert len(sizes) == 4
    assert max(sizes[:3]) < 1.2 * min(sizes[:3])


def test_gradients_are_ready_in_the_order_of_the_groups(tiny_model):
    parameters = list(tiny_model.parameters())
    ready = []
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: ready.append(id(p)))
    tokens = torch.randint(0, TINY.vocab_size, (2, 8))
    tiny_model.loss_sums(tokens, tokens)[0].backward()
    groups = group_parameters(parameters, 4)
    complete = [max(ready.index(id(parameter)) for parameter in group) for group in groups]
    # Each group can leave before the next is complete, and all but the last before the pass ends.
    assert complete == sorted(complete)
    assert complete[-1] == len(ready) - 1


@pytest.mark.slow
@pytest.mark.distributed
def test_groups_ready_together_are_not_fused(play):
    # In which the order of the sum, and with it the last bits, would change from time to time.
    results = play(4, [{"do": "repeat_sums", "groups": 4, "times": 25}])
    assert len(results[0][0]) == 1
    assert all(rank == results[0] for rank in results)


def test_numbers_travel_as_they_are():
    grad = torch.randn(5)
    sent, context = WholeNumbers.compress(grad)
    assert sent.dtype == torch.int32 and sent.data_ptr() == grad.data_ptr()
    assert torch.equal(WholeNumbers.decompress(sent, context), grad)
