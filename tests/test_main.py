"""The program as a user runs it, from the command line, on data built from raw files."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from rice_jax.eval.results import PIXEL_RANKINGS, PIXELS, Row, read_rankings, read_results
from rice_jax.files import locked
from rice_jax.pages.compare import write_comparison
from rice_jax.parallel.processes import LOCK
from tests.fixtures import LIGHT, ROOT, SIZES, build_shop, command, losses, run, start, wait_for_checkpoint


def test_trains_evaluates_and_reports(reference):
    workdir, result = reference
    assert sorted(losses(workdir)) == [1, 2, 3, 4, 5, 6]
    results = read_results(workdir / "results.json")
    assert list(results) == [PIXELS, Row(0), Row(6)]
    for row in results:
        assert row.label in result.stdout
    assert "chance" in result.stdout
    assert "6 steps of 8 examples are 2.00 epochs of 24 clips" in result.stderr
    assert "step 6/6" in result.stderr and "examples/s" in result.stderr
    assert list((workdir / "tensorboard").iterdir())
    steps = [line for line in map(json.loads, (workdir / "metrics.jsonl").open()) if "loss" in line]
    assert [line["encoder_learning_rate"] for line in steps][:3] == pytest.approx([0, 5e-4, 1e-3]), "a warm-up of 2"
    assert [line["new_learning_rate"] for line in steps][-1] == pytest.approx(0.5e-3 * (1 - np.sqrt(0.5)), rel=1e-4)
    record = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["train"]["total_steps"] == 6
    assert "--config.train.total_steps=6" in record["arguments"]
    assert record["versions"]["jax"] == jax.__version__
    assert record["devices"] == {"platform": "cpu", "kind": "cpu", "mesh": {"data": 1, "fsdp": 1}, "processes": 1}
    assert list(record["data"]) == ["lpr4m/train"] and record["first_step"] == 0
    rankings = (workdir / "rankings.jsonl").read_text().splitlines()
    assert len(rankings) == results[Row(6)].score.num_queries
    pixels = [line["rank"] == 1 for line in read_rankings(workdir / PIXEL_RANKINGS)]
    assert np.mean(pixels) == results[PIXELS].score.rank["rank-1"]
    report = (workdir / "report.html").read_text(encoding="utf-8")
    for text in (
        "after 6 steps",
        "all 4 queries",
        "Loss",
        "Rank-1 while training",
        'class="box true"',
        "4 of them also show where in the frames the decoder",
    ):
        assert text in report
    assert not list(workdir.glob("*.tmp"))


def test_a_published_config_needs_only_paths_and_sizes(tmp_path):
    """`lpr4m` is this one with the data sets of `sample`, and decodes for the device, as a test below does."""
    data_dir = build_shop(tmp_path / "data", num_columns=13)
    small = dict(config="lpr750k", tiny=SIZES, data__num_workers=0, train__total_steps=3)
    result = run(command(data_dir, tmp_path / "run", **small))
    assert result.returncode == 0, result.stderr
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    results = read_results(tmp_path / "run" / "results.json")
    assert list(results) == [Row(0), Row(3)]
    assert results[Row(3)].score.num_queries == 4
    galleries = results[Row(3)].to_dict()["galleries"]
    assert galleries == {"num": 2, "min_size": 4, "mean_size": 4.0, "max_size": 4}


def test_a_finished_run_can_be_run_again_and_evaluated(reference, shop, tmp_path):
    first = reference[1].stdout.replace(str(reference[0]), str(tmp_path / "run"))
    workdir = shutil.copytree(reference[0], tmp_path / "run")
    again = run(command(shop, workdir))
    assert again.returncode == 0, again.stderr
    assert losses(workdir) == losses(reference[0])
    evaluated = run(command(shop, workdir, "--mode=eval"))
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout == again.stdout == first


def test_another_evaluation_overwrites_nothing(reference, shop, tmp_path):
    workdir = shutil.copytree(reference[0], tmp_path / "run")
    files = ["results.json", "rankings.jsonl", "report.html", "calibration.json", "metrics.jsonl"]
    before = {name: (workdir / name).read_bytes() for name in files}
    result = run(command(shop, workdir, "--mode=eval", eval__num_frames=1, eval__score="frames"))
    assert result.returncode == 0, result.stderr
    assert {name: (workdir / name).read_bytes() for name in files} == before
    (directory,) = workdir.glob("eval-*")
    assert sorted(path.name for path in directory.iterdir()) == sorted([*files[:-1], PIXEL_RANKINGS])
    assert result.stdout.endswith(f"\n{directory / 'results.json'}\n")
    assert f"{directory}: has the results of this evaluation" in result.stderr
    assert "num_frames is 1 instead of 10, score is 'frames' instead of None" in result.stderr
    mean, by_frames = (json.loads((own / "rankings.jsonl").read_text().splitlines()[0]) for own in (workdir, directory))
    assert by_frames["top"][-1][1] < 0 < mean["top"][-1][1], "the last image is less similar than the gallery's mean"
    assert all(json.loads((own / "calibration.json").read_text())["scale_by_frames"] for own in (workdir, directory))
    report = (directory / "report.html").read_text(encoding="utf-8")
    assert f"run/{directory.name}" in report and "Loss" in report and "Rank-1 while training" not in report
    assert "ranked by frames" in report and "ranked by frames" not in (workdir / "report.html").read_text("utf-8")
    write_comparison(tmp_path / "compare.html", [workdir, directory])
    assert f"run/{directory.name}, by frames" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_compares_runs_without_a_config(reference, tmp_path):
    workdir, _ = reference
    other = shutil.copytree(workdir, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    program = [sys.executable, "-m", "rice_jax.main", f"--workdir={tmp_path / 'out'}"]
    result = run([*program, "--mode=compare", str(workdir), str(other)])
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "out" / "compare.html")]
    assert "0 of 4 queries have a true image" in (tmp_path / "out" / "compare.html").read_text()
    for arguments, expected in [
        (["--mode=eval"], "Flag --config must have a value"),
        (["--config=configs/sample.py", str(workdir)], f"found '{workdir}', expected only flags"),
    ]:
        result = run([*program, *arguments])
        assert result.returncode != 0 and expected in result.stderr and "Traceback" not in result.stderr


def test_starts_as_a_program_of_its_own(tmp_path):
    """Other tests fork the program, with its imports done."""
    arguments = ["--config", "lpr5m", f"--workdir={tmp_path}"]
    program = [sys.executable, "-m", "rice_jax.main", *arguments]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.startswith("ConfigError: --config=lpr5m: found no such config") and not result.stdout


def test_the_device_can_cut_and_resize_what_the_host_decodes(light_reference, shop, tmp_path):
    workdir, _ = light_reference
    room = dict(data__device_resize_height=200, data__device_resize_width=200)
    result = run(command(shop, tmp_path, tiny=LIGHT, mesh__fsdp=2, **room), devices=8)
    assert result.returncode == 0, result.stderr
    found, expected = losses(tmp_path), losses(workdir)
    assert found.keys() == expected.keys()
    # Pixels are rounded otherwise, which shows more with each update of these large steps.
    assert found[1] == pytest.approx(expected[1], rel=2e-4) and found[2] == pytest.approx(expected[2], rel=1e-3)
    host, device = (read_results(path / "results.json") for path in (workdir, tmp_path))
    assert device.keys() == host.keys()
    assert found != expected, "it did it otherwise"


def test_continues_after_sigkill(light_reference, shop, tmp_path):
    workdir, _ = light_reference
    arguments = command(shop, tmp_path, config="sample_icl", tiny=LIGHT, train__checkpoint_interval_steps=1)
    process = start(arguments)
    wait_for_checkpoint(process, tmp_path)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = run(arguments)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stderr
    assert losses(tmp_path) == losses(workdir), "the very same numbers, from the same examples"


@pytest.mark.parametrize(
    ("flags", "overrides", "expected"),
    [
        ((), {"model__widht": 3}, "config.model.widht: unknown setting, did you mean config.model.width?"),
        ((), {"modle__heads": 3}, "config.modle.heads: unknown setting, did you mean config.model.heads?"),
        ((), {"model": 3}, "config.model: found a group of settings, expected one of them, such as config.model."),
        ((), {"data__batch_size": "many"}, "ConfigError: config.data.batch_size: found 'many', expected int"),
        ((), {"data__batch_size": 0}, "ConfigError: config.data.batch_size: found 0, expected 1 or more"),
        ((), {"task": "rope"}, "config.task: found 'rope', expected one of 'retrieval', 'domains', 'detection'"),
        ((), {"data__domains": "a,b"}, "config.data.domains: found 'a,b' with config.task='retrieval'"),
        ((), {"data__data_dir": "/nowhere"}, "rice build lpr4m --raw_dir RAW --data_dir /nowhere"),
        ((), {"model__heads": 5}, "config.model.width: found 32, expected a multiple of heads (5)"),
        ((), {"data__batch_size": 4000}, "lower config.data.batch_size"),
        ((), {"seed": -1}, "ConfigError: config.seed: found -1, expected 0 to 2147483647"),
        ((), {"optimizer__weight_decay": "nan"}, "config.optimizer.weight_decay: found nan, expected a finite number"),
        ((), {"model__init_from": "/nowhere"}, "/nowhere: found no checkpoint"),
        (("--mode=eval",), {}, "found no checkpoint to evaluate"),
        (("--mode=test",), {}, "should be one of"),
    ],
)
def test_bad_settings_get_one_clear_error(shop, tmp_path, flags, overrides, expected):
    result = run(command(shop, tmp_path / "new" / "run", *flags, **overrides))
    assert result.returncode != 0
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "a failed start leaves no directory behind"


def test_a_batch_that_does_not_divide_is_refused_before_the_first_evaluation(shop, tmp_path):
    result = run(command(shop, tmp_path / "run", data__batch_size=12), devices=8)
    assert result.returncode == 1 and not result.stdout
    assert "config.data.batch_size: found 12, expected a multiple of the 8 devices" in result.stderr
    assert "step 0" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_only_one_program_at_a_time_changes_a_run(reference, shop, tmp_path):
    workdir = shutil.copytree(reference[0], tmp_path / "run")
    with locked(workdir / LOCK):
        for mode in ("train", "eval"):
            result = run(command(shop, workdir, f"--mode={mode}"))
            assert result.returncode == 1
            assert f"ProcessError: {workdir}: is in use by process {os.getpid()} on " in result.stderr
            assert "Traceback" not in result.stderr
    assert losses(workdir) == losses(reference[0])


def test_a_longer_training_goes_on_from_a_finished_one(light_reference, shop, tmp_path):
    workdir = shutil.copytree(light_reference[0], tmp_path / "run")
    result = run(command(shop, workdir, tiny=LIGHT, train__total_steps=8))
    assert result.returncode == 0, result.stderr
    assert "was planned for 6 steps and now has 8" in result.stderr
    before, after = losses(light_reference[0]), losses(workdir)
    assert sorted(after) == list(range(1, 9)) and before.items() <= after.items()


def test_what_is_damaged_is_named_before_the_work(reference, shop, tmp_path):
    workdir = shutil.copytree(reference[0], tmp_path / "run")
    results = workdir / "results.json"
    whole = results.read_text()
    for text in ("", whole[: len(whole) // 2]):
        results.write_text(text)
        result = run(command(shop, workdir, "--mode=eval"))
        assert result.returncode == 1 and f"DataError: {results}: is damaged" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_run_does_not_go_on_with_other_data(reference, shop, tmp_path):
    workdir, data = shutil.copytree(reference[0], tmp_path / "run"), shutil.copytree(shop, tmp_path / "data")
    (features,) = (data / "lpr4m" / "train").glob("*/features.json")
    features.write_text(features.read_text() + "\n")
    result = run(command(data, workdir))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "the training data lpr4m/train has changed since this checkpoint" in result.stderr


def test_workdir_of_another_config(reference, shop):
    workdir, _ = reference
    result = run(command(shop, workdir, optimizer__weight_decay=0.3))
    assert result.returncode != 0
    assert "config.optimizer.weight_decay: checkpoint has 0.1, this run has 0.3" in result.stderr
    assert "another --workdir" in result.stderr
    assert "Traceback" not in result.stderr


def test_weights_of_another_size(reference, shop, tmp_path):
    workdir, _ = reference
    result = run(command(shop, tmp_path, model__init_from=workdir, model__embed_dim=8))
    assert result.returncode != 0
    assert "encoder/projection/kernel: found (32, 16), expected (32, 8)" in result.stderr
    assert "Traceback" not in result.stderr


def test_starts_from_a_run_at_another_picture_size(reference, shop, tmp_path):
    workdir, _ = reference
    overrides = dict(model__init_from=workdir, model__image_size=24, data__resize=26, train__total_steps=3)
    result = run(command(shop, tmp_path, tiny=LIGHT, **overrides))
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path)) == 3
