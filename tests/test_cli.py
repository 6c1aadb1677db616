"""The command `rice`."""

import os
import subprocess
import sys

import pytest

import rice_jax
from rice_jax import cli
from rice_jax.commands.errors import errors_in_one_line
from tests.fixtures import LIGHT, ROOT, command, run

CONFIG = """
from rice_jax.config import load_config

def get_config():
    config = load_config("sample")
    config.train.total_steps = 3
    return config
"""


def help_of(capsys, *arguments: str) -> str:
    try:
        cli.main([*arguments, "--help"])
    except SystemExit as stop:
        assert not stop.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [*cli.COMMANDS, *cli.MODES, None])
def test_every_help_fits_on_a_screen_and_begins_with_a_sentence(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys, *([name] if name else []))
    lines = text.splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 80
    assert f"rice {name}" in text if name else all(command in text for command in [*cli.COMMANDS, *cli.MODES])


def test_no_command_shows_the_help(capsys):
    cli.main([])
    assert capsys.readouterr().out == help_of(capsys)


def test_an_unknown_command_gets_one_line():
    with pytest.raises(SystemExit, match="rice fly: unknown, expected one of convert, index, .*; see rice --help"):
        cli.main(["fly"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_the_end_without_a_traceback(error, code, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "search", fail)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # stdout is pytest's
    with pytest.raises(SystemExit) as stop:
        cli.main(["search"])
    assert stop.value.code == code


def test_a_module_whose_reader_has_left(monkeypatch, capsys):
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    with pytest.raises(SystemExit) as stop, errors_in_one_line():
        raise BrokenPipeError
    assert stop.value.code == 141 and capsys.readouterr().err == ""


def test_a_reader_of_the_help_that_has_left():
    reader, writer = os.pipe()
    os.close(reader)
    help_of_rice = [sys.executable, "-m", "rice_jax.cli", "--help"]
    ended = subprocess.run(help_of_rice, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_version(capsys):
    cli.main(["--version"])
    found = capsys.readouterr().out
    assert found == f"rice_jax {rice_jax.__version__}\n"
    assert f"version = {rice_jax.__version__}\n" in (ROOT / "setup.cfg").read_text()
    assert f"\nversion: {rice_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'__version__ = "{rice_jax.__version__}"\n' in (ROOT / "rice_jax" / "__init__.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nowhere", "--model=none", "--out=shop"], "FileNotFoundError: nowhere: does not exist, expected a"),
        (["index", ".", "--model=none", "--out=shop"], "CheckpointError: .*none: found no checkpoint"),
        (
            ["index", "nowhere", "--out=shop", "--change=remove"],
            "FileNotFoundError: shop/index.parquet: found no index",
        ),
        (["index", ".", "--out=shop"], "FileNotFoundError: shop/index.parquet: found no index"),
        (["compare", "a", "--workdir=b"], "DataError: found 1 runs to compare, expected two or more"),
        (["compare", "a", "c", "--workdir=b"], "FileNotFoundError: a/results.json: not found"),
    ],
)
def test_what_cannot_work_gets_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments)


@pytest.mark.slow
def test_training_from_a_config_file_in_another_directory(shop, tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    flags = command(shop, tmp_path / "run", config="mine.py", tiny=LIGHT)[3:]
    kept = [flag for flag in flags if "total_steps" not in flag]
    result = run([sys.executable, "-m", "rice_jax.cli", "train", *kept], directory=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert "after 3 steps" in result.stdout and (tmp_path / "run" / "report.html").exists()


def test_a_config_that_does_not_exist_gets_one_line(tmp_path):
    """As a program of its own it does the same in `test_main.py`."""
    result = run([sys.executable, "-m", "rice_jax.main", "--config=lpr5m", f"--workdir={tmp_path}"])
    assert result.returncode == 1
    assert result.stderr.strip().startswith("ConfigError: --config=lpr5m: found no such config, expected a .py file or")
