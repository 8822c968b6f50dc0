"""`training.compile`: the same curve, few compilations, dropout and gradient checkpointing included."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
import yaml

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.config import config_from_dict
from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.errors import UserError
from horovod_transformer.model import compilation
from horovod_transformer.model.compilation import choose_compile, compile_for_fixed_shapes, why_not
from horovod_transformer.model.transformer import build_model
from horovod_transformer.system.signals import StopRequest
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep
from tests.conftest import ROOT, TINY, TINY_LLAMA
from tests.distributed.conftest import Job, make_config, write_corpus

CPU = torch.device("cpu")
BLOCKS = torch.randint(0, TINY.vocab_size, (6, 16), generator=torch.Generator().manual_seed(1))


def make_step(compiled, precision="fp32", **shape):
    torch.manual_seed(0)
    base = TINY_LLAMA if shape.get("architecture") == "llama" else TINY
    model = build_model(base.model_copy(update=shape)).train()
    if compiled:
        model.compile_layers()
    training = TrainingConfig(learning_rate=0.01)
    # Micro-batches of 4 and 2 blocks.
    plan = BatchPlan(6, 16, 0, 6, 4, 1, 100, 7)
    optimizer = build_optimizer(model, training)
    return UpdateStep(model, optimizer, plan, CPU, precision, 1.0, shape.get("dropout", 0) > 0)


def run(step, updates):
    batches = []
    for update in updates:
        for number in range(step.plan.micro_batches):
            rows = step.plan.block_indices(step.plan.micro_batch(update, 0, number))
            batches.append({"input_ids": BLOCKS[rows], "labels": BLOCKS[rows]})
    stream = iter(batches)
    return [step.run(update, stream, 0.01) for update in updates]


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("shape", [{}, {"positions": "rotary"}, {"architecture": "llama"}], ids=str)
def test_the_curve_is_eagers_and_nothing_is_compiled_twice(shape):
    eager, step = (make_step(compiled, **shape) for compiled in (False, True))
    expected = run(eager, range(8))
    results = run(step, range(2))
    with torch.no_grad():  # a validation
        step.model.eval().loss_sums(BLOCKS, BLOCKS)
        step.model.train()
    with torch.compiler.set_stance("fail_on_recompile"):
        results += run(step, range(2, 8))
    assert [r.loss for r in results] == pytest.approx([r.loss for r in expected], abs=1e-5)
    assert [r.gradient_norm for r in results] == pytest.approx([r.gradient_norm for r in expected], rel=1e-4)
    assert [r.accuracy for r in results] == [r.accuracy for r in expected]
    assert step.model.state_dict().keys() == eager.model.state_dict().keys()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dropout_and_checkpointing_change_nothing_but_memory(precision):
    shape = {"dropout": 0.2, "positions": "rotary" if precision == "fp16" else "sinusoidal"}
    plain = make_step(True, precision, **shape)
    checkpointing = make_step(True, precision, **shape, gradient_checkpointing=True)
    curves = [[r.loss for r in run(step, range(3))] for step in (plain, checkpointing)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0] == [r.loss for r in run(make_step(True, precision, **shape), range(3))]
    # Dropout is there, and the scale of fp16, which changes, costs no compilation.
    assert (
        abs(curves[0][0] - run(make_step(True, precision, positions=shape["positions"]), [0])[0].loss) > 1e-4
    )
    with torch.compiler.set_stance("fail_on_recompile"):
        plain.loss_scale.factor /= 2
        run(plain, [3])


@needs_compiler
def test_text_is_written_without_compiling():
    model = make_step(True).model
    with torch.compiler.set_stance("fail_on_recompile"):
        assert model.generate(BLOCKS[:1, :3], 5).shape == (1, 8)


def test_compilers_outlive_a_stop_signal_in_both_passes():
    from torch._dynamo.backends.common import aot_autograd  # they take seconds
    from torch._functorch.aot_autograd import make_boxed_func

    compile_for_fixed_shapes(torch.sin)
    outcomes = []

    def compiler(graph, inputs):
        # In place of g++: it signals itself, as Slurm would signal it.
        outcomes.append(subprocess.run(["sh", "-c", "kill -TERM $$; kill -USR1 $$; echo lives"]).returncode)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(lambda x: x.sin().exp(), backend=aot_autograd(fw_compiler=compiler))
    x = torch.ones(3, requires_grad=True)
    with StopRequest() as stop:
        y = compiled(x)
        assert outcomes == [0]  # torch leaves the backward pass for later
        y.sum().backward()
        assert outcomes == [0, 0]
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"


# Not a shell script: some shells let through what was held back when they started.
SLOW_COMPILER = """#!{python} -IS
import os, sys, time
if any(".main.cpp" in word for word in sys.argv):
    open(f"{marks}/{{os.getpid()}}", "w").close()
    time.sleep(1)
os.execvp("g++", ["g++", *sys.argv[1:]])
"""


@needs_compiler
@pytest.mark.more
def test_a_signal_while_torch_compiles_ends_the_run_with_a_checkpoint(tmp_path):
    """All processes of the run are signalled while g++ is at work for the first time on the model's code."""
    compiler, marks = tmp_path / "slow-g++", tmp_path / "marks"
    marks.mkdir()
    compiler.write_text(SLOW_COMPILER.format(python=sys.executable, marks=str(marks)))
    compiler.chmod(0o755)
    changes = {"compile": "on", "global_batch_size": 4, "max_updates": 5000, "epochs": 5000}
    config = tmp_path / "config.yaml"
    more = {f"training__{key}": value for key, value in changes.items()}
    config.write_text(yaml.safe_dump(make_config(write_corpus(tmp_path / "data"), **more)))
    command = ["-m", "src.train", "--config", str(config), "--output_dir", str(tmp_path), "--run_name", "r"]
    extra = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    job = Job(1, command, ROOT, tmp_path / "job", **extra)
    try:
        while not list(marks.iterdir()):
            assert job.process.poll() is None, job.stderr
            time.sleep(0.02)
        os.killpg(job.process.pid, signal.SIGTERM)
        assert job.wait(500) == 75, job.stderr
    finally:
        if job.process.poll() is None:
            job.kill()
    assert "stopped after update 2 (SIGTERM)" in job.stdout
    assert load_checkpoint(tmp_path / "checkpoints/last.pt")["progress"]["update"] == 2


@pytest.mark.more
def test_torchs_compile_workers_outlive_a_stop_signal(run_python):
    """Those that compile for GPUs, made to add numbers here."""
    program = """
import operator, os, signal
from horovod_transformer.system.signals import StopRequest, held_back
from torch._inductor.compile_worker.subproc_pool import SubprocPool
with StopRequest() as stop:
    with held_back():
        pool = SubprocPool(2)
    assert pool.submit(operator.add, 1, 2).result(300) == 3
    os.killpg(0, signal.SIGTERM)
    assert pool.submit(operator.add, 3, 4).result(300) == 7
    pool.shutdown()
    print(stop.signal_name, pool.process.returncode)
"""
    done = run_python("-c", program, timeout=590, start_new_session=True)
    assert done.stdout == "SIGTERM 0\n", done.stderr


def test_who_compiles(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(compilation, "why_not", lambda device: None)
    assert (
        choose_compile("auto", gpu) == choose_compile("on", gpu) == choose_compile("on", CPU) == (True, None)
    )
    assert choose_compile("auto", CPU) == choose_compile("off", gpu) == (False, None)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda program: None)
    compiles, note = choose_compile("auto", gpu)
    assert not compiles and "not compiled" in note
    for device in (gpu, CPU):
        with pytest.raises(UserError, match="training.compile = on: there is no"):
            choose_compile("on", device)


GPU = torch.device("cuda", 0)


def write_compiler(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_compilers_that_do_not_work_are_found_out(device, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    assert choose_compile("on", device) == (True, None)
    name = "CC" if device.type == "cuda" else "CXX"
    working = shutil.which("gcc" if device.type == "cuda" else "g++")
    monkeypatch.setenv(name, f"env {working}")  # as with ccache
    assert why_not(device) is None
    for text, told in (
        ("exit 1", "cannot compile a line of code; CC and CXX name others"),
        ("echo 'x.h: error: no such' >&2; exit 1", r"cannot compile a line of code \(x.h: error: no such\)"),
        ("exit 0", "cannot compile a line of code"),
    ):
        monkeypatch.setenv(name, write_compiler(tmp_path / "compiler", text))
        compiles, note = choose_compile("auto", GPU) if device == GPU else (False, why_not(device))
        assert not compiles and re.search(told, note)
        with pytest.raises(UserError, match=f"training.compile = on: .*{told}.*set training.compile to off$"):
            choose_compile("on", device)
    monkeypatch.setenv(name, "'")
    assert "there is no '" in (why_not(CPU) or "") or device == GPU
    assert os.listdir(tmp_path / "code") == []


@needs_compiler
@pytest.mark.slow
def test_folders_that_code_cannot_be_run_from_are_found_out(tmp_path, monkeypatch):
    for path, told in ((tmp_path / "file" / "x", "Not a directory"), ("/proc/code", "No such file")):
        (tmp_path / "file").touch()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(path))
        assert told in why_not(CPU) and "TORCHINDUCTOR_CACHE_DIR names another folder" in why_not(CPU)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", None)
    if os.geteuid():
        pytest.skip("mounting needs root")
    program = "import torch; from horovod_transformer.model.compilation import why_not; "
    program += "print(why_not(torch.device('cpu')))"
    for options, told in (("noexec", "code may not be run from there"), ("size=2m", "the disk is full")):
        script = f'mount -t tmpfs -o {options} tmpfs "$TMPDIR" && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", program]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
        assert told in done.stdout and str(tmp_path) in done.stdout, done.stderr


@pytest.mark.slow
def test_torch_puts_its_code_where_we_look(tmp_path, monkeypatch):
    """`_code_folder` has learned it from torch's `cache_dir`."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert str(compilation._code_folder()) == default_cache_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    assert str(compilation._code_folder()) == cache_dir()


@pytest.mark.parametrize(("said", "meant"), [(True, "on"), (False, "off"), ("on", "on"), ("auto", "auto")])
def test_yaml_reads_on_and_off_as_truth(said, meant):
    assert config_from_dict({"training": {"compile": said}}, "test").training.compile == meant
    override = config_from_dict({}, "test").with_overrides({"training.compile": "off"})
    assert override.training.compile == "off"
