"""What a foreign `config.json` has to say for the model to be one that we compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from horovod_transformer.errors import UserError

NORM_EPSILON = 1e-5  # torch's default for LayerNorm, GPT-2's and GPT-NeoX's
# The same function under two names, ours; the first is written.
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")


def require_values(
    values: Mapping[str, Any],
    required: Mapping[str, Any],
    defaults: Mapping[str, Any],
    path: Path,
    kind: str,
) -> None:
    """Refuse another computation of the same weights.

    Args:
        values: What the file says.
        required: Key -> the only value that we compute, or a tuple of those.
        defaults: What a key that the file leaves out means to `transformers`.
        path: The file, for the message.
        kind: Of model, for the message.

    Raises:
        UserError: A value differs.
    """
    for key, wanted in required.items():
        accepted = wanted if isinstance(wanted, tuple) else (wanted,)
        actual = values.get(key, defaults.get(key))
        if actual not in accepted:
            raise UserError(
                f"{path}: {key} = {actual!r}; only {kind} models with {' or '.join(map(repr, accepted))} can "
                "be imported"
            )
