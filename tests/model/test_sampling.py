"""Drawing tokens, against a plain Python reference."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.model.sampling import next_tokens

ALL = {"temperature": 1, "top_k": 0, "top_p": 1}
LOGITS = torch.tensor([2.0, 1.0, 3.0, 0.0, -1.0])


def draw(logits, generator=None, **settings):
    draws = torch.rand(len(logits), dtype=torch.float64, generator=generator)
    return next_tokens(logits, GenerationConfig(**{**ALL, **settings}), draws)


def reference(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """The probabilities after both cuts, one token at a time."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
    weights = {i: math.exp(logits[i] / temperature) for i in order}
    total = sum(weights.values())
    kept, mass = [], 0.0
    for i in order:
        if kept and mass >= top_p and top_p < 1:
            break
        kept.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


def frequencies(draws: int = 40_000, **settings) -> list[float]:
    generator = torch.Generator().manual_seed(5)
    tokens = draw(LOGITS.expand(draws, -1), generator=generator, **settings)
    return (tokens.bincount(minlength=5) / draws).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 5, 999])
@pytest.mark.parametrize("top_p", [1e-6, 0.5, 0.9, 1.0])
def test_frequencies_follow_the_reference(temperature, top_k, top_p):
    expected = reference(LOGITS.tolist(), temperature, min(top_k, 5), top_p)
    found = frequencies(temperature=temperature, top_k=top_k, top_p=top_p)
    # Five standard deviations of the least certain frequency.
    assert found == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(40_000))
    assert [x > 0 for x in found] == [x > 0 for x in expected]


def test_nucleus_is_the_fewest_tokens_that_reach_the_mass():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(2000, -1)
    for top_p, kept in ((0.49, {0}), (0.5, {0}), (0.51, {0, 1}), (0.75, {0, 1}), (0.76, {0, 1, 2})):
        found = set(draw(logits, top_p=top_p, generator=torch.Generator().manual_seed(0)).tolist())
        assert found == kept, top_p


def test_temperature_zero_takes_the_likeliest_whatever_else_is_said():
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    expected = logits.argmax(-1)
    for settings in ({}, {"top_k": 3}, {"top_p": 0.1}, {"top_k": 50, "top_p": 1.0}):
        assert torch.equal(draw(logits, temperature=0, **settings), expected)


def test_rows_are_drawn_apart():
    logits = torch.full((3, 5), -math.inf)
    logits[0, 1] = logits[1, 4] = logits[2, 0] = 0.0
    assert draw(logits).tolist() == [1, 4, 0]


def test_a_seed_repeats_and_another_differs():
    logits = torch.zeros(64, 100)
    drawn = [draw(logits, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_refused(temperature):
    logits = torch.zeros(2, 5)
    logits[1, 3] = math.nan
    with pytest.raises(UserError, match="NaN"):
        draw(logits, temperature=temperature)


@pytest.mark.parametrize(
    "settings", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": -1.0}]
)
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        GenerationConfig(**settings)


def test_half_precision_logits_and_the_shape_of_the_answer():
    tokens = draw(torch.zeros(4, 9, dtype=torch.bfloat16), top_p=0.5)
    assert tokens.shape == (4,)
    assert tokens.dtype == torch.int64


def test_a_tiny_temperature_does_not_overflow():
    assert draw(LOGITS[None], temperature=1e-6).item() == 2


def test_the_draw_decides():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    settings = GenerationConfig(**ALL)
    found = [
        next_tokens(logits, settings, torch.tensor([x], dtype=torch.float64)).item()
        for x in (0.0, 0.49, 0.51, 0.74, 0.76, 0.999)
    ]
    assert found[:2] == [0, 0] and found[2] == found[3] != found[4] == found[5]


def test_the_penalty_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    texts = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(1))
    expected = transformers.RepetitionPenaltyLogitsProcessor(5.0)(texts, logits.clone()).argmax(-1)
    seen = torch.zeros(3, 20, dtype=torch.bool).scatter_(1, texts, True)
    found = next_tokens(logits, GenerationConfig(temperature=0, repetition_penalty=5.0), seen=seen)
    assert torch.equal(found, expected) and not torch.equal(found, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-300, 5e-324])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_the_smallest_temperatures_take_the_likeliest(temperature, cuts):
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * 20
    logits[0] -= 1000
    logits[1, 3:] = -math.inf
    assert torch.equal(draw(logits, temperature=temperature, **cuts), logits.argmax(-1))


@pytest.mark.parametrize("penalty", [1e-40, 1e-300, 1e300])
def test_the_largest_penalties_leave_numbers(penalty):
    logits = torch.tensor([[2.0, 1.0, -1.0, 3.0]])
    seen = torch.tensor([[True, False, True, False]])
    for temperature in (0, 1, 1e-300):
        settings = GenerationConfig(**{**ALL, "temperature": temperature}, repetition_penalty=penalty)
        drawn = next_tokens(logits, settings, torch.tensor([0.5], dtype=torch.float64), seen)
        assert drawn.item() == (0 if penalty < 1 else 3) or (penalty > 1 and temperature == 1)
