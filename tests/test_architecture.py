"""Packages import only what docs/design.md allows, no imports form a cycle, and files stay small."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

from tests.conftest import SLOW_FILES
from tests.fixtures import ROOT

# What each package may import from rice_jax besides itself: whole packages, or single modules. Top-level modules that
# are not listed are command lines and the public interface; they may import everything, and no package but `commands`
# imports them.
ROOMS = {
    "types": set(),
    "files": set(),
    "config": set(),
    "parallel": {"files", "config"},
    "ops": {"types"},
    "losses": {"types", "ops"},
    "models": {"types", "files", "config", "ops", "parallel"},
    "input": {"types", "config"},
    "convert": {"types", "files", "config", "models", "parallel"},
    "train": {"types", "files", "config", "parallel", "ops", "losses", "models", "input"},
    "eval": {"types", "files", "config", "parallel", "ops", "models", "input"},
    "pages": {"types", "files", "config", "input", "eval"},
    "tasks": {"types", "files", "config", "parallel", "ops", "losses", "models", "input", "train", "eval", "pages"},
    "index": {
        "types",
        "files",
        "config",
        "parallel",
        "models",
        "input",
        "eval.calibration",
        "eval.embed",
        "eval.scores",
        "eval.texts",
    },
    "recognition": {
        "types",
        "config",
        "parallel",
        "models",
        "input",
        "index",
        "eval.calibration",
        "eval.pooling",
        "eval.products",
        "eval.ranking",
        "eval.scores",
    },
    "clips": {"types", "files", "config", "parallel", "models", "input", "index", "eval", "recognition"},
    "serving": {"types", "input.pictures", "recognition", "pages"},
}
COMMANDS = "commands"  # may import everything
# A module that may import more than its package: the page shows the results of recognition with an index.
EXCEPTIONS = {"pages.timeline": {"index.store", "recognition.engine", "recognition.recognizer"}}
MODEL_PARTS = {"encoder", "aggregation", "pmd", "pfr", "detector"}
MAX_LINES = 400
SOURCES = ("rice_jax", "data", "scripts", "tests", "configs")


def module_name(path: Path) -> str:
    """The module of a file in rice_jax, without the package's name, e.g. "eval.ranking"; "" is the package itself."""
    parts = path.relative_to(ROOT / "rice_jax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "rice_jax").rglob("*.py"))}


def imports(source: str, *, at_start: bool = False) -> set[str]:
    """The modules of rice_jax that a source imports; `at_start` leaves out imports inside functions."""
    found, nodes = set(), [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {name.name.removeprefix("rice_jax.") for name in node.names if name.name.startswith("rice_jax.")}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: found a relative import, expected one from rice_jax"
            package, _, module = (node.module or "").partition(".")
            if package == "rice_jax":
                names = [f"{module}.{name.name}".strip(".") for name in node.names]
                found |= {name if name in MODULES else module for name in names}
        elif not (at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            nodes.extend(ast.iter_child_nodes(node))
    return found


def forbidden(module: str, imported: set[str]) -> list[str]:
    """The imports of a module that its package may not have."""
    room = module.partition(".")[0]
    if room == COMMANDS or (room == module and room not in ROOMS):
        return []
    allowed = {room} | ROOMS.get(room, set()) | EXCEPTIONS.get(module, set())
    return sorted(name for name in imported if name not in allowed and name.partition(".")[0] not in allowed)


def test_rooms_import_only_what_the_table_allows():
    wrong = {module: forbidden(module, imports(path.read_text())) for module, path in MODULES.items()}
    assert {module: names for module, names in wrong.items() if names} == {}
    rooms = {module.partition(".")[0] for module in MODULES if "." in module}
    assert rooms <= {COMMANDS, *ROOMS}, "a package that is not in the table"


def importing(directory: str, package: str) -> list[str]:
    """The files of a directory that import a package, also inside functions."""
    line = re.compile(rf"^\s*(from|import) {package}\b", re.MULTILINE)
    paths = [path for path in sorted((ROOT / directory).rglob("*.py")) if line.search(path.read_text(encoding="utf-8"))]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_builders_and_the_package_share_files_alone():
    assert importing("data", "rice_jax") == ["data/sample/start.py"]
    assert importing("rice_jax", "(rice_)?data") == ["rice_jax/cli.py"]


def documented(page: str) -> dict[str, set[str]]:
    """What each package may import by the second table of docs/design.md; "all above" is spelled out."""
    _, _, table = page.partition("| in `rice_jax/` |")
    found: dict[str, set[str]] = {}
    for names, allowed in re.findall(r"^\| (`.*?) \|.*\| ([^|]+) \|$", table, re.MULTILINE):
        rooms = [name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`([\w/.]+)`", names)]
        words = set(re.split(r", | except ", allowed)) - {"nothing"}
        if "all above" in words:
            words = set(found) ^ (words - {"all above"})
        found |= {room: words - {room} for room in rooms if room in ROOMS}
    return found


def test_the_page_of_the_design_has_the_same_table():
    assert documented((ROOT / "docs" / "design.md").read_text(encoding="utf-8")) == ROOMS


def test_every_file_of_slow_tests_exists():
    assert [name for name in SLOW_FILES if not (ROOT / "tests" / name).exists()] == []
    assert len(set(SLOW_FILES)) == len(SLOW_FILES)


def part_calls(source: str) -> set[str]:
    """The parts of a model that a source calls, as `pmd` in `model.pmd.decode(…)`."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func
        while isinstance(name, ast.Attribute):
            found.add(name.attr)
            name = name.value
    return found & MODEL_PARTS


def test_only_models_call_the_parts_of_a_model():
    outside = {module: path for module, path in MODULES.items() if module.partition(".")[0] != "models"}
    found = {module: part_calls(path.read_text()) for module, path in outside.items()}
    assert {module: parts for module, parts in found.items() if parts} == {}
    assert part_calls("x = model.encoder(a)\ny = model.pmd.decode(b)\nz = config.encoder") == {"encoder", "pmd"}


def test_imports_form_no_cycle():
    graph = {module: imports(path.read_text(), at_start=True) - {module} for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which lists the modules


@pytest.mark.parametrize("directory", SOURCES)
def test_files_are_short(directory):
    paths = [path for path in sorted((ROOT / directory).rglob("*")) if path.suffix in (".py", ".sh")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert lengths and {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_imports_are_found():
    source = """
import rice_jax.files
from rice_jax import types
from rice_jax.eval import metrics, CUTOFFS
from rice_jax.eval.results import Row
import numpy
def late():
    from rice_jax.pages.report import render
class Early:
    from rice_jax.config import Config
"""
    early = {"files", "types", "eval.metrics", "eval", "eval.results", "config"}
    assert imports(source) == early | {"pages.report"}
    assert imports(source, at_start=True) == early


@pytest.mark.parametrize(
    ("module", "imported", "wrong"),
    [
        ("eval.metrics", {"eval.ranking", "types"}, []),
        ("eval.metrics", {"pages.tables", "tasks"}, ["pages.tables", "tasks"]),
        ("recognition.engine", {"eval.calibration", "eval.metrics"}, ["eval.metrics"]),
        ("pages.timeline", {"recognition.recognizer"}, []),
        ("pages.report", {"recognition.recognizer"}, ["recognition.recognizer"]),
        ("types", {"config"}, ["config"]),
        ("main", {"tasks", "serving"}, []),
        ("models.create", {"main"}, ["main"]),
        ("attic.old", {"types"}, ["types"]),
    ],
)
def test_what_is_forbidden(module, imported, wrong):
    assert forbidden(module, imported) == wrong


def test_a_cycle_is_found():
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()
