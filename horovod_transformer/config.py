"""The configuration: typed sections, read from YAML, checked before anything runs.

    config = load_config("configs/config.yaml", {"training.learning_rate": "1e-4"})
    config.model.d_model        # 768
    config.to_dict()["model"]   # {"vocab_size": 50257, ...}

Every key has a default, so a file need only name what it changes. The comments in
`configs/config.yaml` explain each key.
"""

from __future__ import annotations

import difflib
import os
import reprlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import user_path

# Below `paths.tensorboard_dir`: every run's tables.
TABLES = "structured"
DEFAULT_CONFIG = "configs/config.yaml"
# In a clone, and so wherever the package is installed from one.
OUR_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


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


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
PositiveFloat = Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]
NonNegativeFloat = Annotated[float, BeforeValidator(_no_bool), Field(ge=0)]
Text = Annotated[str, BeforeValidator(_whole_characters)]
PathText = Annotated[Text, Field(min_length=1)]
OutputPath = Annotated[PathText, AfterValidator(_in_home)]
EncodingName = Annotated[PathText, AfterValidator(_known_encoding)]
# Probabilities that may not be certain: dropout, Adam's betas.
BelowOne = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(_Section):
    """Shape of the transformer; the defaults are the 124M-parameter model."""

    vocab_size: Positive = 50257
    d_model: Positive = 768
    n_layers: Positive = 12
    n_heads: Positive = 12
    d_ff: Positive = 3072
    max_seq_len: Annotated[int, BeforeValidator(_no_bool), Field(ge=2)] = 512
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    dropout: BelowOne = 0.0
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads must divide d_model; {self.n_heads} does not divide {self.d_model}")
        if self.d_model % 2:
            raise ValueError(f"d_model must be even (sinusoidal positions come in pairs), not {self.d_model}")
        return self


class TrainingConfig(_Section):
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
    threads_per_rank: Positive | None = None
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


class DataConfig(_Section):
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
    num_workers: Count = 0

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction together should be less than 1")
        return self


class GenerationConfig(_Section):
    """Defaults of `python -m src.generate`; the command line overrides them."""

    max_new_tokens: Positive = 100
    temperature: NonNegativeFloat = 0.8
    top_k: Count = 50
    top_p: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1)] = 0.9
    num_samples: Positive = 1
    repetition_penalty: PositiveFloat = 1.0
    stop: Annotated[list[Annotated[Text, Field(min_length=1)]], BeforeValidator(_one_or_more)] = []


class PathsConfig(_Section):
    """Where a run writes; relative to the working folder, or to `--output_dir`."""

    checkpoint_dir: OutputPath = "checkpoints"
    log_dir: OutputPath = "logs"
    tensorboard_dir: OutputPath = "runs"

    def tables_of(self, run_name: str) -> Path:
        """The folder of a run's tables; TensorBoard has the folder of its name beside `structured`."""
        return Path(self.tensorboard_dir) / TABLES / run_name


class DistributedConfig(_Section):
    """What Horovod does with the gradients on their way between processes."""

    compression: Literal["none", "fp16"] = "none"
    gradient_groups: Positive = 4
    stall_timeout: PositiveFloat | None = 600.0


class Config(_Section):
    """The whole configuration, one attribute per section."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    generation: GenerationConfig = GenerationConfig()
    paths: PathsConfig = PathsConfig()
    distributed: DistributedConfig = DistributedConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts of numbers, strings, lists and None."""
        return self.model_dump(mode="json")

    def with_paths_in(self, folder: str | Path) -> Config:
        """Return a copy whose `paths`, where a run writes, are relative to a folder.

        Raises:
            UserError: No folder can have this name.
        """
        folder = user_path(folder, "--output_dir")
        paths = {key: str(folder / value) for key, value in self.paths.model_dump().items()}
        return self.model_copy(update={"paths": config_from_dict({"paths": paths}, "--output_dir").paths})

    def with_overrides(self, overrides: Mapping[str, Any], where: str = "override") -> Config:
        """Return a copy with dotted keys replaced.

        Args:
            overrides: Dotted key to value, for example `{"training.max_updates": 10}`.
                Strings are read as on the command line: a key that takes text takes it as it stands, or
                without quotes that enclose all of it; `null` where it may be null; a list if it is
                `[one, two]`. Other keys read YAML, so `"1e-4"` and `"true"` mean what they say.
            where: How an error message names the origin of these values.

        Raises:
            UserError: An unknown key or a value that is not allowed.
        """
        # Only what was said, so that a default never contradicts an override.
        values = self.model_dump(mode="json", exclude_unset=True)
        _apply_overrides(values, overrides, where)
        return config_from_dict(values, where)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read and check a YAML config.

    Args:
        path: The YAML file.
        overrides: Dotted keys that replace values of the file, as on the command line.

    Returns:
        The checked configuration; keys absent from the file have their defaults.

    Raises:
        UserError: The file is missing or no YAML, a key is unknown, or a value is not allowed.
            The one-line text names file, key, value and what would be accepted.
    """
    values = _read_yaml(user_path(path, "--config"))
    config = config_from_dict(values, str(path))
    return config.with_overrides(overrides, "command line") if overrides else config


def config_from_dict(values: Any, where: str) -> Config:
    """Check nested dicts, such as a checkpoint's `config`, and make a `Config` of them.

    Raises:
        UserError: A key is unknown or a value is not allowed; `where` names the origin.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error, where)) from None


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key given twice: YAML would take the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key_node.value}` stands there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = f"{DEFAULT_CONFIG} is the default one"
        if path == Path(DEFAULT_CONFIG):
            hint = "that is the default one; --config names another"
            if (OUR_CONFIGS / path.name).is_file():
                hint += f", those that come with the program lie in {OUR_CONFIGS}"
        raise UserError(f"{path}: no such config file; {hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; --config takes a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; a config is YAML in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        values = yaml.load(text, _UniqueKeys)
    except (
        Exception
    ) as error:  # a date of 31 February is a ValueError, lists in lists in lists a RecursionError
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {_yaml_problem(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: should hold sections such as `model:` and `training:`, not a {_kind(values)}"
        )
    # A section whose keys are all commented out reads as null; it means "the defaults".
    return {
        key: {} if value is None and key in Config.model_fields else value for key, value in values.items()
    }


def _apply_overrides(values: dict[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        if not key or "." in key:
            raise UserError(
                f"{where}: --{dotted}: an override names a section and a key, as --training.seed 7"
            )
        if section not in Config.model_fields:
            raise UserError(f"{where}: {dotted}: {_unknown(section, list(Config.model_fields), 'section')}")
        if isinstance(value, str):
            value = _read_value(value, dotted, where)
        values[section] = {**values.get(section, {}), key: value}


def _read_value(text: str, dotted: str, where: str) -> Any:
    """What a key's value is that was given as text."""
    section, _, key = dotted.partition(".")
    section_type = Config.model_fields[section].annotation
    assert isinstance(section_type, type) and issubclass(section_type, BaseModel)
    field = section_type.model_fields.get(key)
    kinds = _kinds(field.annotation) if field else set()
    if str not in kinds:
        try:
            return yaml.safe_load(text)
        except Exception:
            raise UserError(f"{where}: {dotted} = {_shorten(text)}: cannot be read as a YAML value") from None
    if text in ("", "null") and type(None) in kinds:
        return None
    if text[:1] in ('"', "'") or (text[:1] == "[" and list in kinds):
        try:
            value = yaml.load(text, yaml.BaseLoader)  # all that it reads stays text
        except Exception:
            return text  # `[12]*.txt`
        if isinstance(value, list) or (isinstance(value, str) and text[-1:] == text[:1]):
            return value
    return text


def _kinds(annotation: Any) -> set[Any]:
    """The types that a key takes, and those in its lists."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(parts[0])
    if origin in (Union, types.UnionType, list):
        return {origin}.union(*map(_kinds, parts))
    return {origin or annotation}


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "lists or sections in one another, too deep"
    if isinstance(error, yaml.YAMLError):
        return getattr(error, "problem", None) or "cannot be parsed"
    return f"a value cannot be read: {' '.join(str(error).split())[:100]}"


def _one_line(error: ValidationError, where: str) -> str:
    problems = error.errors()
    # An unknown key explains more than the errors that may follow from it.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # Unions add their branch to the location ("int", "str"): keep what the user wrote.
    location = [str(part) for part in problem["loc"][:2]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        fields = Config.model_fields
        if len(location) == 1:
            text = f"{key}: {_unknown(location[0], list(fields), 'section')}"
        else:
            section_type = fields[location[0]].annotation
            assert isinstance(section_type, type) and issubclass(section_type, BaseModel)
            text = f"{key}: {_unknown_key(location[1], section_type)}"
    else:
        message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
        value = "" if len(location) < 2 else f" = {_shorten(problem['input'])}"
        # A rule across keys names its keys and values itself, and belongs to a whole section.
        if problem["type"] in ("model_type", "model_attributes_type"):
            value, message = f" = {_shorten(problem['input'])}", "should be a section with keys of its own"
        text = f"{key}{value}: {message}"
    others = len({tuple(p["loc"][:2]) for p in problems}) - 1
    return f"{where}: {text}" + (f" (and {others} more)" if others else "")


def _unknown(name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    return f"no such {what}; {hint}"


def _unknown_key(name: str, section: type[BaseModel]) -> str:
    """Say what may have been meant; a key of another section was put into the wrong one."""
    elsewhere = [
        f"{place}.{name}"
        for place, field in Config.model_fields.items()
        if name in getattr(field.annotation, "model_fields", {})
    ]
    if elsewhere:
        return f"no such key; did you mean {' or '.join(elsewhere)}?"
    return _unknown(name, list(section.model_fields), "key")


# Of a few aliases in one another YAML makes a value whose whole `repr` would fill the memory.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxdict = 20
_SHORT.maxlevel = 3


def _shorten(value: Any, limit: int = 60) -> str:
    try:
        text = _SHORT.repr(value).replace("\n", " ")
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else type(value).__name__
