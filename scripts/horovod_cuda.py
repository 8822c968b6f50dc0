"""The CUDA half of install_horovod.py: find or gather a CUDA toolkit and NCCL for Horovod's build.

Built this way (PyTorch for CUDA 13, NCCL) and run on one GPU; never on several.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from horovod_tools import UserMistakeError, pip_install, say, version_text

# From Turing to Blackwell.
GPU_ARCHITECTURES = "75,80,86,90,100,120"
# Where toolkits lie that nothing points at; the newest of a pattern comes first.
USUAL_PLACES = ("/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda", "/opt/nvidia/hpc_sdk/Linux_*/*/cuda/*")
# What compiling Horovod's kernels takes of a toolkit, as NVIDIA publishes it on PyPI from CUDA 13 on.
TOOLKIT_WHEELS = [
    "nvidia-cuda-nvcc",
    "nvidia-cuda-crt",
    "nvidia-nvvm",
    "nvidia-cuda-cccl",
    "nvidia-cuda-runtime",
]


def nvcc_version(nvcc: Path) -> str | None:
    """Return the CUDA version of an nvcc, such as "13.0", or None if it does not run."""
    found = re.search(r"release (\d+\.\d+)", version_text(nvcc))
    return found[1] if found else None


def toolkit_of(nvcc: str | Path) -> Path | None:
    """Ask an nvcc for the folder of the toolkit it belongs to.

    The nvcc on PATH may be a small program that starts the real one (a module's, ccache's), so that its own
    place tells nothing.

    Args:
        nvcc: The program to ask.

    Returns:
        The toolkit's folder, or None if the program does not answer.
    """
    command = [str(nvcc), "--dryrun", "-x", "cu", os.devnull]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    top = re.search(r"^#\$ TOP=(.+)$", answer.stderr + answer.stdout, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else None


def has_runtime_header(toolkit: Path) -> bool:
    """Tell whether a toolkit brings the runtime's header, which a compiler alone does not."""
    places = [toolkit / "include", *toolkit.glob("targets/*/include")]
    return any((place / "cuda_runtime.h").is_file() for place in places)


def why_unfit(toolkit: Path, torch_cuda: str) -> str | None:
    """Say why Horovod cannot be built with a toolkit, or None if it can.

    Args:
        toolkit: The toolkit's folder.
        torch_cuda: The CUDA version that PyTorch was built for.
    """
    version = nvcc_version(toolkit / "bin" / "nvcc")
    if version is None:
        return "no working bin/nvcc"
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        return f"CUDA {version}, but PyTorch has {torch_cuda}"
    return None if has_runtime_header(toolkit) else "no include/cuda_runtime.h"


def find_toolkit(
    torch_cuda: str, environment: Mapping[str, str], usual_places: Sequence[str] = USUAL_PLACES
) -> Path | None:
    """Look for an installed toolkit of PyTorch's CUDA major version.

    Args:
        torch_cuda: The CUDA version that PyTorch was built for.
        environment: Asked for CUDA_HOME, CUDA_PATH and PATH, in this order.
        usual_places: Patterns of folders to look at last.

    Returns:
        The toolkit's folder, or None.
    """
    folders = [Path(environment[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    if nvcc := shutil.which("nvcc", path=environment.get("PATH")):
        told, above = toolkit_of(nvcc), Path(nvcc).resolve().parent.parent
        folders += [told, above] if told else [above]
    for pattern in usual_places:
        folders += sorted((Path(path) for path in glob.glob(pattern)), reverse=True)
    for folder in dict.fromkeys(folders):
        reason = why_unfit(folder, torch_cuda)
        if reason is None:
            return folder
        say(f"passing over the CUDA toolkit {folder}: {reason}")
    return None


def toolkit_in_sight(environment: Mapping[str, str]) -> str | None:
    """Return the CUDA toolkit that PyTorch would find by itself, whatever its version, or None."""
    named = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    usual = "/usr/local/cuda" if Path("/usr/local/cuda").exists() else None
    return named or shutil.which("nvcc", path=environment.get("PATH")) or usual


def gather_toolkit(torch_cuda: str, folder: Path) -> Path:
    """Put a toolkit together from NVIDIA's wheels on PyPI, for machines that have none.

    Args:
        torch_cuda: The CUDA version that PyTorch was built for.
        folder: A new folder to fill.

    Returns:
        The toolkit's folder with bin/, include/, lib/, lib64/ and nvvm/.
    """
    major = int(torch_cuda.split(".")[0])
    advice = f"load a toolkit (module load cuda/{major}) or set CUDA_HOME"
    if major < 13:  # NVIDIA's wheels for CUDA 12 hold no nvcc
        raise UserMistakeError(f"PyTorch needs a CUDA {major} toolkit and there is none; {advice}")
    say(f"no CUDA {major} toolkit on this machine, gathering one from PyPI")
    wheels = [f"{name}=={torch_cuda}.*" for name in TOOLKIT_WHEELS]
    pip_install("--quiet", "--no-deps", "--target", str(folder), *wheels)
    toolkit = folder / "nvidia" / f"cu{major}"
    if nvcc_version(toolkit / "bin" / "nvcc") is None:
        raise UserMistakeError(f"the nvcc from PyPI does not run here; {advice}")
    # Wheels carry neither the 64-bit folder nor the unversioned name that CMake looks for.
    (toolkit / "lib64").symlink_to("lib")
    libcudart = toolkit / "lib" / "libcudart.so"
    if not libcudart.exists():
        libcudart.symlink_to(f"libcudart.so.{major}")
    return toolkit


def find_nccl(environment: Mapping[str, str]) -> Path:
    """Return the folder with NCCL's header and library: the user's, or that of the wheel PyTorch brought."""
    if own := environment.get("HOROVOD_NCCL_HOME"):
        return Path(own)
    wheel = Path(sysconfig.get_path("platlib"), "nvidia", "nccl")
    if not (wheel / "include" / "nccl.h").is_file():
        raise UserMistakeError(
            "NCCL is not in this environment; set HOROVOD_NCCL_HOME, or do without: HOROVOD_BUILD=cpu"
        )
    return wheel


def cuda_build_environment(
    torch_cuda: str, environment: Mapping[str, str], path: str, scratch: Path, with_nccl: bool
) -> dict[str, str]:
    """Return the environment variables that a CUDA build needs on top of those of a CPU build.

    Args:
        torch_cuda: The CUDA version that PyTorch was built for.
        environment: The user's environment.
        path: The PATH of the build.
        scratch: A folder that lasts as long as the build, for a gathered toolkit.
        with_nccl: Sum through NCCL, or else through Gloo.
    """
    nccl = find_nccl(environment) if with_nccl else None
    toolkit = find_toolkit(torch_cuda, environment) or gather_toolkit(torch_cuda, scratch / "cuda")
    say(f"CUDA toolkit {toolkit}, NCCL {nccl or 'left out'}")
    result = {
        # Horovod asks the nvcc on PATH, not the one of HOROVOD_CUDA_HOME, what it can compile for.
        "PATH": f"{toolkit}/bin:{path}",
        "CUDA_HOME": str(toolkit),
        "HOROVOD_CUDA_HOME": str(toolkit),
        "HOROVOD_GPU": "CUDA",
        "HOROVOD_BUILD_CUDA_CC_LIST": environment.get("HOROVOD_BUILD_CUDA_CC_LIST", GPU_ARCHITECTURES),
    }
    if nccl is not None:
        result |= {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_NCCL_HOME": str(nccl),
            "HOROVOD_NCCL_LINK": "SHARED",
        }
    return result
