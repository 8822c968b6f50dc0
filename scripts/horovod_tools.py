"""What install_horovod.py needs from the machine: a compiler, Python's headers, make, CMake, pip."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"

# The first CMake that reads CMAKE_TOOLCHAIN_FILE from the environment.
OLDEST_CMAKE = (3, 21)
# One compiler process needs a bit more than 1 GB on PyTorch's headers.
GIGABYTES_PER_JOB = 1.5
# Login nodes often allow a user far less than the machine has, without any sign of it: do not take it all.
MOST_JOBS = 8

CXX20_PROBE = """
#include <compare>
#include <concepts>
#include <span>
template <std::integral T> T twice(T value) { return value + value; }
struct Point { int x; auto operator<=>(const Point&) const = default; };
int numbers[] = {1, 2};
int main() { return std::span(numbers).size() == 2 && twice(1) == 2 && Point{1} < Point{2} ? 0 : 1; }
"""


class UserMistakeError(Exception):
    """Something the user can put right; shown as one line."""


class MissingToolsError(UserMistakeError):
    """This machine has nothing to compile Horovod with; all else works without Horovod, on one process."""


def say(message: str) -> None:
    """Print one line of progress."""
    print(f"horovod: {message}", flush=True)


def pip_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without what makes pip install elsewhere than into this virtual environment."""
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_DRY_RUN")
    # Not only left out: pip.conf may say the same.
    return {name: value for name, value in environment.items() if name not in elsewhere} | {"PIP_USER": "0"}


def pip_install(*arguments: str) -> None:
    """Install into this virtual environment, whatever target pip.conf names: an empty option overrides it."""
    command = [sys.executable, "-m", "pip", "install", "--target", "", *arguments]
    if subprocess.run(command, env=pip_environment(os.environ)).returncode != 0:
        raise UserMistakeError(f"`pip install {' '.join(arguments)}` failed; its own message stands above")


def version_text(program: str | Path) -> str:
    """Return what `program --version` prints, or nothing if the program does not run."""
    try:
        return subprocess.run([str(program), "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""


def find_compiler(environment: Mapping[str, str]) -> str:
    """Return a C++ compiler that has proved itself on a small C++20 program, as CXX should name it.

    Args:
        environment: CXX names the compiler, perhaps with a program before it or options behind it
            (`ccache g++`); without it the usual names are looked up on PATH.
    """
    advice = "(Debian: apt install g++, Red Hat: dnf install gcc-toolset-12, cluster: module load gcc/11)"
    named = environment.get("CXX", "").strip()
    names, options = ([named] if named else ["g++", "c++", "clang++"]), []
    if named and not _which(named, environment):
        with contextlib.suppress(ValueError):  # a quote that stands alone: there is no such program
            names[0], *options = shlex.split(named)
    # Who names a compiler wants Horovod.
    missing = UserMistakeError if named else MissingToolsError
    on_path = (_which(name, environment) for name in names)
    compiler = next((found for found in on_path if found), None)
    if compiler is None:
        raise missing(f"no C++ compiler ({', '.join(names)}) on PATH; install gcc 10 or newer {advice}")
    whole = " ".join([compiler, *options])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(CXX20_PROBE)
        command = [compiler, *options, "-std=c++20", "-c", str(source), "-o", f"{folder}/probe.o"]
        if subprocess.run(command, env=dict(environment), capture_output=True).returncode != 0:
            raise missing(
                f"{whole} cannot compile C++20, which PyTorch's headers need; get gcc 10 or newer {advice}"
            )
    return whole


def _which(name: str, environment: Mapping[str, str]) -> str | None:
    return shutil.which(name, path=environment.get("PATH"))


def require_headers_and_make(environment: Mapping[str, str]) -> None:
    """Complain if Python's headers or make are missing."""
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        python = "python{}.{}".format(*sys.version_info[:2])
        raise MissingToolsError(
            f"Python.h is missing; install Python's headers (Debian: apt install {python}-dev, "
            f"Red Hat: dnf install {python}-devel, cluster: module load python)"
        )
    if shutil.which("make", path=environment.get("PATH")) is None:
        raise MissingToolsError(
            "make is not on PATH; install it (Debian: apt install make, Red Hat: dnf install make)"
        )


def find_cmake(environment: Mapping[str, str]) -> str:
    """Return a new enough CMake; if the machine has none, install the one from PyPI beside Python."""
    for path in (f"{sys.prefix}/bin", environment.get("PATH", "")):
        cmake = shutil.which("cmake", path=path)
        version = re.search(r"version (\d+)\.(\d+)", version_text(cmake)) if cmake else None
        if cmake and version and (int(version[1]), int(version[2])) >= OLDEST_CMAKE:
            return cmake
    say("no CMake {}.{} or newer on PATH, installing the one from PyPI".format(*OLDEST_CMAKE))
    pip_install("--quiet", "--force-reinstall", "--constraint", str(CONSTRAINTS), "cmake")
    return f"{sys.prefix}/bin/cmake"


def parallel_jobs() -> int:
    """Return how many compilers may run at once on the cores and the memory at hand."""
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(gigabytes / GIGABYTES_PER_JOB), MOST_JOBS))
