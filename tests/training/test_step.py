"""One optimizer update against plain torch."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training.optim import muon
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep
from tests.conftest import TINY, TINY_LLAMA

CPU = torch.device("cpu")
BATCH, BLOCK, PADDING = 4, 8, 3
BLOCKS = torch.randint(0, TINY.vocab_size, (BATCH, BLOCK), generator=torch.Generator().manual_seed(1))


def make_step(
    micro=BATCH,
    precision="fp32",
    clip=0.0,
    dropout=0.0,
    decay=0.0,
    compression="none",
    optimizer="adamw",
    shape=TINY,
):
    torch.manual_seed(0)
    model = build_model(shape.model_copy(update={"dropout": dropout})).train()
    training = TrainingConfig(learning_rate=0.01, weight_decay=decay, optimizer=optimizer)
    plan = BatchPlan(BATCH, BLOCK, PADDING, BATCH, micro, 1, 1, 7)
    return UpdateStep(
        model, build_optimizer(model, training), plan, CPU, precision, clip, dropout > 0, compression
    )


def batches_of(plan, update=0):
    """What a loader gives for an update: the last block ends in filling."""
    for number in range(plan.micro_batches):
        rows = plan.block_indices(plan.micro_batch(update, 0, number))
        labels = BLOCKS[rows].clone()
        labels[torch.tensor(rows) == BATCH - 1, BLOCK - PADDING :] = -100
        yield {"input_ids": BLOCKS[rows], "labels": labels}


def run(step, stop=False):
    return step.run(0, batches_of(step.plan), 0.01, stop)


def reference(clip=0.0, decay=0.0, shape=TINY):
    """The same update in plain torch: mean loss per token, clip, AdamW."""
    torch.manual_seed(0)
    model = build_model(shape)
    labels = BLOCKS.clone()
    labels[BATCH - 1, BLOCK - PADDING :] = -100
    _, loss = model(BLOCKS, labels=labels)
    loss.backward()
    limit = clip or float("inf")
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    build_optimizer(model, TrainingConfig(learning_rate=0.01, weight_decay=decay)).step()
    return model, float(loss.detach()), float(norm)


def assert_same_weights(one, other, **tolerance):
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


SHAPES = {
    "sinusoidal": TINY,
    "rotary": TINY.model_copy(update={"positions": "rotary"}),
    "llama": TINY_LLAMA,
    "llama, untied": TINY_LLAMA.model_copy(update={"tie_embeddings": False}),
}


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("clip", [0.0, 0.05, 100.0])
@pytest.mark.parametrize("kind", SHAPES)
def test_an_update_is_plain_torchs_however_it_is_cut(micro, clip, kind):
    shape = SHAPES[kind]
    step = make_step(micro, clip=clip, decay=0.1, shape=shape)
    result = run(step)
    model, loss, norm = reference(clip, decay=0.1, shape=shape)
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert result.tokens == BATCH * (BLOCK - 1) - PADDING
    assert not result.skipped and not result.stop_requested
    # Adam's first step divides a gradient by its own size: rounding shows where it is almost zero.
    assert_same_weights(step.model, model, rtol=1e-3, atol=2e-4)


def test_clipping_changes_the_gradient_and_not_the_reported_norm():
    step = make_step(clip=0.05)
    seen = []
    step.optimizer.register_step_pre_hook(
        lambda *_: seen.append(float(torch.nn.utils.get_total_norm([p.grad for p in step._parameters])))
    )
    assert run(step).gradient_norm > 1
    assert seen == [pytest.approx(0.05, rel=1e-4)]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_skipped_whole(poison):
    step = make_step(decay=0.1)
    run(step)
    before = [p.detach().clone() for p in step.model.parameters()]
    steps_before = [float(s["step"]) for s in step.optimizer.state.values()]
    poisoned = step.model.blocks[0].feed_forward.expand.bias.register_hook(lambda grad: grad * poison)
    result = run(step)
    assert result.skipped and not result.gradient_norm < float("inf")
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))
    assert [float(s["step"]) for s in step.optimizer.state.values()] == steps_before
    # Nothing of it is left for the next update.
    poisoned.remove()
    assert not run(step).skipped
    assert all(torch.isfinite(p).all() for p in step.model.parameters())


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_fp32(precision, kind):
    step = make_step(2, precision, clip=1.0, shape=SHAPES[kind])
    result = run(step)
    _, loss, norm = reference(shape=SHAPES[kind])
    assert result.loss == pytest.approx(loss, rel=2e-2)
    # The reported norm is of unscaled gradients.
    assert result.gradient_norm == pytest.approx(norm, rel=5e-2)
    assert all(p.dtype == torch.float32 for p in step.model.parameters())


def test_fp16_clips_unscaled_gradients():
    seen = []
    step = make_step(2, "fp16", clip=0.05)
    step.optimizer.register_step_pre_hook(
        lambda *_: seen.append(float(torch.nn.utils.get_total_norm([p.grad for p in step._parameters])))
    )
    run(step)
    assert seen == [pytest.approx(0.05, rel=1e-3)]


def test_fp16_overflow_halves_the_scale_and_skips_until_it_fits():
    step = make_step(2, "fp16")
    step.loss_scale.factor = 2.0**40
    skipped = 0
    while run(step).skipped:
        skipped += 1
        assert step.loss_scale.factor == 2.0 ** (40 - skipped)
    assert skipped > 10
    assert {float(s["step"]) for s in step.optimizer.state.values()} == {1.0}


def test_dropout_is_drawn_from_the_plan_alone():
    losses = []
    for disturbance in (1, 2):
        step = make_step(2, dropout=0.3)
        torch.manual_seed(disturbance)
        losses.append([run(step).loss, run(step).loss])
    assert losses[0] == losses[1]
    assert run(make_step(2)).loss != losses[0][0]


def test_stop_is_passed_on_and_the_rate_is_used():
    step = make_step()
    before = step.model.token_embedding.weight.detach().clone()
    result = step.run(0, batches_of(step.plan), 0.0, stop=True)
    assert result.stop_requested and not result.skipped
    assert torch.equal(before, step.model.token_embedding.weight)


def test_running_out_of_batches_is_an_error():
    step = make_step(1)
    with pytest.raises(RuntimeError, match="update 0 got 2 of 4 micro-batches"):
        step.run(0, iter(list(batches_of(step.plan))[:2]), 0.01)


@pytest.mark.parametrize("saved_in", ["fp32", "bf16"])
def test_a_run_resumed_in_fp16_begins_with_the_default_scale(saved_in):
    before = make_step(2, saved_in)
    run(before)
    state = before.state_dict()
    assert state["loss_scale"] == {}
    after = make_step(2, "fp16")
    after.load_state_dict(state)
    assert after.loss_scale.factor == 2.0**16


@pytest.mark.parametrize("factor", [512.0, 1.0])
def test_a_scale_that_moved_is_resumed(factor):
    before = make_step(2, "fp16")
    before.loss_scale.factor = factor
    run(before)
    after = make_step(2, "fp16")
    after.load_state_dict(before.state_dict())
    assert after.loss_scale.factor == factor


def test_gradients_that_travel_in_fp16_are_not_subnormal():
    """What each rank sends is scaled: with a real update's tokens nearly all would be too small."""
    seen = {}
    for compression in ("none", "fp16"):
        step = make_step(compression=compression)
        tokens = 256 * 512  # those of the default update
        step._backward(0, batches_of(step.plan), tokens)
        sizes = torch.cat([p.grad.abs().flatten() for p in step.model.parameters()])
        sizes = sizes[sizes > 0]
        seen[compression] = float((sizes < torch.finfo(torch.float16).smallest_normal).float().mean())
        assert float(sizes.max()) < torch.finfo(torch.float16).max
    assert seen["none"] > 0.9
    assert seen["fp16"] < 0.1


def test_muon_multiplies_in_the_runs_precision(monkeypatch):
    seen = []
    whole = muon.orthogonalized
    monkeypatch.setattr(
        muon, "orthogonalized", lambda matrices: seen.append(matrices.dtype) or whole(matrices)
    )
    for precision in ("fp32", "bf16"):
        run(make_step(precision=precision, optimizer="muon"))
    assert set(seen[: len(seen) // 2]) == {torch.float32}
    assert set(seen[len(seen) // 2 :]) == {torch.bfloat16}
