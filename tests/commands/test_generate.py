"""`python -m src.generate`: what it prints, what its options change, and mistakes."""

from __future__ import annotations

import pytest

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.generate import main

BOOK = "The sea was calm — so said the captain, né à Brême."


def test_the_documented_command(run_python, tiny_checkpoint, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("generation: {temperature: 0, max_new_tokens: 2}\n")
    done = run_python(
        *("-m", "src.generate", "--checkpoint", f"{tiny_checkpoint}", "--config", f"{file}"),
        *("--prompt", "The sea", "--max_new_tokens", "100"),
    )
    assert (done.returncode, done.stdout) == (0, BOOK + "\n")
    speed, following = done.stderr.splitlines()
    assert "tokens/s on cpu" in speed and following == "next: horovod-transformer evaluate"


def run_here(capsys, *arguments: str) -> tuple[int, str, str]:
    """The command without the seconds that a new process takes."""
    code = run_command(main, list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_checkpoint_brings_the_settings_and_options_change_them(capsys, tiny_checkpoint):
    stored = ("--checkpoint", f"{tiny_checkpoint}", "--prompt", "The sea", "--device", "cpu")
    code, out, err = run_here(capsys, *stored)
    first, second = out.removesuffix("\n").split("\n" + "-" * 40 + "\n")
    assert code == 0 and first == second and BOOK.startswith(first) and first != BOOK
    assert err.startswith("14 tokens in ")
    assert run_here(capsys, *stored, "--num_samples", "1")[1] == first + "\n"
    assert run_here(capsys, *stored, "--generation.num_samples", "1")[1] == first + "\n"

    hot = (*stored, "--temperature", "3", "--top_k=0", "--top_p", "1", "--max_new_tokens", "20")
    texts = [run_here(capsys, *hot, "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.slow
def test_prompts_from_files_and_stdin(capsys, run_python, tiny_checkpoint, tmp_path):
    options = ("--checkpoint", f"{tiny_checkpoint}", "--num_samples", "1", "--max_new_tokens", "99")
    file = tmp_path / "prompt.txt"
    file.write_text("The sea was calm — so\n", encoding="utf-8")
    assert run_here(capsys, *options, "--prompt_file", f"{file}")[1] == BOOK + "\n"
    done = run_python("-m", "src.generate", *options, "--prompt_file", "-", input="The sea\n")
    assert (done.returncode, done.stdout) == (0, BOOK + "\n")
    done = run_python("-m", "src.generate", *options, "--interactive", input="The sea\n")
    assert done.returncode == 0 and BOOK in done.stdout
    file.write_bytes("\ufeffThe sea was calm — so\r\n".encode())  # as Windows writes it
    assert run_here(capsys, *options, "--prompt_file", f"{file}")[1] == BOOK + "\n"
    assert run_here(capsys, *options)[1] == BOOK + "\n"  # no prompt: a new book
    file.write_bytes(b"\xff\xfe")
    assert run_here(capsys, *options, "--prompt_file", f"{file}")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere.pt"], "nowhere.pt: no such checkpoint file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["--config", "configs/config.yaml"], "model.d_ff = 3072, but"),
        (["--top_p", "2"], "generation.top_p = 2: should be less than or equal to 1"),
        (["--max_new_tokens", "many"], "generation.max_new_tokens = 'many': should be a valid integer"),
        (["--temperature", "-1"], "generation.temperature = -1: should be greater"),
        (["--generation.top_q", "1"], "generation.top_q: no such key; did you mean top_p?"),
        (["--seed", "x"], "--seed x: should be a whole number"),
        (["--seed", "-5"], "--seed -5: should be a whole number from 0"),
        (["--model.n_layers", "3"], "--model.n_layers: a checkpoint's model is as it was trained"),
        (["--prompt_file", "nowhere.txt"], "--prompt_file nowhere.txt: cannot be read: No such file"),
        (["--device", "tpu"], "device: should be cpu, cuda or cuda:N, not tpu"),
        (["--wat"], "unknown argument --wat"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(capsys, root, monkeypatch, tiny_checkpoint, arguments, message):
    monkeypatch.chdir(root)
    code, out, err = run_here(capsys, "--checkpoint", f"{tiny_checkpoint}", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_character(run_python, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    done = run_python(
        "-m",
        "src.generate",
        "--checkpoint",
        f"{tiny_checkpoint}",
        "--max_new_tokens",
        "20",
        encoding="latin-1",
    )
    assert done.returncode == 0 and "The sea was calm ? so" in done.stdout


def test_a_second_prompt_is_not_lost_in_silence(capsys, tiny_checkpoint):
    code, out, err = run_here(capsys, "--checkpoint", f"{tiny_checkpoint}", "--prompt", "a", "--prompt", "b")
    assert (code, out) == (2, "")
    assert err == "error: --prompt is given twice; --prompts FILE continues many\n"
