"""Numbers and values as they are shown."""

from __future__ import annotations

import pytest

from horovod_transformer.reports.formats import (
    any_value,
    byte_size,
    duration,
    number,
    seconds_and_share,
    short_number,
)


def test_numbers():
    assert [number(1234567), number(-0.5, 2), number(None)] == ["1,234,567", "−0.50", "–"]
    names = [short_number(x) for x in (0, 1500, 2e6, 3e9, -0.25, 3)]
    assert names == ["0", "1.5k", "2M", "3G", "−0.25", "3"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e6, "1.0 MB"), (2.5e9, "2.5 GB"), (1234e12, "1,234.0 TB")],
)
def test_sizes(value, shown):
    assert byte_size(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(119, "119 s"), (120, "2 minutes"), (7100, "118 minutes"), (7200, "2.0 hours")]
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_shares():
    assert seconds_and_share(1.5, 12) == "1.50 s, 12.50%"
    assert seconds_and_share(1.5, 0) == "1.50 s"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (["a", 1], '["a", 1]'),
        (50257, "50,257"),
        (2.98765, "2.988"),
        (1e-08, "1e-08"),
        ("text", "text"),
    ],
)
def test_any_value(value, shown):
    assert any_value(value) == shown


def test_any_value_with_all_its_digits():
    assert any_value(2.98765, digits=None) == "2.98765"
