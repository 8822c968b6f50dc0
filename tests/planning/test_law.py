"""The law: expected bits per byte from parameters and tokens, and its fit to runs."""

from __future__ import annotations

import pytest

from horovod_transformer.planning.law import (
    LARGE_CORPUS,
    OF_LARGE_CORPORA,
    OF_SMALL_CORPORA,
    Law,
    Point,
    effective_tokens,
    fit,
    usual_law,
)


def test_tokens_of_the_first_epoch_count_whole_and_later_ones_less_and_less() -> None:
    assert effective_tokens(1000, 700) == 700
    assert effective_tokens(1000, 1000) == 1000
    gains = [
        effective_tokens(1000, 1000 * (epochs + 1)) - effective_tokens(1000, 1000 * epochs)
        for epochs in (1, 2, 20)
    ]
    assert 1000 > gains[0] > gains[1] > gains[2] > 0
    # Muennighoff et al., figure 5: four epochs are nearly as good as four times as many books.
    assert effective_tokens(1000, 4000) == pytest.approx(4000, rel=0.08)


def test_a_fit_finds_the_law_that_made_the_points_and_predicts_a_model_four_times_as_large() -> None:
    law = Law(0.8, 20.0, 0.3, 30.0, 0.26, 0.0, "made up")
    points = [
        Point(parameters, 2_000_000, tokens, law.bits_per_byte(parameters, 2_000_000, tokens))
        for parameters in (50_000, 100_000, 400_000)
        for tokens in (500_000, 2_000_000, 6_000_000)
    ]
    found = fit(points, "here", least_error=0.02)
    assert (found.p, found.q) == (0.3, 0.26)
    assert found.bits_per_byte(1_600_000, 2_000_000, 6_000_000) == pytest.approx(
        law.bits_per_byte(1_600_000, 2_000_000, 6_000_000), abs=1e-6
    )
    assert found.error == 0.02


def test_the_range_of_a_fit_grows_with_what_it_misses() -> None:
    points = [
        Point(10_000 * 4**size, 10**7, 10**5 * 4**length, 3.0 - 0.2 * size - 0.3 * length + noise)
        for (size, length), noise in zip(
            [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)], (0.1, -0.1, -0.1, 0.1, 0.1, -0.1), strict=True
        )
    ]
    assert fit(points, "noise", least_error=0.02).error > 0.05


def test_no_term_of_a_fit_is_negative_whatever_the_points() -> None:
    points = [
        Point(size, 10**7, tokens, 2.0 + 1e-7 * size) for size in (10**5, 10**6) for tokens in (10**6, 10**7)
    ]
    found = fit(points, "growing", least_error=0.0)
    assert min(found.floor, found.a, found.b) >= 0


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="3 points"):
        fit([Point(10**5, 10**6, 10**6, 2.0)] * 3, "few", 0.0)


def test_our_own_law_meets_the_runs_that_it_was_fitted_to() -> None:
    # docs/log.md, 2026-11-29: width, layers, updates of 4,096 tokens, bits per byte; 1,804,000 tokens.
    runs = [(192, 4, 417, 1.917), (256, 2, 516, 1.885), (128, 6, 516, 1.911), (192, 4, 1382, 1.755)]
    for width, layers, updates, bits in runs:
        expected = OF_SMALL_CORPORA.bits_per_byte(12 * layers * width**2, 1_804_000, updates * 4096)
        assert expected == pytest.approx(bits, abs=0.01)


def test_the_published_law_gives_what_it_says_of_gpt2_small() -> None:
    # 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28 nats a token, of 4.4 bytes.
    assert OF_LARGE_CORPORA.bits_per_byte(85_000_000, 1_700_000_000, 1_700_000_000) == pytest.approx(
        1.173, abs=0.002
    )


def test_which_law_is_taken_follows_from_the_amount_of_text() -> None:
    assert usual_law(LARGE_CORPUS) is OF_LARGE_CORPORA
    assert usual_law(LARGE_CORPUS - 1) is OF_SMALL_CORPORA
