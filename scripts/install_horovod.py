"""Build Horovod from its unchanged sources for this virtual environment's PyTorch, install it, and try it.

`make install` runs this after PyTorch is in; by hand it is

    .venv/bin/python scripts/install_horovod.py

With `--optional` a machine that has nothing to compile with is no error: one line says so, and that training
runs on one process. With `--carry FOLDER` nothing is installed: the wheel of the Horovod that is here is
copied into a folder, from which a machine without a compiler takes it (`make wheels`). Only the standard
library is used. What can be set, as environment variables:

    HOROVOD_BUILD=cpu|cuda       build for this, whatever the installed PyTorch suggests; cuda-without-nccl
                                 sums what GPUs hold through Gloo, slowly: tests can share one GPU
    REBUILD=1                    compile again even if a wheel was kept from an earlier build
    HOROVOD_TRANSFORMER_CACHE    folder that keeps built wheels (default ~/.cache/horovod_transformer)
    CXX                          C++ compiler (default: the first of g++, c++, clang++ on PATH)
    CUDA_HOME                    CUDA toolkit (default: that of the nvcc on PATH, the usual places, PyPI)

pip's own variables count as ever: with PIP_NO_INDEX=1 and PIP_FIND_LINKS=folder the network is not asked. A
wheel that was carried to that folder is used before anything is compiled.

Horovod 0.28.1 asks for C++14, which no recent PyTorch accepts any more. The files in horovod_cmake/ tell
CMake, from outside, to use C++20 instead. They also put a header before one file of Gloo, so that
HOROVOD_GLOO_IFACE holds for all of Horovod's connections. No file of Horovod is changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from horovod_cuda import cuda_build_environment, toolkit_in_sight
from horovod_tools import (
    MissingToolsError,
    UserMistakeError,
    find_cmake,
    find_compiler,
    parallel_jobs,
    pip_environment,
    pip_install,
    require_headers_and_make,
    say,
)

HOROVOD_VERSION = "0.28.1"
SCRIPTS = Path(__file__).resolve().parent
STAMP = Path(sys.prefix) / ".horovod-verified"
BUILD_LOG = Path(sys.prefix) / "horovod-build.log"

CHECK_SECONDS = 180

# What else may steer compilers, CMake and make: -Werror, say, ends a build at a warning of Gloo's.
BUILD_OPTIONS = {
    "CCL_ROOT",
    "CFLAGS",
    "CPPFLAGS",
    "CXXFLAGS",
    "CUDAFLAGS",
    "LDFLAGS",
    "GNUMAKEFLAGS",
    "MAKEFILES",
}

ALLREDUCE_PROGRAM = """
import horovod.torch as hvd
import torch
hvd.init()
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum).item()
assert (hvd.size(), total) == (2, 3.0), f"size {hvd.size()}, sum {total}"
print("allreduce of 1 and 2 gives 3", flush=True)
"""


@dataclass(frozen=True)
class Torch:
    """The installed PyTorch: its full version, and the CUDA version that it was built for, if any."""

    version: str
    cuda: str | None


def installed_torch() -> Torch:
    """Read PyTorch's version file; importing PyTorch itself would cost seconds."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        raise UserMistakeError(f"PyTorch is not installed in {sys.prefix}; run `make install`")
    spec = importlib.util.spec_from_file_location(
        "torch_version", Path(package.origin).with_name("version.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Torch(str(module.__version__), module.cuda)


def choose_build(torch: Torch, requested: str) -> tuple[str, str]:
    """Decide what to build for.

    Args:
        torch: The installed PyTorch.
        requested: The value of HOROVOD_BUILD, empty when unset.

    Returns:
        "cpu", "cuda" or "cuda-without-nccl", and the reason in words.
    """
    if requested not in ("", "cpu", "cuda", "cuda-without-nccl"):
        raise UserMistakeError(
            f"HOROVOD_BUILD={requested} is not known; use HOROVOD_BUILD=cpu or HOROVOD_BUILD=cuda "
            "(or cuda-without-nccl)"
        )
    if requested.startswith("cuda") and not torch.cuda:
        raise UserMistakeError(
            f"HOROVOD_BUILD={requested}, but PyTorch {torch.version} has no CUDA; "
            "install a CUDA PyTorch first"
        )
    if requested:
        return requested, f"HOROVOD_BUILD={requested}"
    if torch.cuda:
        return "cuda", f"PyTorch {torch.version} was built for CUDA {torch.cuda}"
    return "cpu", f"PyTorch {torch.version} has no CUDA"


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder that keeps built wheels between installations."""
    if own := environment.get("HOROVOD_TRANSFORMER_CACHE"):
        return Path(own).expanduser().resolve()
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared) / "horovod_transformer"
    return Path.home() / ".cache" / "horovod_transformer"


def cache_key(build: str, torch: Torch) -> str:
    """Name what a wheel was built for: a wheel of another key would crash or not load at all."""
    target = "cpu" if build == "cpu" else build.replace("cuda", f"cuda{torch.cuda}", 1)
    python = sys.implementation.cache_tag
    files = sorted((SCRIPTS / "horovod_cmake").iterdir())
    recipe = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
    return f"horovod-{HOROVOD_VERSION}-{recipe}_torch-{torch.version}_{target}_{python}_{platform.machine()}"


def build_environment(
    build: str, torch: Torch, environment: Mapping[str, str], scratch: Path
) -> dict[str, str]:
    """Return the environment variables under which pip builds Horovod.

    Args:
        build: As `choose_build` named it.
        torch: The installed PyTorch.
        environment: The user's environment. Horovod's switches and the compilers' options in it are dropped,
            so that two builds of one key are equal; CCL_ROOT too, which a cluster's module may set and which
            makes Horovod want oneCCL.
        scratch: A folder that lasts as long as the build.
    """
    dropped = {name for name in environment if name.startswith(("HOROVOD_", "CMAKE_"))} | BUILD_OPTIONS
    dropped -= {"HOROVOD_BUILD_ARCH_FLAGS", "HOROVOD_BUILD_CUDA_CC_LIST"}
    result = {name: value for name, value in environment.items() if name not in dropped}
    compiler = find_compiler(environment)
    require_headers_and_make(environment)
    if os.statvfs(tempfile.gettempdir()).f_flag & os.ST_NOEXEC:
        result["TMPDIR"] = str(scratch)  # the build runs what it has just compiled
    result |= {
        "PATH": f"{sys.prefix}/bin:{environment.get('PATH', os.defpath)}",
        "CXX": compiler,
        "CMAKE_GENERATOR": "Unix Makefiles",  # Horovod gives options to make
        "CMAKE_TOOLCHAIN_FILE": str(SCRIPTS / "horovod_cmake" / "toolchain.cmake"),
        "MAKEFLAGS": f"-j{parallel_jobs()}",
        "HOROVOD_CMAKE": find_cmake(environment),
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_WITHOUT_NVTX": "1",
        "HOROVOD_WITH_GLOO": "1",
    }
    if build != "cpu":
        assert torch.cuda is not None
        with_nccl = build == "cuda"
        result |= cuda_build_environment(torch.cuda, environment, result["PATH"], scratch, with_nccl)
        return result
    if torch.cuda and (toolkit := toolkit_in_sight(environment)):
        raise UserMistakeError(  # PyTorch would show it to Horovod's build, which then wants CUDA after all
            f"a CPU build for PyTorch {torch.version} fails because there is a CUDA toolkit, {toolkit}; "
            "unload it (module unload cuda) or use HOROVOD_BUILD=cuda"
        )
    result["HOROVOD_TRANSFORMER_IGNORE_CUDA"] = "1"
    return result


def first_error(log: str) -> str:
    """Return the line of a build log that says what went wrong, not one of the many that follow from it.

    Args:
        log: The whole log.

    Returns:
        The first error of a compiler, linker or CMake; failing that the first error of Python or pip.
    """
    lines = [line.strip() for line in log.splitlines() if not re.search(r"\bwarning\b", line, re.IGNORECASE)]
    from_tools = r"\berror: |undefined reference|multiple definition|No space left on device|\bnvcc fatal"
    for index, line in enumerate(lines):
        if line.startswith("CMake Error"):  # its text stands on the lines below
            text = next((below for below in lines[index + 1 :] if below), "")
            return f"{line} {text}".strip()
        if re.search(from_tools, line) and "subprocess-exited-with-error" not in line:
            return line
    from_python = (line for line in lines if re.match(r"[\w.]*(Error|ERROR): ", line))
    return next(from_python, "no line of the log looks like an error")


def build_wheel(build: str, torch: Torch, environment: Mapping[str, str], folder: Path) -> Path:
    """Compile Horovod and put the wheel into `folder`, which appears there whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserMistakeError(
            f"cannot make {folder} ({error.strerror}); set HOROVOD_TRANSFORMER_CACHE to a folder of yours"
        ) from None
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        build_variables = build_environment(build, torch, environment, scratch)
        compiler = f"{build_variables['CXX']} {build_variables['MAKEFLAGS']}"
        say(f"compiling with {compiler}; about 5 minutes on 2 cores; log: {BUILD_LOG}")
        options = ["--verbose", "--no-build-isolation", "--no-deps", "--no-cache-dir", "--no-binary=horovod"]
        command = [sys.executable, "-m", "pip", "wheel", *options, f"--wheel-dir={scratch}"]
        command.append(f"horovod=={HOROVOD_VERSION}")
        if run_with_progress(command, pip_environment(build_variables)) != 0:
            reason = first_error(BUILD_LOG.read_text(errors="replace"))
            used = ""
            if toolkit := build_variables.get("HOROVOD_CUDA_HOME"):
                used = f"; it took the CUDA toolkit {toolkit}, CUDA_HOME=/path/to/another changes that"
            raise UserMistakeError(f"the build failed: {reason}{used} (log: {BUILD_LOG})")
        built = next(scratch.glob("horovod-*.whl"))
        return built.replace(folder / built.name)


def run_with_progress(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a build with its output in the log, print make's progress, and return the exit status."""
    next_report = 10
    with BUILD_LOG.open("w") as log:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            percent = re.match(r"\s*\[ *(\d+)%\]", line)
            if percent and int(percent[1]) >= next_report:
                say(f"compiling, {percent[1]} %")
                next_report = int(percent[1]) // 10 * 10 + 10
        return process.wait()


def check_two_processes() -> str | None:
    """Let two processes add their numbers through horovodrun; return what went wrong, or None."""
    horovodrun = [sys.executable, str(Path(sys.executable).with_name("horovodrun")), "--gloo"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "allreduce.py")
        program.write_text(ALLREDUCE_PROGRAM)
        process = subprocess.Popen(
            [*horovodrun, "-np", "2", "-H", "localhost:2", sys.executable, str(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            cwd=folder,
        )
        try:
            output, _ = process.communicate(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # horovodrun passes it on to its workers, and kills them 5 seconds later
            return f"no answer within {CHECK_SECONDS} seconds"
    if process.returncode == 0 and output.count("allreduce of 1 and 2 gives 3") == 2:
        return None
    error = re.search(r".*(\w+Error: |terminate called|Illegal instruction).*", output)
    return error[0] if error else f"exit status {process.returncode} from horovodrun: {output[-300:]!r}"


def install_and_check(wheel: Path) -> str | None:
    """Install a wheel and try it; return what went wrong, or None."""
    STAMP.unlink(missing_ok=True)
    try:
        pip_install("--quiet", "--no-deps", "--force-reinstall", str(wheel))
    except UserMistakeError as error:
        return str(error)
    say("checking with two processes")
    return check_two_processes()


def already_verified(key: str) -> bool:
    """Tell whether this environment already holds a Horovod of this key that passed the check."""
    try:
        installed = importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return False
    return installed == HOROVOD_VERSION and STAMP.is_file() and STAMP.read_text() == key


def carried_wheels(key: str, environment: Mapping[str, str]) -> Iterator[Path]:
    """Wheels of this key that `make wheels` has put, on another machine, where pip is told to look."""
    for place in environment.get("PIP_FIND_LINKS", "").split():
        folder = Path(place.removeprefix("file://")).expanduser()
        if "://" not in str(folder):
            yield from (folder / key).glob("horovod-*.whl")


def carry(folder: Path, environment: Mapping[str, str]) -> None:
    """Put the wheel of the Horovod that is installed here into a folder, for machines without a compiler.

    It lies one folder deeper, in one that bears its key: there pip, which would install it whatever it was
    built for, does not look.
    """
    torch = installed_torch()
    build, _ = choose_build(torch, environment.get("HOROVOD_BUILD", ""))
    key = cache_key(build, torch)
    wheel = next((cache_folder(environment) / key).glob("horovod-*.whl"), None)
    wheel = wheel or next(carried_wheels(key, environment), None)
    if wheel is None or not already_verified(key):
        say("no wheel to carry, for there is no Horovod here; its sources are carried, and want a compiler")
        return
    (folder / key).mkdir(parents=True, exist_ok=True)
    shutil.copy2(wheel, folder / key)
    say(f"carried, {folder / key / wheel.name}")


def install(environment: Mapping[str, str]) -> None:
    """Bring a working Horovod into this virtual environment, by the shortest way."""
    torch = installed_torch()
    build, reason = choose_build(torch, environment.get("HOROVOD_BUILD", ""))
    transport = "NCCL and Gloo" if build == "cuda" else "Gloo"
    target = build.partition("-")[0].upper()
    choice = f"{HOROVOD_VERSION} for {target} with {transport}, because {reason}"
    key = cache_key(build, torch)
    rebuild = environment.get("REBUILD", "0") not in ("", "0")
    if already_verified(key) and not rebuild:
        say(f"{choice}; already installed and checked")
        return
    say(choice)
    folder = cache_folder(environment) / key
    wheels = [] if rebuild else [*folder.glob("horovod-*.whl"), *carried_wheels(key, environment)]
    for wheel in wheels:
        say(f"using the wheel of an earlier build, {wheel}")
        problem = install_and_check(wheel)
        if problem is None:
            break
        # Such as a wheel from a newer system, in a home folder that two systems share.
        say(f"that wheel does not work here ({problem})")
    else:
        problem = install_and_check(build_wheel(build, torch, environment, folder))
        if problem:
            raise UserMistakeError(f"the new build does not work with two processes: {problem}")
    STAMP.write_text(key)
    say("works")


def main() -> int:
    """Install, and turn a user's mistake into one line and exit status 2."""
    try:
        if "--carry" in sys.argv[1:]:
            carry(Path(sys.argv[-1]), os.environ)
        else:
            install(os.environ)
    except MissingToolsError as lack:
        if "--optional" in sys.argv[1:]:
            print(f"horovod: left out, training runs on one process only: {lack}", file=sys.stderr)
            return 0
        print(f"horovod: {lack}", file=sys.stderr)
        return 2
    except UserMistakeError as mistake:
        print(f"horovod: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
