"""The measurement of an accelerator, on a CPU."""

import json
import types

import pytest

from scripts import benchmark
from scripts.benchmarks import accelerator
from tests.test_benchmark import arguments


def test_parts_are_benchmarks_with_settings_that_exist(monkeypatch, tmp_path):
    called = []
    for name in ("step", "encode", "attention", "live"):

        def command(overrides, *, name=name, batch=None, config="", **options):
            called.extend((name, benchmark.settings(overrides, config), size) for size in batch or [0])

        command.__name__ = name
        monkeypatch.setattr(benchmark, name, command)
    parts = accelerator.parts(tmp_path, accelerator.BATCHES, accelerator.PICTURES)
    assert parts.pop("input")[0] == "data"
    for part in parts.values():
        benchmark.main(part)
    widths = {(name, config.model.width, config.model.patch_size) for name, config, _ in called if name != "step"}
    sizes = {(768, 32), (768, 16), (1024, 14)}
    assert widths == {(name, *size) for name in ("encode", "attention", "live") for size in sizes}
    steps = [(config.task, config.loss.pmd_weight > 0, size) for name, config, size in called if name == "step"]
    assert {(task, decodes) for task, decodes, _ in steps} == {
        ("retrieval", False),
        ("retrieval", True),
        ("cope", False),
    }
    assert len({size for *_, size in steps}) > 2


def test_results_are_kept_and_failures_named(monkeypatch, tmp_path, capsys):
    small = ["--rounds=1", "--seconds=0.01", *arguments(**{"model.width": 32})]
    parts = {"good": ["attention", "--batch=2"], "bad": ["encode", "--batch=none"], "late": ["encode"]}
    monkeypatch.setattr(accelerator, "parts", lambda *found: parts)
    clock = iter([0.0, 0.0, 0.0, 535.0])
    monkeypatch.setattr(accelerator, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(SystemExit) as stopped:
        accelerator.main([f"--out={tmp_path / 'out'}", *small])
    assert str(stopped.value) == "bad: failed with code 2\nlate: no time was left"
    text = (tmp_path / "out" / "benchmark.txt").read_text()
    assert capsys.readouterr().out == text and "found none, expected numbers" in text
    assert json.loads(next(line for line in text.splitlines() if line.startswith("{")))["rows"]
