"""docs/recipes.md holds what benchmarks/recipes.py writes, and its arguments are a config's."""

from __future__ import annotations

import importlib

import pytest

from horovod_transformer.commands.command_line import parse_with_config
from horovod_transformer.commands.train import make_parser


@pytest.fixture
def recipes(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("recipes")


def test_the_document_has_the_tables_of_today(recipes):
    text = recipes.DOCUMENT.read_text(encoding="utf-8")
    assert text == recipes.with_tables(text), "run benchmarks/recipes.py"
    assert text.count("| 1.5B |") == 3


def test_the_arguments_of_a_size_make_it(recipes, root, capsys):
    for size in recipes.SIZES:
        assert recipes.main([size.name.lower()]) == 0
        words = capsys.readouterr().out.split()
        _, config = parse_with_config(make_parser(), ["--config", str(root / "configs/config.yaml"), *words])
        assert config.model == size.model
        assert config.training == size.training(1).model_copy(
            update={"global_batch_size": size.batch // size.context}
        )
    assert recipes.main(["2B"]) == 2 and "there are 15M, 30M" in capsys.readouterr().err


def test_every_size_fits_and_has_the_parameters_of_its_name(recipes):
    for size in recipes.SIZES:
        said = float(size.name[:-1]) * {"M": 1e6, "B": 1e9}[size.name[-1]]
        assert recipes.count_parameters(size.model) == pytest.approx(said, rel=0.04)
        memory = recipes.gpu_bytes(size.model, size.piece * size.context, True, size.memory)
        assert memory < recipes.SHARE_OF_MEMORY * size.memory
        for gpus in recipes.GPUS:
            assert size.batch % (size.training(gpus).per_gpu_batch_size * size.context * gpus) == 0


def test_124m_is_the_default_config(recipes, root):
    size = next(size for size in recipes.SIZES if size.name == "124M")
    _, config = parse_with_config(make_parser(), ["--config", str(root / "configs/config.yaml")])
    assert config.model == size.model
    for key in ("learning_rate", "global_batch_size", "per_gpu_batch_size"):
        assert getattr(config.training, key) == getattr(size.training(1), key)
