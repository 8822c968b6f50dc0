"""Hugging Face folders: what `transformers`, vLLM and others load, written and read.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json

A model of Llama's architecture is a Llama or a Qwen3 there (`llama.py`); else one with rotary positions is a
GPT-NeoX (`gpt_neox.py`), and any other a GPT-2 (`gpt2.py`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from horovod_transformer.config import Config, config_from_dict
from horovod_transformer.config_sections import GenerationConfig, ModelConfig
from horovod_transformer.errors import UserError
from horovod_transformer.export import gpt2, gpt_neox, llama
from horovod_transformer.export.tokenizers import read_tokenizer, tokenizer_json
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.model.weights import empty_model
from horovod_transformer.system.console import tell
from horovod_transformer.system.folders import clear_leftovers, lock_for, new_folder
from horovod_transformer.tokenizer import END_OF_TEXT, Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Form(Protocol):
    """How one of their classes stores our model: a module such as `gpt2`."""

    PREFIX: str
    EMBEDDING: str
    OUTPUT_PROJECTION: str
    BUFFERS: tuple[str, ...]

    def names(self, shape: ModelConfig) -> dict[str, tuple[str, slice]]: ...

    def their_weight(self, tensor: Tensor, name: str, shape: ModelConfig) -> Tensor: ...

    def our_weight(self, tensor: Tensor, name: str, shape: ModelConfig) -> Tensor: ...

    def their_config(self, shape: ModelConfig) -> dict[str, Any]: ...

    def our_shape(self, values: dict[str, Any], path: Path) -> dict[str, Any]: ...


# By their `model_type`.
FORMS: dict[str, Form] = {"gpt2": gpt2, "gpt_neox": gpt_neox, "llama": llama, "qwen3": llama}


def form_of(shape: ModelConfig) -> Form:
    """How a model of ours is stored: architecture and positions decide."""
    if shape.architecture == "llama":
        return llama
    return gpt_neox if shape.positions == "rotary" else gpt2


def write_folder(
    folder: Path,
    model: TransformerLM,
    shape: ModelConfig,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    card: str,
) -> None:
    """Write a model as a Hugging Face folder: whole, or not at all; clears what a killed try has left.

    Args:
        folder: Must not exist yet.
        model: Its weights, float32 as they are.
        shape: What it was built from.
        generation: Defaults for sampling.
        tokenizer: Its own.
        card: README.md.

    Raises:
        UserError: The folder exists, is being made by another process, or cannot be written.
    """
    require_absent(folder)
    with lock_for(folder, "--to", tell) as lock:
        clear_leftovers(folder, "--to", tell)
        with new_folder(folder, "--to", check=lock.require) as unfinished:
            _write_files(unfinished, model, shape, generation, tokenizer, card)


def require_absent(target: Path) -> None:
    """Refuse to write over what is there.

    Raises:
        UserError: Something is.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"--output {target}: exists already; name another place, or remove it")


def _write_files(
    folder: Path,
    model: TransformerLM,
    shape: ModelConfig,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    card: str,
) -> None:
    form, ours = form_of(shape), model.state_dict()
    config = form.their_config(shape)
    if model.position_vectors is not None:
        ours["position_embedding.weight"] = model.position_vectors
    tensors = {
        _full_name(form, theirs): form.their_weight(ours[name][rows], theirs, shape)
        .detach()
        .cpu()
        .contiguous()
        for theirs, (name, rows) in form.names(shape).items()
    }
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # it makes these of what the system says, a full disk for example
        raise OSError(str(error)) from None
    files = {
        "config.json": {**config, **_special_tokens(tokenizer), "dtype": "float32"},
        "generation_config.json": _their_generation(generation, tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "model_max_length": model.max_seq_len,
            "clean_up_tokenization_spaces": False,
            # Else transformers 4 hands the model token_type_ids: GPT-2 adds wte[0] everywhere for them, and
            # GPT-NeoX refuses them.
            "model_input_names": ["input_ids", "attention_mask"],
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    # safetensors makes its file for the owner's eyes only.
    (folder / WEIGHTS).chmod((folder / "README.md").stat().st_mode)


def read_folder(folder: str | Path) -> tuple[dict[str, Tensor], Config, Tokenizer]:
    """Read a Hugging Face folder of a GPT-2, GPT-NeoX, Llama or Qwen3, ours or another's.

    Nothing in it can run: weights come from safetensors only, the rest is JSON.

    Args:
        folder: With `config.json`, `model.safetensors` (in one piece or several) and a tokenizer:
            `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Returns:
        A state dict for the model of the config, float32; the config; the tokenizer.

    Raises:
        UserError: Something is missing or damaged, or the model is none that we compute.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --from takes a folder with config.json in it")
    form, config = _our_config(_read_json(folder / "config.json"), folder / "config.json")
    tokenizer = read_tokenizer(folder)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model only "
            f"{config.model.vocab_size}; they do not belong together"
        )
    kind = "gpt2" if tokenizer.kind == "gpt2" else "bpe"
    data = config.data.model_copy(update={"tokenizer": kind})
    return _read_weights(folder, form, config.model), config.model_copy(update={"data": data}), tokenizer


def _full_name(form: Form, name: str) -> str:
    """The name of one of their weights in a file: an output projection has no prefix."""
    return name if name == form.OUTPUT_PROJECTION else form.PREFIX + name


def _count(form: Form, shape: ModelConfig) -> int:
    """How many weights they have, without naming all: it may be stated as a billion layers."""
    one, two = (len(form.names(shape.model_copy(update={"n_layers": layers}))) for layers in (1, 2))
    return one + (two - one) * (shape.n_layers - 1)


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}


def _their_generation(settings: GenerationConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    values: dict[str, Any] = {
        **_special_tokens(tokenizer),
        "pad_token_id": tokenizer.eos_token_id,
        "max_new_tokens": settings.max_new_tokens,
        "do_sample": settings.temperature > 0,
    }
    if settings.temperature > 0:
        values |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    if settings.repetition_penalty != 1:
        values["repetition_penalty"] = settings.repetition_penalty
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a Hugging Face model folder has one") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not JSON; the folder is damaged or incomplete") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold keys and values")
    return values


def _our_config(values: dict[str, Any], path: Path) -> tuple[Form, Config]:
    kind = values.get("model_type")
    form = FORMS.get(kind) if isinstance(kind, str) else None
    if form is None:
        raise UserError(f"{path}: model_type = {kind!r}; only {', '.join(FORMS)} can be imported")
    if values.get("quantization_config") is not None:
        raise UserError(
            f"{path}: has a quantization_config; quantized weights cannot be imported, save the "
            "model without it"
        )
    return form, config_from_dict({"model": form.our_shape(values, path)}, str(path))


def _read_weights(folder: Path, form: Form, shape: ModelConfig) -> dict[str, Tensor]:
    found = _open_tensors(folder, form, shape)
    wanted = _count(form, shape)
    if len(found) != wanted:
        raise UserError(
            f"{folder}: has {len(found)} weights; such a model of {shape.n_layers} layers has {wanted}"
        )
    expected = empty_model(shape).state_dict()
    pieces: dict[str, list[Tensor]] = {}
    for theirs, (name, rows) in form.names(shape).items():
        if theirs not in found:
            raise UserError(f"{folder}: has no weight {theirs}, which its kind of model has; it is damaged")
        file, key = found[theirs]
        size = list(form.their_weight(expected[name][rows], theirs, shape).shape)
        with safe_open(file, "pt") as opened:
            actual = opened.get_slice(key).get_shape()
            if actual != size:
                raise UserError(f"{file}: {theirs} has shape {actual}, but config.json says {size}")
            tensor = opened.get_tensor(key)
        if tensor.dtype not in _DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{file}: {theirs} is stored as {kind}; quantized weights cannot be imported, only "
                "floats of 16 bits or more"
            )
        tensor = tensor.float()
        if not torch.stack(tensor.aminmax()).isfinite().all():
            raise UserError(
                f"{file}: {theirs} has NaN or numbers beyond float32; no text can be written with it"
            )
        pieces.setdefault(name, []).append(form.our_weight(tensor, theirs, shape))
        if sum(map(len, pieces[name])) == len(expected[name]):  # whole: nothing is kept twice
            pieces[name] = [torch.cat(pieces[name]) if rows != slice(None) else pieces[name][0].contiguous()]
    return {name: whole for name, (whole,) in pieces.items()}


def _open_tensors(folder: Path, form: Form, shape: ModelConfig) -> dict[str, tuple[Path, str]]:
    """Where each weight lies: short name -> file and full name; buffers that hold no weight left out."""
    if (folder / INDEX).is_file():
        listed = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise UserError(f"{folder / INDEX}: has no weight_map; the folder is damaged")
        files = sorted(set(listed.values()))
        if any(Path(name).name != name for name in files):
            raise UserError(f"{folder / INDEX}: names files outside of the folder")
    else:
        files = [WEIGHTS]
    found: dict[str, tuple[Path, str]] = {}
    head: tuple[Path, str] | None = None
    for file in (folder / name for name in files):
        if not os.path.isfile(file):  # other than Path's, it takes a name that no file can have
            pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
            hint = f" ({pickled[0]} is a pickle, which can run code; it is not read)" if pickled else ""
            raise UserError(f"{file}: no such file; import reads weights from safetensors only{hint}")
        try:
            with safe_open(file, "pt") as opened:
                keys = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: is not a readable safetensors file: {error}") from None
        for key in keys:
            name = key.removeprefix(form.PREFIX)
            if name == form.OUTPUT_PROJECTION and shape.tie_embeddings:
                head = (file, key)
            elif not name.endswith(form.BUFFERS):
                if name in found:
                    raise UserError(f"{file}: {key} is there already as {found[name][1]} in {found[name][0]}")
                found[name] = (file, key)
    embedding = found.get(form.EMBEDDING)
    if head and embedding and not torch.equal(_tensor(*head), _tensor(*embedding)):
        raise UserError(
            f"{head[0]}: {form.OUTPUT_PROJECTION} is not {form.EMBEDDING}; in this model the two are one"
        )
    return found


def _tensor(file: Path, key: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(key)
