"""Hugging Face GPT-2 folders: what `transformers`, vLLM and others load, written and read.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json

Every weight is a copy or a transpose: GPT-2 stores its linear layers as (in, out). A fixed
sinusoidal position table becomes GPT-2's learned one, `wpe`, as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from horovod_transformer.config import Config, config_from_dict
from horovod_transformer.config_sections import GenerationConfig, ModelConfig
from horovod_transformer.errors import UserError
from horovod_transformer.export.tokenizers import read_tokenizer, tokenizer_json
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.model.weights import empty_model
from horovod_transformer.system.console import tell
from horovod_transformer.system.folders import clear_leftovers, lock_for, new_folder
from horovod_transformer.tokenizer import END_OF_TEXT, Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Theirs -> ours, within a block; the linear layers are transposed.
_BLOCK_NAMES = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.output",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.expand",
    "mlp.c_proj": "feed_forward.output",
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NORM_EPSILON = 1e-5  # torch's default for LayerNorm, and GPT-2's
# The same function under two names, ours.
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
# What would make another computation of the same weights: key -> the only value we compute.
_REQUIRED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": _NORM_EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def write_folder(
    folder: Path,
    model: TransformerLM,
    shape: ModelConfig,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    card: str,
) -> None:
    """Write a model as a Hugging Face GPT-2 folder: whole, or not at all; clears what a killed try has left.

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
        raise UserError(f"--to {target}: exists already; name another place, or remove it")


def _write_files(
    folder: Path,
    model: TransformerLM,
    shape: ModelConfig,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    card: str,
) -> None:
    ours = {**model.state_dict(), "position_embedding.weight": model.position_vectors}
    tensors = {
        f"transformer.{theirs}": _oriented(ours[name], name).detach().cpu().contiguous()
        for theirs, name in _names(len(model.blocks)).items()
    }
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # it makes these of what the system says, a full disk for example
        raise OSError(str(error)) from None
    files = {
        "config.json": _their_config(shape, tokenizer),
        "generation_config.json": _their_generation(generation, tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "model_max_length": model.max_seq_len,
            "clean_up_tokenization_spaces": False,
            # Else transformers 4 hands the model token_type_ids, for which GPT-2 adds wte[0] everywhere.
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
    """Read a Hugging Face GPT-2 folder, ours or another's.

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
    config = _our_config(_read_json(folder / "config.json"), folder / "config.json")
    tokenizer = read_tokenizer(folder)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model only "
            f"{config.model.vocab_size}; they do not belong together"
        )
    kind = "gpt2" if tokenizer.kind == "gpt2" else "bpe"
    data = config.data.model_copy(update={"tokenizer": kind})
    return _read_weights(folder, config.model), config.model_copy(update={"data": data}), tokenizer


def _names(layers: int) -> dict[str, str]:
    """Name of every weight: theirs, without `transformer.`, to ours."""
    names = {
        "wte.weight": "token_embedding.weight",
        "wpe.weight": "position_embedding.weight",
        "ln_f.weight": "final_norm.weight",
        "ln_f.bias": "final_norm.bias",
    }
    for layer in range(layers):
        for theirs, ours in _BLOCK_NAMES.items():
            for part in ("weight", "bias"):
                names[f"h.{layer}.{theirs}.{part}"] = f"blocks.{layer}.{ours}.{part}"
    return names


def _oriented(tensor: Tensor, name: str) -> Tensor:
    """Turn a weight from our orientation into theirs, or back: linear layers are transposed."""
    return tensor.t() if name.startswith("blocks.") and tensor.dim() == 2 else tensor


def _their_config(shape: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        **_REQUIRED,
        "activation_function": _ACTIVATIONS[0],
        "vocab_size": shape.vocab_size,
        "n_positions": shape.max_seq_len,
        "n_ctx": shape.max_seq_len,  # the same by its old name, which llama.cpp reads
        "n_embd": shape.d_model,
        "n_layer": shape.n_layers,
        "n_head": shape.n_heads,
        "n_inner": shape.d_ff,
        "attn_pdrop": shape.dropout,
        "embd_pdrop": shape.dropout,
        "resid_pdrop": shape.dropout,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float32",
    }


def _their_generation(settings: GenerationConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    values: dict[str, Any] = {
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
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


def _our_config(values: dict[str, Any], path: Path) -> Config:
    for key, wanted in _REQUIRED.items():
        # What a GPT-2 config leaves out has GPT-2's own value; only the type must be said.
        actual = values.get(key, None if key == "model_type" else wanted)
        if actual != wanted:
            raise UserError(f"{path}: {key} = {actual!r}; only GPT-2 models with {wanted!r} can be imported")
    if values.get("quantization_config") is not None:
        raise UserError(
            f"{path}: has a quantization_config; quantized weights cannot be imported, save the "
            "model without it"
        )
    activation = values.get("activation_function", _ACTIVATIONS[0])
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{path}: activation_function = {activation!r}; this model computes {' or '.join(_ACTIVATIONS)}"
        )
    width = values.get("n_embd", 768)
    inner = values.get("n_inner")
    shape = {
        "vocab_size": values.get("vocab_size", 50257),
        "d_model": width,
        "n_layers": values.get("n_layer", 12),
        "n_heads": values.get("n_head", 12),
        "d_ff": 4 * width if inner is None and isinstance(width, int) else inner,
        "max_seq_len": values.get("n_positions", 1024),
        "dropout": values.get("resid_pdrop", 0.1),
        "positions": "learned",
    }
    return config_from_dict({"model": shape}, str(path))


def _read_weights(folder: Path, shape: ModelConfig) -> dict[str, Tensor]:
    found = _open_tensors(folder)
    # Before a model of the stated size is laid out: it may be stated as a billion layers.
    wanted = 4 + 12 * shape.n_layers
    if len(found) != wanted:
        raise UserError(
            f"{folder}: has {len(found)} weights; a GPT-2 of {shape.n_layers} layers has {wanted}"
        )
    expected = empty_model(shape).state_dict()
    weights = {}
    for theirs, name in _names(shape.n_layers).items():
        if theirs not in found:
            raise UserError(f"{folder}: has no weight {theirs}; it is no GPT-2, or damaged")
        file, key = found[theirs]
        size = list(_oriented(expected[name], name).shape)
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
        weights[name] = _oriented(tensor.float(), name).contiguous()
    return weights


def _open_tensors(folder: Path) -> dict[str, tuple[Path, str]]:
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
        if not file.is_file():
            pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
            hint = f" ({pickled[0]} is a pickle, which can run code; it is not read)" if pickled else ""
            raise UserError(f"{file}: no such file; import reads weights from safetensors only{hint}")
        try:
            with safe_open(file, "pt") as opened:
                keys = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: is not a readable safetensors file: {error}") from None
        for key in keys:
            name = key.removeprefix("transformer.")
            if name == "lm_head.weight":
                head = (file, key)
            elif not name.endswith((".attn.bias", ".attn.masked_bias")):
                found[name] = (file, key)
    embedding = found.get("wte.weight")
    if head and embedding and not torch.equal(_tensor(*head), _tensor(*embedding)):
        raise UserError(f"{head[0]}: lm_head.weight is not wte.weight; this model's two are one")
    return found


def _tensor(file: Path, key: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(key)
