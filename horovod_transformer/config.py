"""The configuration: read from YAML and the command line, checked before anything runs.

    config = load_config("configs/config.yaml", {"training.learning_rate": "1e-4"})
    config.model.d_model        # 768
    config.to_dict()["model"]   # {"vocab_size": 50257, ...}

Every key has a default, so a file need only name what it changes. The comments in
`configs/config.yaml` explain each key.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from horovod_transformer.config_sections import (
    DataConfig,
    DistributedConfig,
    GenerationConfig,
    ModelConfig,
    PathsConfig,
    Section,
    TrainingConfig,
)
from horovod_transformer.errors import UserError, no_such
from horovod_transformer.system.files import read_at_most
from horovod_transformer.system.paths import DEFAULT_CONFIG, user_path
from horovod_transformer.system.yaml_text import read_yaml

_LARGEST_FILE = 1 << 20
# In a clone, and so wherever the package is installed from one.
OUR_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Config(Section):
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
        checked = config_from_dict({"paths": {"output_dir": str(folder)}}, "--output_dir")
        paths = self.paths.model_copy(update={"output_dir": checked.paths.output_dir})
        return self.model_copy(update={"paths": paths})

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
    values = read_config_file(path)
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


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read what a config file says, unchecked but for being sections.

    Raises:
        UserError: It is missing, or no YAML with sections.
    """
    if not str(path):
        raise UserError(f"--config: should name a YAML file; {DEFAULT_CONFIG} is the default one")
    path = user_path(path, "--config")
    try:
        with open(path, "rb") as file:
            text = read_at_most(file, _LARGEST_FILE).decode("utf-8")
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
        values = read_yaml(text)
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
            raise UserError(f"{where}: {dotted}: {no_such('section', section, Config.model_fields)}")
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
            return read_yaml(text)
        except Exception as error:
            why = _yaml_problem(error)
            raise UserError(
                f"{where}: {dotted} = {_shorten(text)}: cannot be read as a YAML value: {why}"
            ) from None
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
    location, section = _place(problem["loc"])
    key = ".".join(location)
    if problem["type"] == "extra_forbidden" and section is Config:
        text = f"{key}: {no_such('section', location[0], Config.model_fields)}"
    elif problem["type"] == "extra_forbidden":
        text = f"{key}: {_unknown_key(location[-1], section)}"
    elif problem["type"] == "missing":
        text = f"{key}: is missing"
    else:
        message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
        # A rule across keys names its keys and values itself, and belongs to a whole section.
        whole = len(location) < 2 or (problem["type"] == "value_error" and isinstance(problem["input"], dict))
        value = "" if whole else f" = {_shorten(problem['input'])}"
        if problem["type"] in ("model_type", "model_attributes_type"):
            value, message = f" = {_shorten(problem['input'])}", "should be a section with keys of its own"
        text = f"{key}{value}: {message}"
    others = len({tuple(p["loc"][:2]) for p in problems}) - 1
    return f"{where}: {text}" + (f" (and {others} more)" if others else "")


def _place(location: tuple[Any, ...]) -> tuple[list[str], type[BaseModel]]:
    """The keys that lead to a problem, and the section that the last of them is in."""
    names: list[str] = []
    section: type[BaseModel] = Config
    inner: type[BaseModel] | None = Config
    for part in location:
        if inner is None:
            break
        names.append(str(part))
        section, field = inner, inner.model_fields.get(str(part))
        kinds = _kinds(field.annotation) if field else set()
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return names, section


def _unknown_key(name: str, section: type[BaseModel]) -> str:
    """Say what may have been meant; a key of another section was put into the wrong one."""
    elsewhere = [
        f"{place}.{name}"
        for place, field in Config.model_fields.items()
        if name in getattr(field.annotation, "model_fields", {})
    ]
    if elsewhere:
        return f"no such key; did you mean {' or '.join(elsewhere)}?"
    return no_such("key", name, section.model_fields)


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
