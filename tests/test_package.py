"""What a wheel carries: the package, its configs and its data builders, whatever is added to them later."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.fixtures import ROOT

# Where files of the checkout lie in the wheel; the sample shop with its pictures stays in the checkout.
PLACES = {"rice_jax/": "rice_jax/", "configs/": "rice_jax/configs/", "data/": "rice_data/"}
DATA_FILES = (".py", "README.md", "CITATIONS.bib", "TAGS.txt", ".jinja")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The files of a wheel built from what git tracks."""
    directory = tmp_path_factory.mktemp("wheel")
    archive = directory / "source.tar"
    subprocess.run(["git", "archive", f"--output={archive}", stash()], cwd=ROOT, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(directory / "source", filter="data")
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('..'))"
    command = [sys.executable, "-c", build]
    result = subprocess.run(command, cwd=directory / "source", capture_output=True, text=True, check=True)
    with zipfile.ZipFile(directory / result.stdout.split()[-1]) as wheel:
        return set(wheel.namelist())


def stash() -> str:
    """A commit of the tracked files as they are, or HEAD if nothing has changed."""
    environment = os.environ | {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME",)}
    environment |= {"GIT_AUTHOR_EMAIL": "test@localhost", "GIT_COMMITTER_EMAIL": "test@localhost"}
    command = ["git", "stash", "create"]
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return made.strip() or "HEAD"


def expected() -> set[str]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = set()
    for name in tracked.splitlines():
        for start, place in PLACES.items():
            if not name.startswith(start) or name.startswith("data/sample/") or "/dummy_data/" in name:
                continue
            if start != "data/" or name.endswith(DATA_FILES):
                found.add(place + name.removeprefix(start))
    return found


def test_a_wheel_carries_the_package_its_configs_and_its_data_builders(names):
    own = {name for name in names if ".dist-info/" not in name}
    assert own == expected()
    assert {"rice_jax/configs/lpr4m.py", "rice_data/lpr4m/lpr4m_dataset_builder.py"} <= own
    assert any(name.endswith("entry_points.txt") for name in names)
