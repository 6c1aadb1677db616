"""Every builder, as a user calls it, without TensorFlow and PyTorch, and where an import of them would show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BUILDERS = sorted(path.parent.name for path in REPOSITORY.glob("data/*/dummy_data"))

# Python runs a module of this name when it starts, so in worker processes too.
HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("tensorflow", "torch")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
TRAP = """
import os, traceback

with open(os.environ["IMPORTS"], "a") as file:
    traceback.print_stack(file=file)
"""


def run(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Runs Python where the modules in a directory are found before any others."""
    environment = os.environ | {"PYTHONPATH": str(directory), "IMPORTS": str(directory / "imports")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def build(directory: Path, name: str) -> None:
    arguments = ["--raw_dir", REPOSITORY / "data" / name / "dummy_data", "--data_dir", directory / "built"]
    done = run(directory, "data/build.py", name, *arguments, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert list((directory / "built" / name).glob("*/1.0.0/dataset_info.json"))


@pytest.fixture
def hidden(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    return tmp_path


@pytest.fixture
def trap(tmp_path):
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    return tmp_path


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_works_where_tensorflow_is_not_installed(hidden, name):
    build(hidden, name)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_does_not_import_tensorflow_where_it_is_installed(trap, name):
    build(trap, name)
    assert not (trap / "imports").exists(), (trap / "imports").read_text()


def test_hidden_modules_are_not_found(hidden):
    look = "from importlib.util import find_spec; assert find_spec('numpy') and not find_spec('tensorflow')"
    assert run(hidden, "-c", look).returncode == 0
    assert "No module named 'torch'" in run(hidden, "-c", "import torch").stderr


def test_an_import_shows(trap):
    assert run(trap, "-c", "import tensorflow").returncode == 0
    assert (trap / "imports").read_text()
