"""Text from a checkpoint: load it, continue a prompt, or talk to it at a terminal.

    model, tokenizer, config = load_model_for_generation("checkpoints/best_model.pt")
    print(generate_text(model, tokenizer, "Once upon a time", max_new_tokens=50, seed=7))

How a token is drawn is in `model/sampling.py`, the loop over tokens in `model/decoding.py`.
"""

from horovod_transformer.generation.loading import choose_device, load_model_for_generation
from horovod_transformer.generation.terminal import interactive_generation, write_passages
from horovod_transformer.generation.text import (
    Sample,
    Writing,
    continue_prompt,
    generate_text,
    stream_text,
)

__all__ = [
    "Sample",
    "Writing",
    "choose_device",
    "continue_prompt",
    "generate_text",
    "interactive_generation",
    "load_model_for_generation",
    "stream_text",
    "write_passages",
]
