"""OpenMP's threads wait briefly, whichever of our programs starts them, and the user's own settings win."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = "import os, {module}; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"


def settings(root, module="horovod_transformer", **variables):
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    done = subprocess.run(
        command, cwd=root, env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("module", ["horovod_transformer", "src.train", "src.generate", "src.utils.config"])
def test_set_by_everything_that_is_started(root, module):
    assert settings(root, module) == ["10000", "1"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["None", "None"]),
        ({"GOMP_SPINCOUNT": "7"}, ["7", "1"]),
        ({"KMP_BLOCKTIME": "infinite"}, ["10000", "infinite"]),
    ],
)
def test_what_the_user_has_set_stays(root, variables, expected):
    assert settings(root, **variables) == expected


def test_it_comes_before_torch(root):
    """The setting is read when the library is loaded: by then it must be there."""
    program = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('GOMP_SPINCOUNT')); sys.exit()\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import src.models.transformer_lm\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "10000\n"
