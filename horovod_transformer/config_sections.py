"""The sections of the configuration: every key with its type, its default and what it may be.

The comments in `configs/config.yaml` explain each key.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Below `runs/`: every run's tables.
TABLES = "structured"
# What weights can be to write text with.
WRITING_PRECISIONS = ("fp32", "bf16", "fp16", "int8")
# Keys of `model` that mean nothing to GPT-2.
LLAMA_KEYS = ("n_kv_heads", "head_dim", "qk_norm", "tie_embeddings", "rms_norm_eps", "rope_scaling")


def _no_bool(value: Any) -> Any:
    """Python takes True for 1; a config that says `epochs: yes` is a mistake."""
    if isinstance(value, bool):
        raise ValueError("should be a number, not true/false")
    return value


def _whole_characters(value: Any) -> Any:
    """JSON escapes an emoji as two surrogates, which YAML leaves apart; one alone fits into no file."""
    if not isinstance(value, str):
        return value
    try:
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("should be text in UTF-8; it has other bytes, or half of a surrogate pair") from None


def _in_home(path: str) -> str:
    """`~` means home."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("there is no such user, so no such home folder")
    return expanded


def _known_encoding(name: str) -> str:
    """Python also has codecs that are no encodings of text, such as `hex`."""
    try:
        b"a".decode(name)
    except UnicodeError:
        pass  # of text, but not of this one
    except LookupError:
        raise ValueError(
            "should be an encoding that Python knows, such as latin-1, cp1252 or utf-16"
        ) from None
    return name


def _one_or_more(value: Any) -> Any:
    """`stop: END` means a list of one."""
    return [value] if isinstance(value, str) else value


def _on_or_off(value: Any) -> Any:
    """YAML takes the words `on` and `off` for true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


# What is counted becomes a 64-bit number somewhere (torch's, Arrow's), and a size a product of some.
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**63)]
Positive = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, lt=2**63)]
Size = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, lt=2**31)]
PositiveFloat = Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]
NonNegativeFloat = Annotated[float, BeforeValidator(_no_bool), Field(ge=0)]
Text = Annotated[str, BeforeValidator(_whole_characters)]
PathText = Annotated[Text, Field(min_length=1)]
OutputPath = Annotated[PathText, AfterValidator(_in_home)]
EncodingName = Annotated[PathText, AfterValidator(_known_encoding)]
# Probabilities that may not be certain: dropout, Adam's betas.
BelowOne = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)]


class Section(BaseModel):
    """A section: no key but those below, no value changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class RopeScaling(Section):
    """Llama 3's way to a longer context: slow pairs of rotary positions turn slower still."""

    rope_type: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_position_embeddings: Size

    @model_validator(mode="after")
    def _high_is_above_low(self) -> RopeScaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor should be above low_freq_factor, {self.low_freq_factor:g}, not "
                f"{self.high_freq_factor:g}"
            )
        return self


class ModelConfig(Section):
    """Shape of the transformer; the defaults are the 124M-parameter model."""

    architecture: Literal["gpt2", "llama"] = "gpt2"
    vocab_size: Size = 50257
    d_model: Size = 768
    n_layers: Size = 12
    n_heads: Size = 12
    d_ff: Size = 3072
    max_seq_len: Annotated[Size, Field(ge=2)] = 512
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    rope_theta: PositiveFloat = 10000.0
    dropout: BelowOne = 0.0
    gradient_checkpointing: bool = False
    # Of llama alone.
    n_kv_heads: Size | None = None
    head_dim: Size | None = None
    qk_norm: bool = False
    tie_embeddings: bool = True
    rms_norm_eps: PositiveFloat = 1e-6
    rope_scaling: RopeScaling | None = None

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Numbers of a head."""
        return self.head_dim or self.d_model // self.n_heads

    @model_validator(mode="before")
    @classmethod
    def _llama_is_rotary(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("architecture") == "llama":
            values = {"positions": "rotary", **values}
        return values

    @model_validator(mode="after")
    def _shape_fits_together(self) -> ModelConfig:
        if self.architecture == "llama":
            return self._fits_llama()
        fields = type(self).model_fields
        foreign = [key for key in LLAMA_KEYS if getattr(self, key) != fields[key].default]
        if foreign:
            raise ValueError(
                f"{', '.join(foreign)}: only architecture: llama has this; leave it out, or set architecture "
                "to llama"
            )
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads must divide d_model; {self.n_heads} does not divide {self.d_model}")
        if self.d_model % 2:
            raise ValueError(f"d_model must be even (sinusoidal positions come in pairs), not {self.d_model}")
        if self.positions == "rotary" and self.d_model // self.n_heads % 2:
            raise ValueError(
                "d_model / n_heads must be even (rotary positions turn pairs), not "
                f"{self.d_model // self.n_heads}"
            )
        return self

    def _fits_llama(self) -> ModelConfig:
        if self.positions != "rotary":
            raise ValueError(
                f"architecture: llama has rotary positions, not {self.positions}; set positions to rotary"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_kv_heads must divide n_heads; {self.kv_heads} does not divide {self.n_heads}"
            )
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads must divide d_model unless head_dim is set; {self.n_heads} does not divide "
                f"{self.d_model}"
            )
        if self.head_width % 2:
            raise ValueError(f"heads must be even (rotary positions turn pairs), not {self.head_width} wide")
        return self


class TrainingConfig(Section):
    """How the model is trained; intervals are counted in optimizer updates."""

    epochs: Positive = 1
    max_updates: Positive | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 6e-4
    min_learning_rate_ratio: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)] = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_updates: Count | None = None
    lr_decay_updates: Positive | None = None
    weight_decay: NonNegativeFloat = 0.1
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.95
    adam_eps: PositiveFloat = 1e-8
    max_grad_norm: NonNegativeFloat = 1.0
    global_batch_size: Positive | None = 256
    per_gpu_batch_size: Positive = 64
    gradient_accumulation_steps: Positive | None = None
    exact_up_to: Positive = 8
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = "auto"
    deterministic: bool = False
    seed: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**63)] = 1337
    log_interval: Positive = 10
    eval_interval: Positive = 500
    eval_blocks: Positive | None = 2000
    save_interval: Positive = 500
    keep_checkpoints: Positive = 2
    keep_every: Positive | None = None
    on_checkpoint_failure: Literal["continue", "stop"] = "continue"
    max_skipped_updates: Positive = 10
    sample_interval: Positive | None = None
    sample_prompts: list[Text] = ["", "Once upon a time"]
    # More than any machine has cores: the system would refuse to start them, and end the process.
    threads_per_rank: Annotated[Positive, Field(le=4096)] | None = None
    trackers: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]

    @model_validator(mode="before")
    @classmethod
    def _accumulation_replaces_the_default_batch(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("gradient_accumulation_steps") is not None:
            values = {"global_batch_size": None, **values}
        return values

    @model_validator(mode="after")
    def _one_way_to_say_the_batch(self) -> TrainingConfig:
        if (self.global_batch_size is None) == (self.gradient_accumulation_steps is None):
            raise ValueError(
                "set either global_batch_size (accumulation is then worked out from the number of "
                "processes) or gradient_accumulation_steps, and the other to null"
            )
        return self


class DataConfig(Section):
    """Where books come from, how they are cut into blocks, how blocks are loaded."""

    source: PathText | Annotated[list[PathText], Field(min_length=1)] = "data/bookcorpus"
    tokenizer: PathText = "gpt2"
    tokenizer_characters: Positive = 200_000_000
    text_column: PathText = "text"
    title_column: PathText = "title"
    separator: PathText | None = None
    join_rows: Positive | None = None
    encoding: EncodingName | None = None
    clean: list[Literal["smashwords", "gutenberg"]] = ["smashwords", "gutenberg"]
    on_bad_book: Literal["stop", "skip"] = "stop"
    data_dir: PathText = "notebooks/data/preprocessed/v1"
    validation_fraction: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, lt=1)] = 0.05
    test_fraction: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)] = 0.0
    split: Literal["share", "hash"] = "share"
    min_book_characters: Count = 200
    split_seed: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**32)] = 0
    num_workers: Annotated[Count, Field(le=1024)] = 0  # processes of each rank

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction together should be less than 1")
        return self


class GenerationConfig(Section):
    """Defaults of `horovod-transformer generate`; the command line overrides them."""

    max_new_tokens: Positive = 100
    temperature: NonNegativeFloat = 0.8
    top_k: Count = 50
    top_p: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1)] = 0.9
    num_samples: Positive = 1
    repetition_penalty: PositiveFloat = 1.0
    stop: Annotated[list[Annotated[Text, Field(min_length=1)]], BeforeValidator(_one_or_more)] = []


class PathsConfig(Section):
    """Where a run writes.

    What is None lies in the run's own folder, `runs/NAME` in `output_dir`. A path that is set is shared by
    all runs, and relative to `output_dir`. `checkpoint.run_paths` knows each file's place.
    """

    output_dir: OutputPath = "."
    checkpoint_dir: OutputPath | None = None
    log_dir: OutputPath | None = None
    tensorboard_dir: OutputPath | None = None


class DistributedConfig(Section):
    """What Horovod does with the gradients on their way between processes."""

    sums: Literal["auto", "exact", "fast"] = "auto"
    compression: Literal["none", "fp16", "bf16"] = "none"
    hierarchical: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = "off"
    gradient_groups: Positive = 4
    # Seconds; what waits for them takes no more than this.
    stall_timeout: Annotated[PositiveFloat, Field(ge=1, le=1e9)] | None = 600.0

    @model_validator(mode="after")
    def _exact_numbers_are_not_rounded_on_their_way(self) -> DistributedConfig:
        if self.sums == "exact" and self.compression != "none":
            raise ValueError(f"sums: exact and compression: {self.compression} exclude each other")
        return self
