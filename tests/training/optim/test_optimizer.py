"""Learning rate of each update, and what decays."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.model.transformer import TransformerLM, build_model
from horovod_transformer.training.optim import muon
from horovod_transformer.training.optim.muon import (
    batch_cost,
    batches_of,
    orthogonalized_together,
    share_out,
    working_dtype,
)
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.optim.schedule import learning_rate
from tests.conftest import TINY


def rates(count, decay_updates, **training):
    config = TrainingConfig(learning_rate=1.0, **training)
    return [learning_rate(update, config, decay_updates) for update in range(count)]


def test_warmup_rises_in_equal_steps_to_the_peak():
    assert rates(5, 100, warmup_updates=4)[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates(1, 100, warmup_updates=0) == [1.0]


def test_cosine_falls_to_the_floor_and_stays():
    curve = rates(130, 110, warmup_updates=10, min_learning_rate_ratio=0.1)
    assert curve[10] == 1.0
    assert curve[60] == pytest.approx(0.55)  # half way, half of the way down
    assert curve[35] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert curve[110:] == [pytest.approx(0.1)] * 20
    assert all(a > b for a, b in zip(curve[10:110], curve[11:111], strict=True))


def test_linear_and_constant():
    curve = rates(120, 110, warmup_updates=10, min_learning_rate_ratio=0.0, schedule="linear")
    assert curve[60] == pytest.approx(0.5) and curve[110] == curve[119] == 0.0
    assert set(rates(120, 110, warmup_updates=10, schedule="constant")[10:]) == {1.0}


def test_a_schedule_shorter_than_its_warmup():
    assert rates(8, 4, warmup_updates=6, min_learning_rate_ratio=0.1)[5:] == [1.0, 1.0, pytest.approx(0.1)]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_decay(tiny_model, kind):
    training = TrainingConfig(learning_rate=0.1, weight_decay=0.5, optimizer=kind)
    optimizer = build_optimizer(tiny_model, training)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(tiny_model.parameters()))
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    for p in tiny_model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in tiny_model.named_parameters():
        # A step without gradient shows the decay alone.
        expected = before[name] * (1 - 0.1 * 0.5) if p.dim() == 2 else before[name]
        torch.testing.assert_close(p.detach(), expected, msg=name)


def test_adamw_is_torchs(tiny_model):
    training = TrainingConfig(learning_rate=0.01, weight_decay=0.0, adam_beta1=0.8, adam_beta2=0.9)
    twin = torch.nn.Parameter(tiny_model.token_embedding.weight.detach().clone())
    reference = torch.optim.AdamW([twin], lr=0.01, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.0, fused=True)
    optimizer = build_optimizer(tiny_model, training)
    for seed in range(3):
        gradient = torch.randn(twin.shape, generator=torch.Generator().manual_seed(seed))
        twin.grad, tiny_model.token_embedding.weight.grad = gradient.clone(), gradient
        reference.step()
        optimizer.step()
    torch.testing.assert_close(tiny_model.token_embedding.weight, twin, rtol=0, atol=0)
    mine, its = optimizer.state_dict(), reference.state_dict()
    torch.testing.assert_close(mine["state"][0], its["state"][0], rtol=0, atol=0)
    assert mine["param_groups"][0].keys() == its["param_groups"][0].keys() | {"muon"}
    optimizer.zero_grad()
    assert tiny_model.token_embedding.weight.grad is None


def plain_orthogonalized(matrix):
    """One matrix at a time, as the Muon reference has it."""
    x = matrix / (matrix.norm() + 1e-7)
    x = x.t() if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.t() if matrix.shape[0] > matrix.shape[1] else x


SHAPES = [(24, 24), (8, 40), (40, 8), (24, 24), (40, 8), (24, 8)]


def random_matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_makes_all_directions_alike(dtype):
    for result in orthogonalized_together(random_matrices(), random_matrices().__getitem__, dtype):
        assert result.dtype == dtype
        singular = torch.linalg.svdvals(result.float())
        assert singular.max() < 1.3
        assert singular.median() > 0.6


def test_muon_in_batches_is_one_matrix_at_a_time():
    matrices = random_matrices()
    together = orthogonalized_together(matrices, matrices.__getitem__, torch.float32)
    for matrix, result in zip(matrices, together, strict=True):
        torch.testing.assert_close(result, plain_orthogonalized(matrix), rtol=0, atol=1e-5)


def test_muon_multiplies_in_the_precision_of_the_run():
    weight, gpu = torch.zeros(2, 2), SimpleNamespace(is_cuda=True)
    assert working_dtype(weight, "fp32") == working_dtype(weight, "fp16") == torch.float32
    assert working_dtype(weight, "bf16") == working_dtype(gpu, "fp32") == torch.bfloat16


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_muon_is_shared_out_evenly_and_each_matrix_once(ranks):
    shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12
    batches = batches_of(shapes)
    assert sorted(number for batch in batches for number in batch) == list(range(48))
    costs = [batch_cost(batch, shapes) for batch in batches]
    assert sum(costs) == sum((2 * max(shape) + min(shape)) * min(shape) ** 2 for shape in shapes)
    shares = share_out(costs, ranks)
    assert sorted(number for share in shares for number in share) == list(range(len(batches)))
    work = [sum(costs[number] for number in share) for share in shares]
    assert max(work) < 1.2 * sum(work) / ranks
    assert len(share_out(costs, 99)) == 99  # more ranks than batches: some have nothing to do


def test_muon_step_by_value(tiny_model):
    """Three steps of one matrix of each shape, against the algorithm written down plainly."""
    rate, decay = 0.02, 0.3
    optimizer = build_optimizer(
        tiny_model, TrainingConfig(optimizer="muon", learning_rate=rate, weight_decay=decay)
    )
    block = tiny_model.blocks[0]
    for weight in (
        block.attention.qkv.weight,
        block.attention.output.weight,
        block.feed_forward.output.weight,
    ):
        expected, momentum = weight.detach().clone(), torch.zeros_like(weight)
        for seed in range(3):
            gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            weight.grad = gradient.clone()
            optimizer.step()
            momentum = 0.95 * momentum + 0.05 * gradient
            direction = plain_orthogonalized(0.05 * gradient + 0.95 * momentum)
            length = rate * 0.2 * max(weight.shape) ** 0.5
            expected = expected * (1 - rate * decay) - length * direction
        weight.grad = None
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_saved_state_resumes_to_the_bit(kind):
    """Two updates, saved and loaded into a fresh optimizer, and one more: as three in a row."""
    training = TrainingConfig(optimizer=kind, learning_rate=1e-2)

    def fresh():
        torch.manual_seed(0)
        model = TransformerLM(vocab_size=20, d_model=8, n_heads=2, n_layers=1, d_ff=16, max_seq_len=8)
        return model, build_optimizer(model, training)

    def advance(model, optimizer, update):
        torch.manual_seed(update)
        tokens = torch.randint(0, 20, (2, 8))
        model(tokens, labels=tokens)[1].backward()
        optimizer.step()
        optimizer.zero_grad()

    straight, optimizer = fresh()
    for update in range(3):
        if update == 2:
            saved = {k: v.clone() for k, v in straight.state_dict().items()}
            state = copy.deepcopy(optimizer.state_dict())
        advance(straight, optimizer, update)
    resumed, optimizer = fresh()
    resumed.load_state_dict(saved)
    optimizer.load_state_dict(state)
    advance(resumed, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "at_hand"), [("adamw", True), ("muon", True), ("muon", False)])
def test_the_device_decides_whether_a_step_is_made(kind, at_hand, monkeypatch):
    """`found_inf` 0 is the step without it, to the bit; 1 changes nothing, whatever the gradients are.

    What is not at hand is on a GPU, and not looked at.
    """
    monkeypatch.setattr(muon, "_is_at_hand", lambda number: at_hand)

    def two_steps(found, gradient=1.0):
        torch.manual_seed(0)
        model = build_model(TINY)
        optimizer = build_optimizer(model, TrainingConfig(optimizer=kind, learning_rate=0.01))
        for number, value in enumerate(found):
            generator = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                parameter.grad *= gradient if number else 1.0
            if value is not None:
                optimizer.found_inf = torch.tensor(value)
            optimizer.step()
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    plain = two_steps([None, None])
    torch.testing.assert_close(two_steps([0.0, 0.0]), plain, rtol=0, atol=0)
    once = two_steps([0.0])
    torch.testing.assert_close(two_steps([0.0, 1.0], float("nan")), once, rtol=0, atol=0)
    # Not made from the first on, it is there with nothing in it.
    assert all(not state["step"] for state in two_steps([1.0])["optimizer"]["state"].values())
    assert not torch.equal(once["model"]["token_embedding.weight"], plain["model"]["token_embedding.weight"])
