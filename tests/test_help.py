"""Every program that a page names, and every module that has a `main`, shows its help when it is run."""

import re
import sys
from pathlib import Path

import pytest

from rice_jax import cli
from tests.programs import ROOT, run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").rglob("*.md")]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMAND = re.compile(r"^(?:\$ )?rice (convert (?:clip|reference|text)|[\w-]+)", re.MULTILINE)


def _module(path: Path | str) -> str:
    return str(path).removesuffix(".py").replace("/", ".")


def _programs() -> set[str]:
    named = set(re.findall(r"python3? -m ((?:rice_jax|data|scripts)[\w.]*\w)", TEXT))
    named |= {_module(path) for path in re.findall(r"python3? ((?:data|scripts)/[\w/]+\.py)", TEXT)}
    files = [path for room in ("rice_jax", "data", "scripts") for path in (ROOT / room).rglob("*.py")]
    have_main = [path for path in files if re.search(r"^def main\(", path.read_text(encoding="utf-8"), re.MULTILINE)]
    return named | {_module(path.relative_to(ROOT)) for path in have_main}


@pytest.mark.parametrize("module", sorted(_programs()))
def test_a_program_shows_its_help(module):
    done = run([sys.executable, "-m", module, "--help"])
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr  # absl's --help exits with 1
    assert done.stdout.count("\n") > 3


@pytest.mark.parametrize("command", sorted(set(COMMAND.findall(TEXT))))
def test_a_command_shows_its_help(command, capsys):
    try:
        cli.main([*command.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code
    assert f"rice {command}" in capsys.readouterr().out


@pytest.mark.parametrize("direction", ["import", "export"])
def test_the_conversions_of_the_reference_run_as_a_module(direction, tmp_path):
    done = run([sys.executable, "-m", "rice_jax.convert.reference", direction, str(tmp_path / "a.pth"), "b.pth"])
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
