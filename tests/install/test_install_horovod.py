"""The install path: what an unfit machine is told, what is kept, and that a second call is quick."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def installer(monkeypatch, tmp_path):
    """The installer as a module, with its stamp and its log in a folder of the test."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("install_horovod")
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(module, "BUILD_LOG", tmp_path / "build.log")
    return module


@pytest.fixture
def cuda(installer):
    return importlib.import_module("horovod_cuda")


def write_program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what steers the installer or make."""
    steering = {"HOROVOD_BUILD", "REBUILD", "CXX", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON"}
    return {name: value for name, value in os.environ.items() if name not in steering} | changes


def run_installer(tmp_path: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(HOROVOD_TRANSFORMER_CACHE=str(tmp_path / "cache"), **changes)
    command = [sys.executable, str(SCRIPTS / "install_horovod.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def the_only_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


# What a machine that cannot build is told


def test_too_old_compiler_is_one_line(tmp_path):
    old = write_program(
        tmp_path / "bin" / "g++",
        'case "$*" in *-std=c++20*) echo "g++: error: unrecognized option -std=c++20" >&2; exit 1;; esac',
    )
    line = the_only_line(run_installer(tmp_path, REBUILD="1", PATH=f"{old.parent}:{os.environ['PATH']}"))
    assert str(old) in line
    assert "gcc 10 or newer" in line
    assert "module load gcc" in line


def test_no_compiler_is_one_line(tmp_path):
    (tmp_path / "bin").mkdir()
    line = the_only_line(run_installer(tmp_path, REBUILD="1", PATH=str(tmp_path / "bin")))
    assert "no C++ compiler" in line
    assert "apt install g++" in line


def test_without_a_compiler_horovod_may_be_left_out(tmp_path):
    (tmp_path / "bin").mkdir()
    result = run_installer(tmp_path, "--optional", REBUILD="1", PATH=str(tmp_path / "bin"))
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("horovod: left out, training runs on one process only: no C++ compiler")
    # Who names a compiler wants Horovod.
    result = run_installer(tmp_path, "--optional", REBUILD="1", CXX="no-such-compiler")
    assert "no-such-compiler" in the_only_line(result)


@pytest.mark.parametrize(
    ("target", "optional"),
    [("install", True), ("demo", True), ("check", True), ("test", False), ("chaos", False)],
)
def test_only_the_tests_insist_on_horovod(target, optional):
    planned = subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True
    )
    (line,) = [line for line in planned.stdout.splitlines() if "install_horovod.py" in line]
    assert line.endswith("install_horovod.py --optional") == optional


def test_compiler_named_by_cxx_is_the_one_tried(tmp_path):
    line = the_only_line(run_installer(tmp_path, REBUILD="1", CXX="no-such-compiler"))
    assert "no-such-compiler" in line


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_working_compiler_is_taken_from_path(installer, tmp_path):
    forwarding = write_program(tmp_path / "bin" / "g++", f'exec {shutil.which("g++")} "$@"')
    environment = clean_environment(PATH=f"{forwarding.parent}:{os.environ['PATH']}")
    assert installer.find_compiler(environment) == str(forwarding)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_a_compiler_may_have_a_program_before_it_and_options_behind(installer, tmp_path):
    cache = write_program(tmp_path / "my tools" / "ccache", 'exec "$@"')
    path = f"{cache.parent}:{os.environ['PATH']}"
    assert installer.find_compiler(clean_environment(PATH=path, CXX="ccache g++ -O1")) == f"{cache} g++ -O1"
    # A path with a blank in it is one word.
    alone = write_program(tmp_path / "my tools" / "g++", f'exec {shutil.which("g++")} "$@"')
    assert installer.find_compiler(clean_environment(CXX=str(alone))) == str(alone)
    for wrong in ("ccache no-such-compiler", "g++ '"):
        with pytest.raises(installer.UserMistakeError):
            installer.find_compiler(clean_environment(PATH=path, CXX=wrong))


@pytest.mark.slow
def test_pip_installs_into_the_environment_whatever_its_settings(installer, tmp_path, monkeypatch):
    tools = importlib.import_module("horovod_tools")
    elsewhere, environment = tmp_path / "elsewhere", tmp_path / "venv"
    venv.create(environment, with_pip=True)
    monkeypatch.setattr(tools.sys, "executable", str(environment / "bin" / "python"))
    wheel = tmp_path / "nothing-1.0-py3-none-any.whl"
    about = "nothing-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("nothing.py", "")
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    (tmp_path / "pip.conf").write_text(f"[install]\nuser = true\ntarget = {elsewhere}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        monkeypatch.setenv(name, str(elsewhere))
    for name in ("PIP_DRY_RUN", "PIP_USER"):
        monkeypatch.setenv(name, "1")
    tools.pip_install("--quiet", "--no-index", str(wheel))
    assert list(environment.glob("lib/python*/site-packages/nothing.py"))
    assert not elsewhere.exists()


def test_the_build_runs_where_programs_may_run(installer, tmp_path):
    """On clusters /tmp often forbids it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root")
    program = f"""
import os, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import install_horovod
from pathlib import Path
for name in ("find_compiler", "find_cmake"):
    setattr(install_horovod, name, lambda environment: "/usr/bin/tool")
torch = install_horovod.Torch("2.13.0", None)
variables = install_horovod.build_environment("cpu", torch, dict(os.environ), Path({str(tmp_path)!r}))
print(variables["TMPDIR"])
"""
    mounts = 'mount -t tmpfs -o "$1" tmpfs "$TMPDIR"; shift; exec "$@"'
    (tmp_path / "small").mkdir()
    for options, expected in (("noexec", tmp_path), ("exec", tmp_path / "small")):
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounts, "sh", options, sys.executable, "-c", program],
            env=clean_environment(TMPDIR=str(tmp_path / "small")),
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == str(expected), done.stderr


def test_a_good_venv_is_kept_whatever_characters_its_path_has(tmp_path):
    folder = tmp_path / "re[x]po * (1)"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    write_program(folder / ".venv" / "bin" / "python", "exit 0")
    write_program(folder / ".venv" / "bin" / "pip", f"# {folder}/.venv/bin/python")
    (folder / ".venv" / "mine").touch()
    done = subprocess.run(
        ["make", "packages"], cwd=folder, env=clean_environment(PIP_USER="1"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / ".venv" / "mine").exists()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["prefix", "root"])
def test_a_pip_conf_that_sends_packages_elsewhere_is_refused(tmp_path, setting):
    """An empty --prefix does not undo it, as an empty --target does: pip installs into the working folder."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pip.conf").write_text(f"[global]\n{setting} = /elsewhere\n")
    done = subprocess.run(
        ["make", "packages", f"PYTHON={sys.executable}"],
        cwd=tmp_path,
        env=clean_environment(PIP_CONFIG_FILE=str(tmp_path / "pip.conf")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "install: pip's configuration sends packages elsewhere than into .venv, take"
    )
    assert f"global.{setting}='/elsewhere'" in done.stderr


def test_missing_make_and_headers_are_named(installer, tmp_path, monkeypatch):
    tools = importlib.import_module("horovod_tools")
    headers = tmp_path / "include"
    headers.mkdir()
    monkeypatch.setattr(tools.sysconfig, "get_path", lambda name: str(headers))
    with pytest.raises(tools.UserMistakeError, match=r"Python\.h is missing.*apt install python3\.\d+-dev"):
        tools.require_headers_and_make({"PATH": os.environ["PATH"]})
    (headers / "Python.h").touch()
    with pytest.raises(tools.UserMistakeError, match="make is not on PATH.*apt install make"):
        tools.require_headers_and_make({"PATH": str(headers)})
    write_program(tmp_path / "bin" / "make", "")
    tools.require_headers_and_make({"PATH": str(tmp_path / "bin")})


def test_old_cmake_is_replaced_from_pypi(installer, tmp_path, monkeypatch):
    tools = importlib.import_module("horovod_tools")
    calls = []
    monkeypatch.setattr(tools, "pip_install", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(tools.sys, "prefix", str(tmp_path / "venv"))
    cmake = write_program(tmp_path / "bin" / "cmake", "echo cmake version 3.18.4")
    assert tools.find_cmake({"PATH": str(cmake.parent)}) == f"{tmp_path}/venv/bin/cmake"
    assert calls
    assert calls[0][-1] == "cmake"
    calls.clear()
    write_program(cmake, "echo cmake version 3.21.0")
    assert tools.find_cmake({"PATH": str(cmake.parent)}) == str(cmake)
    assert not calls
    cmake.write_text("#!/no/such/interpreter\n")  # as after a virtual environment was moved
    assert tools.find_cmake({"PATH": str(cmake.parent)}) == f"{tmp_path}/venv/bin/cmake"


def test_unknown_kind_of_build_is_one_line(tmp_path):
    line = the_only_line(run_installer(tmp_path, HOROVOD_BUILD="nonsense"))
    assert "HOROVOD_BUILD=nonsense" in line
    assert "cpu" in line
    assert "cuda" in line


def test_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    line = the_only_line(run_installer(tmp_path, REBUILD="1"))
    assert "HOROVOD_TRANSFORMER_CACHE" in line


@pytest.mark.parametrize(
    ("cuda_version", "requested", "build"),
    [
        (None, "", "cpu"),
        ("13.0", "", "cuda"),
        ("13.0", "cpu", "cpu"),
        (None, "cpu", "cpu"),
        ("13.0", "cuda", "cuda"),
        ("13.0", "cuda-without-nccl", "cuda-without-nccl"),
    ],
)
def test_kind_of_build_follows_torch_unless_requested(installer, cuda_version, requested, build):
    assert installer.choose_build(installer.Torch("2.13.0", cuda_version), requested)[0] == build


def test_cuda_build_without_cuda_torch_is_refused(installer):
    with pytest.raises(installer.UserMistakeError, match="has no CUDA"):
        installer.choose_build(installer.Torch("2.13.0+cpu", None), "cuda")


# What decides whether a kept wheel fits


def test_cache_key_tells_apart_what_does_not_mix(installer, monkeypatch, tmp_path):
    keys = [
        installer.cache_key("cpu", installer.Torch("2.13.0", None)),
        installer.cache_key("cpu", installer.Torch("2.13.1", None)),
        installer.cache_key("cuda", installer.Torch("2.13.0", "13.0")),
        installer.cache_key("cuda-without-nccl", installer.Torch("2.13.0", "13.0")),
        installer.cache_key("cuda", installer.Torch("2.13.0", "12.8")),
    ]
    monkeypatch.setattr(installer.platform, "machine", lambda: "another-machine")
    keys.append(installer.cache_key("cpu", installer.Torch("2.13.0", None)))
    monkeypatch.setattr(installer, "HOROVOD_VERSION", "0.29.0")
    keys.append(installer.cache_key("cpu", installer.Torch("2.13.0", None)))
    # The files that tell CMake how to build it.
    shutil.copytree(installer.SCRIPTS / "horovod_cmake", tmp_path / "horovod_cmake")
    monkeypatch.setattr(installer, "SCRIPTS", tmp_path)
    assert installer.cache_key("cpu", installer.Torch("2.13.0", None)) == keys[-1]
    (tmp_path / "horovod_cmake" / "gloo_interface.h").write_text("// another\n")
    keys.append(installer.cache_key("cpu", installer.Torch("2.13.0", None)))
    assert len(set(keys)) == len(keys)
    assert installer.cache_key("cpu", installer.Torch("2.13.0", None)) == keys[-1]


def test_cache_folder_follows_the_environment(installer, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    own, shared = {"HOROVOD_TRANSFORMER_CACHE": "/own"}, {"XDG_CACHE_HOME": "/shared"}
    assert installer.cache_folder(own | shared) == Path("/own")
    assert installer.cache_folder(shared) == Path("/shared/horovod_transformer")
    assert installer.cache_folder({}) == tmp_path / ".cache" / "horovod_transformer"


@pytest.fixture
def steps(installer, monkeypatch, tmp_path):
    """Record the expensive steps of `install` instead of doing them; `problems` is what checks will find."""

    class Steps:
        taken: list[str] = []
        problems: list[str | None] = []

        def install(self, **environment: str) -> list[str]:
            self.taken = []
            installer.install({"HOROVOD_TRANSFORMER_CACHE": str(tmp_path / "cache"), **environment})
            return self.taken

    steps = Steps()

    def build_wheel(build, torch, environment, folder):
        steps.taken.append("build")
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / "horovod-0.28.1-built.whl"
        wheel.touch()
        return wheel

    def install_and_check(wheel):
        steps.taken.append("check")
        return steps.problems.pop(0) if steps.problems else None

    monkeypatch.setattr(installer, "build_wheel", build_wheel)
    monkeypatch.setattr(installer, "install_and_check", install_and_check)
    monkeypatch.setattr(installer, "installed_torch", lambda: installer.Torch("2.13.0", None))
    monkeypatch.setattr(installer.importlib.metadata, "version", lambda name: installer.HOROVOD_VERSION)
    return steps


def test_built_once_then_kept_and_rebuilt_on_demand(installer, steps):
    assert steps.install() == ["build", "check"]
    assert steps.install() == []  # verified
    installer.STAMP.unlink()  # as in a new .venv
    assert steps.install() == ["check"]
    assert steps.install(REBUILD="1") == ["build", "check"]
    installer.STAMP.write_text("built for another torch")
    assert steps.install() == ["check"]


def test_kept_wheel_that_fails_here_is_built_again(installer, steps):
    steps.install()
    installer.STAMP.unlink()
    steps.problems = ["GLIBC_2.99 not found", None]
    assert steps.install() == ["check", "build", "check"]
    assert installer.STAMP.exists()


def test_new_build_that_fails_the_check_is_not_called_installed(installer, steps):
    steps.problems = ["sum 2.0"]
    with pytest.raises(installer.UserMistakeError, match=r"two processes: sum 2\.0"):
        steps.install()
    assert not installer.STAMP.exists()


# Wheels that were built on another machine


def carried(installer, folder: Path, torch: str = "2.13.0") -> Path:
    wheel = folder / installer.cache_key("cpu", installer.Torch(torch, None)) / "horovod-0.28.1-carried.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    return wheel


def test_a_carried_wheel_is_used_and_nothing_is_compiled(installer, steps, tmp_path, capsys):
    wheel = carried(installer, tmp_path / "wheels")
    assert steps.install(PIP_FIND_LINKS=f"https://example.org/simple {tmp_path}/wheels") == ["check"]
    assert f"using the wheel of an earlier build, {wheel}" in capsys.readouterr().out
    installer.STAMP.unlink()
    assert steps.install(PIP_FIND_LINKS=(tmp_path / "wheels").as_uri()) == ["check"]
    installer.STAMP.unlink()
    assert steps.install() == ["build", "check"]  # pip was not told of the folder


def test_a_wheel_carried_for_another_torch_is_left_alone(installer, steps, tmp_path):
    carried(installer, tmp_path / "wheels", torch="2.12.0")
    assert steps.install(PIP_FIND_LINKS=str(tmp_path / "wheels")) == ["build", "check"]


def test_a_carried_wheel_that_fails_here_is_built_anew(installer, steps, tmp_path):
    carried(installer, tmp_path / "wheels")
    steps.problems = ["GLIBC_2.99 not found", None]
    assert steps.install(PIP_FIND_LINKS=str(tmp_path / "wheels")) == ["check", "build", "check"]


def test_what_is_carried_is_the_wheel_that_works_here(installer, steps, tmp_path, capsys):
    places = {"HOROVOD_TRANSFORMER_CACHE": str(tmp_path / "cache")}
    installer.carry(tmp_path / "wheels", places)
    assert "no wheel to carry" in capsys.readouterr().out and not (tmp_path / "wheels").exists()
    steps.install()
    installer.carry(tmp_path / "wheels", places)
    (wheel,) = (tmp_path / "wheels").glob("*/*.whl")
    assert str(wheel) in capsys.readouterr().out
    # The next machine, which has neither a cache nor a compiler; and one more, from its folder.
    installer.STAMP.unlink()
    places = {
        "HOROVOD_TRANSFORMER_CACHE": str(tmp_path / "no cache"),
        "PIP_FIND_LINKS": str(wheel.parents[1]),
    }
    assert steps.install(**places) == ["check"]
    installer.carry(tmp_path / "more", places)
    assert list((tmp_path / "more").glob("*/*.whl"))


def test_make_wheels_carries_horovod():
    planned = subprocess.run(
        ["make", "-n", "wheels"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert planned.stdout.splitlines()[-1].endswith("scripts/install_horovod.py --carry wheels")


# Building


@pytest.fixture
def build(installer, monkeypatch, tmp_path):
    """Run build_wheel with a stand-in for pip that writes what it is told to."""

    def run(log: str, status: int, **variables: str) -> Path:
        def fake_run(command, environment):
            installer.BUILD_LOG.write_text(log)
            scratch = next(word for word in command if word.startswith("--wheel-dir=")).removeprefix(
                "--wheel-dir="
            )
            if status == 0:
                Path(scratch, "horovod-0.28.1-made.whl").write_text("a wheel")
            return status

        monkeypatch.setattr(installer, "run_with_progress", fake_run)
        variables |= {"CXX": "g++", "MAKEFLAGS": "-j2"}
        monkeypatch.setattr(installer, "build_environment", lambda *_: variables)
        return installer.build_wheel("cpu", installer.Torch("2.13.0", None), {}, tmp_path / "kept wheels")

    return run


def test_wheel_lands_in_its_folder_and_nothing_else_does(build, tmp_path):
    wheel = build("fine", 0)
    assert [path.name for path in (tmp_path / "kept wheels").iterdir()] == ["horovod-0.28.1-made.whl"]
    assert wheel.read_text() == "a wheel"


def test_failed_build_names_the_first_error_and_the_log(build, installer, tmp_path):
    with pytest.raises(installer.UserMistakeError) as mistake:
        build("half.h:1:2: warning: odd\nhalf.h:3:4: error: broken\nmake: *** [all] Error 1", 1)
    assert "half.h:3:4: error: broken" in str(mistake.value)
    assert str(installer.BUILD_LOG) in str(mistake.value)
    assert len(str(mistake.value).splitlines()) == 1
    assert not list((tmp_path / "kept wheels").iterdir())


def test_failed_cuda_build_names_its_toolkit_and_what_changes_it(build, installer):
    with pytest.raises(installer.UserMistakeError) as mistake:
        build("nvcc fatal : Unsupported gpu architecture", 1, HOROVOD_CUDA_HOME="/opt/cuda-13")
    assert "the CUDA toolkit /opt/cuda-13, CUDA_HOME=/path/to/another changes that" in str(mistake.value)
    assert len(str(mistake.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "  [  4%] Building CXX object error.cc.o\n"
            "  c++ -Werror=format -c error.cc\n"
            "  a.h:1:1: warning: an error: unlikely\n"
            "  /torch/c10/util/C++17.h:13:2: error: You need C++20 to compile PyTorch\n"
            "  b.h:9:9: error: 'x' was not declared\n"
            "  make[2]: *** [all] Error 1\n"
            "  error: subprocess-exited-with-error",
            "/torch/c10/util/C++17.h:13:2: error: You need C++20 to compile PyTorch",
        ),
        (
            "CMake Warning at a.cmake:1:\n  careful\nCMake Error at CMakeLists.txt:7 (find_package):\n\n"
            "  No NCCL here\nerror: later",
            "CMake Error at CMakeLists.txt:7 (find_package): No NCCL here",
        ),
        (
            "c++: fatal error: Killed signal terminated program cc1plus\nmake: *** [x] Error 1",
            "c++: fatal error: Killed signal terminated program cc1plus",
        ),
        (
            "ld: a.o: undefined reference to `gloo::Store'\ncollect2: error: ld returned 1 exit status",
            "ld: a.o: undefined reference to `gloo::Store'",
        ),
        (
            "WARNING: Retrying\nERROR: Could not find a version of horovod\nERROR: No matching distribution",
            "ERROR: Could not find a version of horovod",
        ),
        ("all is well", "no line of the log looks like an error"),
    ],
)
def test_first_real_error(installer, log, expected):
    assert installer.first_error(log) == expected


def test_progress_comes_in_tens_and_the_log_is_whole(installer, capsys):
    program = "for p in range(0, 101, 4): print(f'  [{p:3d}%] Building')\nraise SystemExit(3)"
    assert installer.run_with_progress([sys.executable, "-c", program], os.environ) == 3
    printed = re.findall(r"(\d+) %", capsys.readouterr().out)
    assert printed == ["12", "20", "32", "40", "52", "60", "72", "80", "92", "100"]
    assert len(installer.BUILD_LOG.read_text().splitlines()) == 26


def test_users_horovod_switches_do_not_reach_the_build(installer, monkeypatch, tmp_path):
    monkeypatch.setattr(installer, "find_compiler", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(installer, "require_headers_and_make", lambda _: None)
    monkeypatch.setattr(installer, "find_cmake", lambda _: "/usr/bin/cmake")
    own = {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "CCL_ROOT": "/ccl",
        "LANG": "C",
        "HOROVOD_BUILD_ARCH_FLAGS": "-mavx",
        "CXXFLAGS": "-Werror",
        "CMAKE_GENERATOR": "Ninja",
        "CMAKE_BUILD_PARALLEL_LEVEL": "x",
        "GNUMAKEFLAGS": "-n",
    }
    variables = installer.build_environment("cpu", installer.Torch("2.13.0", None), own, tmp_path)
    assert "HOROVOD_GPU_OPERATIONS" not in variables
    assert "CCL_ROOT" not in variables
    assert not {"CXXFLAGS", "CMAKE_BUILD_PARALLEL_LEVEL", "GNUMAKEFLAGS"} & variables.keys()
    assert variables["CMAKE_GENERATOR"] == "Unix Makefiles"
    assert variables["LANG"] == "C"
    assert variables["HOROVOD_BUILD_ARCH_FLAGS"] == "-mavx"
    assert Path(variables["CMAKE_TOOLCHAIN_FILE"]).is_file()
    assert re.fullmatch(r"-j[1-8]", variables["MAKEFLAGS"])
    with pytest.raises(installer.UserMistakeError, match="/some/cuda"):
        installer.build_environment(
            "cpu", installer.Torch("2.13.0", "13.0"), {"CUDA_HOME": "/some/cuda"}, tmp_path
        )


# CUDA: what can be seen without a GPU


def fake_toolkit(folder: Path, version: str, header: str = "include") -> Path:
    """A toolkit whose nvcc answers as NVIDIA's does when asked for its version and its place."""
    write_program(
        folder / "bin" / "nvcc",
        f"""case "$1" in
--version) echo 'Cuda compilation tools, release {version}, V{version}.88' ;;
--dryrun) echo '#$ _HERE_={folder}/bin' >&2; echo '#$ TOP={folder}/bin/..' >&2 ;;
esac""",
    )
    (folder / header).mkdir(parents=True, exist_ok=True)
    (folder / header / "cuda_runtime.h").touch()
    return folder


def test_toolkit_of_the_same_cuda_major_is_found(cuda, tmp_path):
    wrong, right = fake_toolkit(tmp_path / "cuda-12", "12.4"), fake_toolkit(tmp_path / "cuda-13", "13.1")

    def find(torch_cuda: str, home: Path, path: Path) -> Path | None:
        return cuda.find_toolkit(torch_cuda, {"CUDA_HOME": str(home), "PATH": str(path)}, ())

    assert find("13.0", wrong, right / "bin") == right
    assert find("12.8", wrong, right / "bin") == wrong
    assert find("13.0", wrong, tmp_path) is None
    assert find("13.0", tmp_path / "gone", tmp_path) is None


@pytest.mark.parametrize("header", ["include", "targets/x86_64-linux/include"])
def test_an_nvcc_that_only_starts_another_leads_to_the_others_toolkit(cuda, tmp_path, header):
    toolkit = fake_toolkit(tmp_path / "opt" / "cuda-13", "13.0", header)
    wrapper = write_program(tmp_path / "usr" / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    assert cuda.find_toolkit("13.0", {"PATH": str(wrapper.parent)}, ()) == toolkit


def test_a_toolkit_without_the_runtimes_header_is_passed_over(cuda, tmp_path, capsys):
    bare = fake_toolkit(tmp_path / "bare", "13.0")
    (bare / "include" / "cuda_runtime.h").unlink()
    whole = fake_toolkit(tmp_path / "usual" / "cuda-13", "13.0")
    environment = {"PATH": str(bare / "bin")}
    assert cuda.find_toolkit("13.0", environment, ()) is None
    assert f"passing over the CUDA toolkit {bare}: no include/cuda_runtime.h" in capsys.readouterr().out
    assert cuda.find_toolkit("13.0", environment, (f"{tmp_path}/usual/*",)) == whole


def test_an_nvcc_that_does_not_tell_its_place_is_taken_to_lie_in_its_toolkit(cuda, tmp_path):
    silent = fake_toolkit(tmp_path / "silent", "13.0")
    write_program(silent / "bin" / "nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    assert cuda.toolkit_of(silent / "bin" / "nvcc") is None
    assert cuda.find_toolkit("13.0", {"PATH": str(silent / "bin")}, ()) == silent


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_the_nvcc_of_this_machine_tells_its_place(cuda):
    toolkit = cuda.toolkit_of(shutil.which("nvcc"))
    assert toolkit is not None
    assert (toolkit / "bin" / "nvcc").is_file()


def test_toolkit_gathered_from_wheels_has_the_names_cmake_looks_for(cuda, tmp_path, monkeypatch):
    asked = []

    def fake_pip(*arguments):
        asked.extend(arguments)
        toolkit = fake_toolkit(Path(arguments[arguments.index("--target") + 1], "nvidia", "cu13"), "13.0")
        (toolkit / "lib").mkdir()
        (toolkit / "lib" / "libcudart.so.13").touch()

    monkeypatch.setattr(cuda, "pip_install", fake_pip)
    toolkit = cuda.gather_toolkit("13.0", tmp_path / "cuda")
    assert "nvidia-cuda-nvcc==13.0.*" in asked
    assert (toolkit / "lib64" / "libcudart.so").resolve() == (toolkit / "lib" / "libcudart.so.13").resolve()


def test_cuda_12_without_a_toolkit_is_told_to_load_one(cuda, tmp_path):
    with pytest.raises(cuda.UserMistakeError, match="module load cuda/12"):
        cuda.gather_toolkit("12.8", tmp_path)


def test_cuda_build_points_horovod_at_the_toolkit_and_nccl(cuda, tmp_path):
    toolkit = fake_toolkit(tmp_path / "toolkit", "13.0")
    environment = {"CUDA_HOME": str(toolkit), "HOROVOD_NCCL_HOME": "/nccl", "PATH": "/bin"}
    variables = cuda.cuda_build_environment("13.0", environment, "/bin", tmp_path, with_nccl=True)
    assert variables["CUDA_HOME"] == variables["HOROVOD_CUDA_HOME"] == str(toolkit)
    assert variables["PATH"] == f"{toolkit}/bin:/bin"
    assert (variables["HOROVOD_GPU_OPERATIONS"], variables["HOROVOD_NCCL_HOME"]) == ("NCCL", "/nccl")
    without = cuda.cuda_build_environment("13.0", environment, "/bin", tmp_path, with_nccl=False)
    assert without["HOROVOD_GPU"] == "CUDA" and not any("NCCL" in f"{key}{without[key]}" for key in without)


# The real thing


OFFLINE = ["unshare", "--map-root-user", "--net"]


@pytest.mark.slow
def test_without_a_network_pip_takes_horovods_sources_from_a_folder(tmp_path):
    if shutil.which("g++") is None or subprocess.run([*OFFLINE, "true"], capture_output=True).returncode != 0:
        pytest.skip("no g++, or this user may not make a network namespace")
    folder = tmp_path / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    download += ["--no-binary=horovod", f"--dest={folder}", "horovod==0.28.1"]
    if subprocess.run(download, env=clean_environment()).returncode != 0:
        pytest.skip("Horovod's sources cannot be fetched here")
    # Compiling all of it takes minutes. It is enough that the compiler is asked for more than the probe: the
    # sources were found and unpacked, and their build has begun.
    compiler = write_program(
        tmp_path / "bin" / "g++",
        f'case "$*" in *probe.cpp*) exec {shutil.which("g++")} "$@" ;; esac; touch {tmp_path}/begun; exit 1',
    )
    program = (
        f"import pathlib, sys; sys.path.insert(0, {str(SCRIPTS)!r}); import install_horovod as installer;"
        f"installer.BUILD_LOG = pathlib.Path({str(tmp_path)!r}, 'build.log');"
        f"installer.STAMP = pathlib.Path({str(tmp_path)!r}, 'stamp'); sys.exit(installer.main())"
    )

    def build(**places: str) -> str:
        environment = clean_environment(
            REBUILD="1", CXX=str(compiler), HOROVOD_TRANSFORMER_CACHE=str(tmp_path / "cache"), **places
        )
        return the_only_line(
            subprocess.run(
                [*OFFLINE, sys.executable, "-c", program], env=environment, capture_output=True, text=True
            )
        )

    assert "from versions: none" in build(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "bin"))
    assert not (tmp_path / "begun").exists()
    assert "compiler" in build(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
    assert (tmp_path / "begun").exists()


@pytest.mark.distributed
def test_two_processes_really_add(installer):
    pytest.importorskip("horovod")
    assert installer.check_two_processes() is None


@pytest.mark.distributed
def test_wrong_sum_is_noticed(installer, monkeypatch):
    pytest.importorskip("horovod")
    monkeypatch.setattr(
        installer, "ALLREDUCE_PROGRAM", installer.ALLREDUCE_PROGRAM.replace("(2, 3.0)", "(2, 4.0)")
    )
    problem = installer.check_two_processes()
    assert problem is not None
    assert "AssertionError: size 2, sum 3.0" in problem


@pytest.mark.distributed
@pytest.mark.parametrize(
    "program", ["print('nothing added')", "print('allreduce of 1 and 2 gives 3'); raise SystemExit(1)"]
)
def test_check_wants_both_sums_and_a_good_end(installer, monkeypatch, program):
    pytest.importorskip("horovod")
    monkeypatch.setattr(installer, "ALLREDUCE_PROGRAM", program)
    assert installer.check_two_processes() is not None


def test_a_second_make_install_does_nothing():
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not running from .venv")
    planned = subprocess.run(
        ["make", "-n", "install"], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
    )
    if "pip install" in planned.stdout or not (Path(sys.prefix) / ".horovod-verified").exists():
        pytest.skip(".venv is not up to date; `make install` first")
    result = subprocess.run(
        ["make", "install"], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "already installed and checked" in result.stdout


@pytest.mark.parametrize("python", ["/no/such/python", "old"])
def test_python_that_cannot_serve_is_one_line(tmp_path, python):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = write_program(tmp_path / "old", "exit 1")  # what the version check makes of an old Python
    chosen = str(old) if python == "old" else python
    result = subprocess.run(
        ["make", "install", f"PYTHON={chosen}"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    ours = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(ours) == 1
    assert chosen in ours[0]
    assert "3.11" in ours[0]
    assert not (tmp_path / ".venv").exists()


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in wanted}
    assert names <= pins, names - pins


def test_horovod_version_is_the_same_everywhere(installer):
    assert f"horovod=={installer.HOROVOD_VERSION}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_system_packages_without_root_is_one_line_and_no_failure(tmp_path):
    write_program(tmp_path / "bin" / "id", "echo 1000")
    write_program(tmp_path / "bin" / "apt-get", "echo must not be called >&2; exit 1")
    result = subprocess.run(
        [SCRIPTS / "install_system_packages.sh", "no-such-package"],
        env=clean_environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
    assert "not root" in result.stdout
