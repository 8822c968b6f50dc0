"""Hugging Face folders against `transformers` itself: the same logits, text and ids, there and back."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.export import huggingface
from horovod_transformer.export.huggingface import read_folder, write_folder
from horovod_transformer.export.tokenizers import read_tokenizer, tokenizer_json
from horovod_transformer.generation import continue_prompt, generate_text, load_model_for_generation
from horovod_transformer.model.transformer import build_model
from horovod_transformer.prepare.tokenizer_choice import chosen_tokenizer
from horovod_transformer.system.signals import handling
from horovod_transformer.tokenizer import gpt2_tokenizer
from tests.conftest import TINY, tiny_checkpoint_contents

transformers = pytest.importorskip("transformers")

ODD_TEXTS = [
    "",
    " ",
    "  two  spaces ",
    "tabs\tand\r\nline\n\n\n ends\n",
    "It's we'll I'D don’t 'tis",
    "12345 1,000.50 ½ ² ٣٤ Ⅷ",
    "né à Brême — “quoted” … ß ﬁ Å Å",
    "日本語のテキスト 한국어 العربية עברית ไทย",
    "🙂👩‍👩‍👧🏽 🇩🇪 \u200b\u200d\ufeff",
    "\u00a0\u2003\u3000\u2028x\u0085y",
    "\x00\x01\x7f \ufffd \U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa----------======",
]


@pytest.fixture(scope="module")
def exported(tiny_checkpoint, tmp_path_factory) -> Path:
    """The checkpoint that recites its book, exported by the command."""
    folder = tmp_path_factory.mktemp("export") / "new" / "tiny"
    arguments = ["export", "--checkpoint", str(tiny_checkpoint), "--to", str(folder)]
    assert run_command(_dispatch, arguments) == 0
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, exported) -> Path:
    """A GPT-2 that transformers made at random, with a tokenizer of ours."""
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=260, n_positions=48, n_embd=32, n_layer=2, n_head=4, n_inner=80, initializer_range=0.2
    )
    folder = tmp_path_factory.mktemp("theirs") / "gpt2"
    model = transformers.GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if "bias" in name or "ln_" in name:
            torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    model.save_pretrained(folder)
    shutil.copy(exported / "tokenizer.json", folder)
    return folder


def tokens_for(vocabulary: int, length: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (3, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def their_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits


# --- export


def test_the_same_logits(exported, tiny_checkpoint):
    model, _, _ = load_model_for_generation(tiny_checkpoint, device="cpu")
    tokens = tokens_for(260, 32)
    torch.testing.assert_close(their_logits(exported, tokens), model(tokens)[0], atol=1e-4, rtol=0)


def test_the_same_greedy_text(exported, tiny_checkpoint):
    model, tokenizer, _ = load_model_for_generation(tiny_checkpoint, device="cpu")
    their_model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for prompt in ("The sea", "so said", "né"):
        inputs = their_tokenizer(prompt, return_tensors="pt")
        output = their_model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
        text = their_tokenizer.decode(output, skip_special_tokens=True)
        assert text == generate_text(model, tokenizer, prompt, max_new_tokens=20, temperature=0)


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_the_same_ids_on_odd_text(kind, tiny_tokenizer, tmp_path):
    tokenizer = tiny_tokenizer if kind == "bpe" else gpt2_tokenizer()
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    library = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in ODD_TEXTS:
        ids = tokenizer.encode(text)
        assert library(text)["input_ids"] == ids, text
        assert library.decode(ids, clean_up_tokenization_spaces=False) == text
    # The one exception: there a text can spell the token, here it cannot.
    assert (
        library("<|endoftext|>")["input_ids"] == [tokenizer.eos_token_id] != tokenizer.encode("<|endoftext|>")
    )


def test_auto_classes_know_what_the_folder_is(exported, tiny_tokenizer):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for text in ODD_TEXTS:
        assert tokenizer(text)["input_ids"] == tiny_tokenizer.encode(text)
    assert tokenizer.eos_token_id == tiny_tokenizer.eos_token_id == 259
    defaults = transformers.GenerationConfig.from_pretrained(exported)
    assert (defaults.max_new_tokens, defaults.do_sample, defaults.eos_token_id) == (7, False, 259)
    config = transformers.AutoConfig.from_pretrained(exported)
    assert (config.model_type, config.n_positions, config.n_inner) == ("gpt2", 32, 64)
    modes = {path.stat().st_mode for path in exported.iterdir()}
    assert len(modes) == 1  # whoever may read one may read all


def test_the_card_says_what_is_known_and_leaves_the_rest_open(exported):
    card = (exported / "README.md").read_text()
    assert "# tiny\n" in card and "| parameters | 25,472 |" in card
    assert "to be filled in" in card and "The sea" in card
    assert "trained for" not in card  # this checkpoint was not trained by a run
    assert str(exported) not in card and "data_dir" not in card


def test_what_discourages_repetition_goes_along(tiny_checkpoint, tmp_path):
    model, tokenizer, config = load_model_for_generation(tiny_checkpoint, device="cpu")
    settings = config.generation.model_copy(update={"repetition_penalty": 1.7})
    write_folder(tmp_path / "to", model, config.model, settings, tokenizer, "")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "to").repetition_penalty == 1.7
    # The same formula: what they write with it is what we write.
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    their_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "to")
    inputs = library("The sea was calm", return_tensors="pt")
    theirs = library.decode(their_model.generate(**inputs, max_new_tokens=12)[0])
    settings = settings.model_copy(update={"max_new_tokens": 12, "num_samples": 1})
    (ours,) = continue_prompt(model, tokenizer, "The sea was calm", settings, seed=0)
    assert theirs.removesuffix("<|endoftext|>") == ours


def test_whole_or_absent(tiny_checkpoint, tmp_path, monkeypatch):
    model, tokenizer, config = load_model_for_generation(tiny_checkpoint, device="cpu")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "tokenizer_json", full)
    with pytest.raises(UserError, match=r"target: the disk \(or your quota\) is full; .* place \(--to\)$"):
        write_folder(tmp_path / "target", model, config.model, config.generation, tokenizer, "")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_written_are_one_line(tiny_checkpoint, tmp_path):
    model, tokenizer, config = load_model_for_generation(tiny_checkpoint, device="cpu")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with handling([signal.SIGXFSZ], signal.SIG_IGN):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file may be larger
        try:
            with pytest.raises(UserError, match=r"target: cannot be written: .*File too large.* \(--to\)$"):
                write_folder(tmp_path / "target", model, config.model, config.generation, tokenizer, "")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# --- import


def test_an_imported_model_computes_the_same(theirs):
    weights, config, tokenizer = read_folder(theirs)
    model = build_model(config.model).eval()
    model.load_state_dict(weights)
    assert config.model.positions == "learned" and tokenizer.vocab_size == 260
    tokens = tokens_for(260, 48)
    logits, _ = model(tokens)
    assert logits.std() > 0.5
    torch.testing.assert_close(their_logits(theirs, tokens), logits, atol=1e-4, rtol=0)


def test_there_and_back_gives_the_same_weights(theirs, exported, tiny_checkpoint, tmp_path):
    checkpoint, again = tmp_path / "imported.pt", tmp_path / "again"
    assert run_command(_dispatch, ["import", "--from", str(theirs), "--to", str(checkpoint)]) == 0
    assert run_command(_dispatch, ["export", "--checkpoint", str(checkpoint), "--to", str(again)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, again))
    before.pop("lm_head.weight", None)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    # And the other way round: what was exported, imported.
    weights, _, tokenizer = read_folder(exported)
    ours = load_checkpoint(tiny_checkpoint)["model"]
    assert all(torch.equal(weights[key], ours[key]) for key in ours)
    assert tokenizer.to_dict()["kind"] == "bpe"


def test_an_imported_checkpoint_writes_and_starts_a_run(theirs, tmp_path, capsys):
    checkpoint = tmp_path / "imported.pt"
    run_command(_dispatch, ["import", "--from", str(theirs), "--to", str(checkpoint)])
    assert "260 tokens (bpe)" in capsys.readouterr().out
    model, tokenizer, config = load_model_for_generation(checkpoint, device="cpu")
    assert len(tokenizer.encode(generate_text(model, tokenizer, "The sea", 60, seed=1))) > 20
    assert config.model.positions == "learned"


def test_a_run_from_it_has_to_have_its_positions(theirs):
    from horovod_transformer.training.resume import require_same_model

    model = read_folder(theirs)[1].model
    require_same_model(model, model, theirs)
    for change in ({"positions": "sinusoidal"}, {"max_seq_len": 32}):
        with pytest.raises(UserError, match=f"its model has {next(iter(change))} = "):
            require_same_model(model, model.model_copy(update=change), theirs)


def test_gpt2s_own_files(tmp_path, theirs):
    """vocab.json and merges.txt, as early repositories have them; names without `transformer.`, fp16."""
    tokenizer = json.loads(tokenizer_json(gpt2_tokenizer()))["model"]
    vocabulary = {**tokenizer["vocab"], "<|endoftext|>": 50256}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in tokenizer["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    config = transformers.GPT2Config(vocab_size=50257, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    config.save_pretrained(tmp_path)
    tensors = {k.removeprefix("transformer."): v.half() for k, v in model.transformer.state_dict().items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "model.safetensors")
    weights, ours, found = read_folder(tmp_path)
    assert found.kind == "gpt2" and ours.data.tokenizer == "gpt2"
    assert torch.equal(weights["token_embedding.weight"], model.transformer.wte.weight.half().float())
    assert len(weights) == 4 + 12


def test_weights_in_several_files(theirs, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shutil.copy(theirs / "tokenizer.json", tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    one, several = read_folder(theirs)[0], read_folder(tmp_path)[0]
    assert all(torch.equal(one[key], several[key]) for key in one)


def _config(**changes):
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))

    return change


def _weights(change):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def _truncate(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-200])


def _only_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "../secret"}}')


REFUSED = {
    "quantized": (
        _config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "has a quantization_config",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json: is not JSON",
    ),
    "another kind of model": (
        _config(model_type="mistral"),
        "model_type = 'mistral'; only gpt2, gpt_neox, llama, qwen3 can",
    ),
    "another activation": (_config(activation_function="relu"), "activation_function = 'relu'"),
    "another epsilon": (_config(layer_norm_epsilon=1e-6), "layer_norm_epsilon = 1e-06"),
    "untied": (_config(tie_word_embeddings=False), "tie_word_embeddings = False"),
    "another width": (_config(n_embd=64), "shape [260, 32], but config.json says [260, 64]"),
    "odd values": (_config(n_head="two"), "model.n_heads = 'two'"),
    "a billion layers": (_config(n_layer=10**9), "such a model of 1000000000 layers has"),
    "huge vocabulary": (_config(vocab_size=10**9), "config.json says [1000000000, 32]"),
    "small vocabulary": (_config(vocab_size=200), "its tokenizer has 260 tokens, its model only 200"),
    "a weight missing": (_weights(lambda t: t.pop("transformer.ln_f.bias")), "has 27 weights"),
    "a weight by another name": (
        _weights(lambda t: t.update(other=t.pop("transformer.ln_f.bias"))),
        "has no weight ln_f.bias",
    ),
    "a head of its own": (
        _weights(lambda t: t.update({"lm_head.weight": torch.zeros(260, 32)})),
        "lm_head.weight is not wte.weight",
    ),
    "a weight twice": (
        _weights(lambda t: t.update({"wte.weight": torch.zeros(260, 32)})),
        "is there already as",
    ),
    "no numbers": (
        _weights(lambda t: t["transformer.ln_f.bias"].fill_(torch.nan)),
        "ln_f.bias has NaN or numbers",
    ),
    "beyond float32": (
        _weights(
            lambda t: t.update({"transformer.ln_f.bias": torch.full((32,), 1e300, dtype=torch.float64)})
        ),
        "ln_f.bias has NaN or numbers beyond float32",
    ),
    "weights truncated": (_truncate("model.safetensors"), "not a readable safetensors file"),
    "weights are text": (
        lambda folder: (folder / "model.safetensors").write_text("weights"),
        "not a readable safetensors file",
    ),
    "only a pickle": (_only_a_pickle, "pytorch_model.bin is a pickle, which can run code"),
    "a file name that cannot be": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"wte.weight": "x" * 300}})
        ),
        "xxx: no such file; import reads weights from safetensors only",
    ),
    "files outside": (_outside, "names files outside of the folder"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "tokenizer truncated": (_truncate("tokenizer.json"), "tokenizer.json: is not a readable tokenizer"),
    "another kind of tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text(
            '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}'
        ),
        "tokenizer.json: is not",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_line(name, theirs, tmp_path, capfd):
    change, words = REFUSED[name]
    folder = tmp_path / "theirs"
    shutil.copytree(theirs, folder)
    change(folder)
    code = run_command(_dispatch, ["import", "--from", str(folder), "--to", str(tmp_path / "new.pt")])
    error = capfd.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert words in error
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_tokenizer_without_added_tokens_has_left_none_out(theirs, tmp_path):
    folder = Path(shutil.copytree(theirs, tmp_path / "theirs"))
    values = json.loads((folder / "tokenizer.json").read_text())
    del values["added_tokens"]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert run_command(_dispatch, ["import", "--from", str(folder), "--to", str(tmp_path / "new.pt")]) == 0


def test_a_name_that_is_not_utf_8_is_written_out_in_the_card(tiny_checkpoint, tmp_path):
    folder = tmp_path / "b\udcff\n#"
    assert run_command(_dispatch, ["export", "--checkpoint", str(tiny_checkpoint), "--to", str(folder)]) == 0
    assert "\n# b\\xff\\n#\n" in (folder / "README.md").read_text()


def _changed(**changes):
    return lambda contents: contents["progress"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _changed(update="x", tokens=5),
        _changed(update=5, tokens=None),
        _changed(best_validation_loss=[1]),
        _changed(identity=None),
        lambda contents: contents["config"].pop("training"),
        lambda contents: contents["config"].pop("generation"),
    ],
)
def test_a_checkpoint_of_which_little_is_known_is_exported(change, tiny_checkpoint, tmp_path):
    """A section of its config may be newer than the checkpoint; its progress is another's word."""
    contents = load_checkpoint(tiny_checkpoint)
    change(contents)
    save_checkpoint(tmp_path / "odd.pt", contents)
    arguments = ["export", "--checkpoint", str(tmp_path / "odd.pt"), "--to", str(tmp_path / "new")]
    assert run_command(_dispatch, arguments) == 0
    card = (tmp_path / "new" / "README.md").read_text()
    assert "updates," not in card and "best validation loss" not in card


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "--checkpoint", "nowhere.pt", "--to", "{w}/new"], "nowhere.pt: no such checkpoint"),
        (["export", "--checkpoint", "{w}/text.pt", "--to", "{w}/new"], "text.pt: is not a readable"),
        (["export", "--checkpoint", "{c}", "--to", "{w}"], "exists already"),
        (["export", "--checkpoint", "{c}", "--to", "/proc/none/new"], "/proc/none/new: cannot be written"),
        (["export", "--checkpoint", "{c}"], "required: --output"),
        (["export", "--checkpoint", "{c}", "--to", "{w}/new", "--model.d_ff", "3"], "exported as it is"),
        (["import", "--from", "{w}/nothing", "--to", "{w}/new.pt"], "nothing: no such folder"),
        (["import", "--from", "{w}/text.pt", "--to", "{w}/new.pt"], "text.pt: no such folder"),
        (["import", "--from", "{w}", "--to", "{w}/text.pt"], "text.pt: exists already"),
        (["import", "--from", "{w}", "--to", "{w}/new.pt"], "config.json: no such file"),
        (["import", "--from", "{t}", "--to", "{w}/text.pt/new.pt"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, tiny_checkpoint, theirs, capfd):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    places = {"{w}": str(tmp_path), "{c}": str(tiny_checkpoint), "{t}": str(theirs)}
    for mark, place in places.items():
        arguments = [word.replace(mark, place) for word in arguments]
    code = run_command(_dispatch, arguments)
    error = capfd.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert words in error
    assert [path.name for path in tmp_path.iterdir()] == ["text.pt"]


def test_a_padded_vocabulary_is_kept(tmp_path, tiny_tokenizer):
    shape = TINY.model_copy(update={"vocab_size": 288})
    config = config_from_dict({"model": shape.model_dump()}, "test")
    model = build_model(shape)
    save_checkpoint(tmp_path / "c.pt", tiny_checkpoint_contents(model, config, tiny_tokenizer))
    arguments = ["export", "--checkpoint", str(tmp_path / "c.pt"), "--to", str(tmp_path / "out")]
    assert run_command(_dispatch, arguments) == 0
    _, imported, tokenizer = read_folder(tmp_path / "out")
    assert (imported.model.vocab_size, tokenizer.vocab_size) == (288, 260)


def test_no_tokenizer_hands_the_model_more_than_it_should(exported):
    """What transformers 4 reads: there the class's own default has token_type_ids, too."""
    values = json.loads((exported / "tokenizer_config.json").read_text())
    assert values["model_input_names"] == ["input_ids", "attention_mask"]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(exported)
    assert set(tokenizer("The sea")) == {"input_ids", "attention_mask"}
    assert json.loads((exported / "config.json").read_text())["n_ctx"] == 32


def padded_gpt2(folder: Path, form: str, tokens: int = 1) -> None:
    """GPT-2's tokenizer with tokens added behind it, as `save_pretrained` leaves it."""
    values = json.loads(tokenizer_json(gpt2_tokenizer()))
    model = values["model"]
    model["vocab"]["<|endoftext|>"] = 50256
    names = [f"[PAD{n}]" for n in range(tokens)]
    more = {name: 50257 + n for n, name in enumerate(names)}
    folder.mkdir(exist_ok=True)
    if form == "tokenizer.json":
        like = values["added_tokens"][0]
        values["added_tokens"] += [{**like, "id": id_, "content": name} for name, id_ in more.items()]
        (folder / "tokenizer.json").write_text(json.dumps(values))
    elif form == "merges in one string":
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        (folder / "tokenizer.json").write_text(json.dumps(values))
    else:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        (folder / "added_tokens.json").write_text(json.dumps(more))


@pytest.mark.parametrize("form", ["tokenizer.json", "merges in one string", "vocab.json"])
def test_gpt2s_tokenizer_is_gpt2s_in_every_form(form, tmp_path):
    padded_gpt2(tmp_path, form, tokens=2)
    assert read_tokenizer(tmp_path).kind == "gpt2"
    # `--data.tokenizer` takes what `import` takes.
    assert chosen_tokenizer(str(tmp_path), 50257).kind == "gpt2"
    if form != "vocab.json":
        named = tmp_path / "mine.json"
        shutil.copy(tmp_path / "tokenizer.json", named)
        assert chosen_tokenizer(str(named), 50257).kind == "gpt2"


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
def test_import_names_the_tokens_it_leaves_out(form, tmp_path, capsys):
    padded_gpt2(tmp_path, form, tokens=7)
    config = transformers.GPT2Config(vocab_size=50264, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert run_command(_dispatch, ["import", "--from", str(tmp_path), "--to", str(tmp_path / "m.pt")]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    named = ", ".join(f"[PAD{n}]" for n in range(5))
    assert told == f"left out: {named} and others, which no text here is encoded with"
    if form == "vocab.json":
        (tmp_path / "added_tokens.json").write_text('["[PAD]"]')
        arguments = ["import", "--from", str(tmp_path), "--to", str(tmp_path / "n.pt")]
        assert run_command(_dispatch, arguments) == 2
        assert "added_tokens.json: cannot be read as names with their ids" in capsys.readouterr().err


def test_import_of_all_tokens_says_nothing_of_them(theirs, tmp_path, capsys):
    assert run_command(_dispatch, ["import", "--from", str(theirs), "--to", str(tmp_path / "m.pt")]) == 0
    assert "left out" not in capsys.readouterr().out


def test_export_says_what_it_is_at(tiny_checkpoint, tmp_path, capsys):
    run_command(_dispatch, ["export", "--checkpoint", str(tiny_checkpoint), "--to", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert told == "writing 2 samples for the model card, up to 7 tokens each\n"


def test_quantized_weights_are_refused_whatever_says_so(theirs, tmp_path, capfd):
    key = "transformer.h.1.mlp.c_fc.weight"
    float8 = {"float8_e4m3fn": torch.float8_e4m3fn}
    for name, dtype in {"int8": torch.int8, "uint8": torch.uint8, "int32": torch.int32, **float8}.items():
        folder = tmp_path / name
        shutil.copytree(theirs, folder)
        _weights(lambda t, dtype=dtype: t.update({key: t[key].to(dtype)}))(folder)
        with pytest.raises(UserError, match=rf"mlp\.c_fc\.weight is stored as {name}; quantized weights"):
            read_folder(folder)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        folder = tmp_path / str(dtype)
        shutil.copytree(theirs, folder)
        _weights(lambda t, dtype=dtype: t.update({key: t[key].to(dtype)}))(folder)
        assert read_folder(folder)[0]["blocks.1.feed_forward.expand.weight"].dtype == torch.float32


KILLED = """
import os, signal, sys
from horovod_transformer.export import huggingface
huggingface._their_generation = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from horovod_transformer.export.checkpoints import export_checkpoint
export_checkpoint(*sys.argv[1:])
"""


def test_what_a_killed_export_left_is_cleared_by_the_next(tiny_checkpoint, tmp_path, run_python):
    target = tmp_path / "exported"
    killed = run_python("-c", KILLED, str(tiny_checkpoint), str(target))
    assert killed.returncode == -9, killed.stderr
    assert any(".unfinished-" in path.name for path in tmp_path.iterdir())
    command = [
        "-m",
        "horovod_transformer",
        "export",
        "--checkpoint",
        str(tiny_checkpoint),
        "--to",
        str(target),
    ]
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    assert "removed, an earlier try was cut short" in done.stdout
    assert list(tmp_path.iterdir()) == [target]
