"""A launch that brings nothing, start after start, is ended."""

from __future__ import annotations

import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.training.run_folder import require_progress


def test_two_starts_in_a_row_without_a_new_checkpoint_end_a_launch(tmp_path):
    # Attempts 0 and 1 brought a checkpoint each, 2 and 3 none.
    for attempt, update in enumerate((0, 10, 20, 20)):
        require_progress(tmp_path, "job", attempt, update)
    with pytest.raises(UserError, match="two starts in a row ended before a new checkpoint, .* of update 20"):
        require_progress(tmp_path, "job", 4, 20)


def test_other_launches_and_first_starts_count_afresh(tmp_path):
    for launch in ("one", "other", None):
        for attempt in (0, 1, 0, 1):
            require_progress(tmp_path, launch, attempt, 20)
    (tmp_path / ".starts").write_text("{broken")
    require_progress(tmp_path, "one", 2, 20)
