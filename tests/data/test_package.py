"""The builders as the package `rice_data`, under which a wheel carries them, and as scripts from any directory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.atomic import replacing
from data.build import main
from tests.data.raw_lpr4m import write_raw

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path):
    """An empty directory, beside a directory of packages that holds `rice_data` as a wheel does."""
    shutil.copytree(REPOSITORY / "data", tmp_path / "site" / "rice_data", ignore=shutil.ignore_patterns("sample"))
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def run(directory: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(directory.parent / "site")} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)


def records_of(data_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data_dir)): path.read_bytes() for path in data_dir.rglob("*array_record*")}


def test_the_installed_package_builds_and_checks(installed):
    raw = write_raw(installed.parent / "raw")
    arguments = ["lpr4m", "--raw_dir", raw, "--data_dir", "built", "--workers", "2"]
    done = run(installed, "-m", "rice_data.build", *arguments)
    assert done.returncode == 0, done.stderr
    main(["lpr4m", "--raw_dir", str(raw), "--data_dir", str(installed.parent / "checkout")])
    assert records_of(installed / "built") == records_of(installed.parent / "checkout") != {}
    done = run(installed, "-m", "rice_data.doctor", "lpr4m", raw, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["faults"] == {}


def test_every_builder_imports_under_both_names_in_one_process(installed):
    names = [path.parent.name for path in (REPOSITORY / "data").glob("*/*_dataset_builder.py")]
    assert {"lpr4m", "movingfashion", "rope"} <= {*names}
    code = """
import importlib
import sys
for name in sys.argv[1:]:
    for package in ("data", "rice_data"):
        builder = importlib.import_module(f"{package}.{name}.{name}_dataset_builder").Builder
        assert builder.name == name and builder.__module__.startswith(f"{package}.")
        importlib.import_module(f"{package}.{name}.check")
"""
    done = run(installed, "-c", code, *names, PYTHONPATH=f"{installed.parent / 'site'}:{REPOSITORY}")
    assert done.returncode == 0, done.stderr


def test_an_error_names_a_page_that_is_there(installed):
    (installed / "raw").mkdir()
    (installed / "raw" / "another.txt").touch()
    done = run(installed, "-m", "rice_data.build", "lpr4m", "--raw_dir", "raw", "--data_dir", "built")
    assert done.returncode == 1 and ": error: raw: found no training_videoinfo" in done.stderr
    page = installed.parent / "site" / "rice_data" / "lpr4m" / "README.md"
    assert str(page) in done.stderr and page.is_file()


def test_help_and_errors_have_the_name_of_the_callers_program(capsys):
    with pytest.raises(SystemExit, match="^rice build: error: nowhere: found no such directory"):
        main(["rope", "--raw_dir", "nowhere", "--data_dir", "built"], prog="rice build")
    with pytest.raises(SystemExit):
        main(["--help"], prog="rice build")
    assert capsys.readouterr().out.startswith("usage: rice build NAME --raw_dir DIR --data_dir DIR [options]\n")


SCRIPTS = {"build": 40, "doctor": 40, "sample/film": 60, "sample/simulate": 60, "sample/variants": 60}


@pytest.mark.parametrize(("script", "num_lines"), SCRIPTS.items())
def test_scripts_start_in_any_directory_and_their_help_is_short(tmp_path, script, num_lines):
    done = run(tmp_path, REPOSITORY / "data" / f"{script}.py", "--help", PYTHONPATH="", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= num_lines


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
