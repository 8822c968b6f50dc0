"""The CUDA half of install_horovod.py: find or gather a CUDA toolkit and NCCL for Horovod's build.

The build was compiled this way (PyTorch for CUDA 13, NCCL 2.30) but never run on a GPU.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from horovod_tools import UserMistakeError, pip, say, version_text

# From Turing to Blackwell.
GPU_ARCHITECTURES = "75,80,86,90,100,120"
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


def find_toolkit(torch_cuda: str, environment: Mapping[str, str]) -> Path | None:
    """Look for an installed toolkit of PyTorch's CUDA major version.

    Args:
        torch_cuda: The CUDA version that PyTorch was built for.
        environment: Asked for CUDA_HOME, CUDA_PATH and PATH.

    Returns:
        The toolkit's folder, or None.
    """
    folders = [Path(environment[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    if nvcc := shutil.which("nvcc", path=environment.get("PATH")):
        folders.append(Path(nvcc).resolve().parent.parent)
    for folder in folders:
        version = nvcc_version(folder / "bin" / "nvcc")
        if version and version.split(".")[0] == torch_cuda.split(".")[0]:
            return folder
        reason = f"CUDA {version}, but PyTorch has {torch_cuda}" if version else "no working bin/nvcc"
        say(f"passing over {folder}: {reason}")
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
    pip("install", "--quiet", "--no-deps", "--target", str(folder), *wheels)
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
    torch_cuda: str, environment: Mapping[str, str], path: str, scratch: Path
) -> dict[str, str]:
    """Return the environment variables that a CUDA build needs on top of those of a CPU build.

    Args:
        torch_cuda: The CUDA version that PyTorch was built for.
        environment: The user's environment.
        path: The PATH of the build.
        scratch: A folder that lasts as long as the build, for a gathered toolkit.
    """
    nccl = find_nccl(environment)
    toolkit = find_toolkit(torch_cuda, environment) or gather_toolkit(torch_cuda, scratch / "cuda")
    say(f"CUDA toolkit {toolkit}, NCCL {nccl}")
    return {
        # Horovod asks the nvcc on PATH, not the one of HOROVOD_CUDA_HOME, what it can compile for.
        "PATH": f"{toolkit}/bin:{path}",
        "CUDA_HOME": str(toolkit),
        "HOROVOD_CUDA_HOME": str(toolkit),
        "HOROVOD_GPU": "CUDA",
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_HOME": str(nccl),
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_BUILD_CUDA_CC_LIST": environment.get("HOROVOD_BUILD_CUDA_CC_LIST", GPU_ARCHITECTURES),
    }
