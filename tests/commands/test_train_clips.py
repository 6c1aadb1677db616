"""The command `rice train CLIPS.csv`."""

import dataclasses
import json
import shutil
import signal
import sys
import time

import jax
import numpy as np
import pytest

from rice_jax import cli, read_index
from rice_jax.commands import train_clips
from rice_jax.config import Config, MeshConfig
from rice_jax.files import write_lines
from rice_jax.index.catalog import read_shop
from rice_jax.index.store import write_index
from rice_jax.index.update import build_index
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.mesh import create_mesh
from rice_jax.types import DataError
from tests.index.test_store import make_index
from tests.programs import run, start, wait_for
from tests.shop import png, write_mp4


@pytest.fixture(scope="module")
def films(live_shop, tmp_path_factory):
    """Four films of eight products each, and the labels of their parts; a part of each shows none."""
    directory = tmp_path_factory.mktemp("films")
    lines = ["clip,product,start,end"]
    for film in range(4):
        write_mp4(directory / f"{film}.mp4", [live_shop.pictures[(film + row) % 9] for row in range(9)], 3, rate=2)
        for place in range(9):
            row = (film + place) % 9
            lines.append(f"{film}.mp4,{f'p{row}' if row < 8 else ''},{3 * place},{3 * place + 3}")
    (directory / "clips.csv").write_text("\n".join(lines))
    return directory


def test_a_shop_is_listed_with_all_that_its_cells_hold(tmp_path):
    cells = "a title\nof two lines", 'with "quotes", commas', "and\rreturns"
    index = make_index(3)
    index = dataclasses.replace(
        index,
        paths=[str(tmp_path / f"{row}.jpg") for row in range(3)],
        titles=list(cells),
        fields=[{"more": cell} for cell in reversed(cells)],
    )
    write_lines(tmp_path / "pictures.csv", train_clips._catalog(index))
    found = {picture.id: picture for picture in read_shop(tmp_path / "pictures.csv")}
    for row, name in enumerate(index.image_ids):
        assert (found[name].title, str(found[name].path)) == (index.titles[row], index.paths[row])
        assert found[name].fields == index.fields[row] and found[name].product == index.product_ids[row]


def test_a_column_that_two_sources_write_differently_is_listed_once(tmp_path):
    index = make_index(3)
    index = dataclasses.replace(
        index,
        paths=[str(tmp_path / f"{row}.jpg") for row in range(3)],
        fields=[{"Unit price": "1", "color": "red"}, {"unit_price": "2"}, {}],
    )
    write_lines(tmp_path / "pictures.csv", train_clips._catalog(index))
    found = {picture.id: dict(picture.fields) for picture in read_shop(tmp_path / "pictures.csv")}
    listed = [{name: value for name, value in found[name].items() if value} for name in index.image_ids]
    assert listed == [{"Unit price": "1", "color": "red"}, {"Unit price": "2"}, {}]


def test_trains_compares_and_continues_after_kills(films, live_shop, tmp_path):
    out = tmp_path / "run"
    flags = [f"--index={live_shop.directory}", f"--out={out}", "--holdout=0.5"]
    steps = ["--config.train.total_steps=4", "--config.train.checkpoint_interval_steps=1"]
    steps += ["--config.optimizer.warmup_steps=1", "--config.data.num_threads=1", "--config.eval.batch_size=8"]
    command = [sys.executable, "-m", "rice_jax.cli", "train", str(films / "clips.csv"), *flags, *steps]
    process = start(command)
    wait_for(process, "reading video 2 of 4")
    process.kill()
    process.communicate()
    process = start(command)
    deadline = time.monotonic() + 300
    while not (out / "checkpoints" / "1").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL and "reading video 1 of 4" not in errors, "its frames were kept"
    result = run(command)
    assert result.returncode == 0, result.stderr
    assert "reading video" not in result.stderr and "resuming" in result.stderr
    assert result.stderr.count("clips of 8 products to train on; held out:") == 1, "every line is logged once"
    assert "Films held out, by product: " in result.stdout and "difference" in result.stdout
    found = json.loads((out / "clips.json").read_text())
    assert [entry["name"] for entry in found["results"]] == ["before", "after"]
    assert found["about"]["num_clips"] == 18 and found["about"]["num_none"] == 2 and found["about"]["num_films"] == 2
    before, after = (entry["score"]["rank"]["rank-1"] for entry in found["results"])
    assert found["difference"]["rank-1"]["mean"] == pytest.approx(after - before)
    new = read_index(out / "index")
    assert new.product_ids == live_shop.index.product_ids and new.titles == live_shop.index.titles
    assert new.about.fingerprint != live_shop.index.about.fingerprint and new.about.calibration
    assert (out / "report.html").exists() and "Rank-k by product" in (out / "clips.html").read_text()
    # Once it is done, the same command only tells the results again; other labels are refused.
    again = run(command)
    assert again.returncode == 0 and "Films held out, by product: " in again.stdout
    assert json.loads((out / "clips.json").read_text()) == found
    labels = films / "other.csv"
    labels.write_text("\n".join((films / "clips.csv").read_text().splitlines()[:-1]))
    refused = run([*command[:4], str(labels), *command[5:]])
    assert refused.returncode == 1 and "was made of other labels, pictures, or settings" in refused.stderr


def test_both_models_rank_the_products_of_an_index_updated_meanwhile(films, live_shop, tmp_path, monkeypatch):
    index, out = shutil.copytree(live_shop.directory, tmp_path / "index"), tmp_path / "run"

    def update(*_):
        shutil.copytree(live_shop.index.about.checkpoint, out, dirs_exist_ok=True)
        (out / "index").mkdir()  # of the run's weights before it was trained further
        earlier = dataclasses.replace(live_shop.index.about, fingerprint="0" * 64)
        write_index(out / "index", dataclasses.replace(live_shop.index, about=earlier))
        (tmp_path / "new" / "a").mkdir(parents=True)
        (tmp_path / "new" / "a" / "p9.png").write_bytes(png(live_shop.pictures[9]))
        build_index(tmp_path / "new", out=index)

    monkeypatch.setattr(train_clips, "prepare", lambda *_: Config())
    monkeypatch.setattr(train_clips, "_train", update)
    cli.main(["train", str(films / "clips.csv"), f"--index={index}", f"--out={out}", "--holdout=0.5"])
    assert "p9" in read_index(out / "index").product_ids
    found = json.loads((out / "clips.json").read_text())
    before, after = (entry["score"] for entry in found["results"])
    assert before == after, "the model is the same, and so are the products"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["clips.csv", "--index=nowhere", "--out=run"], "FileNotFoundError: nowhere/index.parquet: found no index"),
        (["nowhere.csv", "--index={index}", "--out=run"], r"FileNotFoundError: nowhere\.csv: is no file"),
        (["one.csv", "--index={index}", "--out=run"], "DataError: found clips of one film, a.mp4, expected at least"),
        (["none.csv", "--index={index}", "--out=run"], "DataError: .*: found no clip with a product among those held"),
    ],
)
def test_what_cannot_work_gets_one_line(live_shop, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.csv").write_text("clip,product\na.mp4,p1\nb.mp4,p1\n")
    (tmp_path / "one.csv").write_text("clip,product,start\na.mp4,p1,1\na.mp4,p1,2\n")
    films = [f"{name}.mp4,{'p1' if name == 'a' else ''}" for name in "ab"]
    (tmp_path / "none.csv").write_text("\n".join(["clip,product", *films]))
    with pytest.raises(SystemExit, match=message):
        cli.main(["train", *(argument.format(index=live_shop.directory) for argument in arguments)])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--holdout=0"],
        ["--workdir=x"],
        ["stray"],
        ["--holdout=2"],
        ["--interval_seconds=0"],
        ["--mode=eval"],
        ["--x=1"],
    ],
)
def test_flags_that_do_not_belong_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "clips.csv", "--index=x", "--out=y", *flags])
    assert "usage: rice train CLIPS.csv --index=DIR --out=RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.train.steps=5"], "ConfigError: config.train.steps: unknown setting"),
        (["--config.train.total_steps=many"], "ConfigError: config.train.total_steps: found 'many', expected int"),
        (["--config.train.total_steps=0"], "ConfigError: config.train.total_steps: found 0, expected 1 or more"),
        (
            ["--config.data.batch_size=500"],
            "ConfigError: config.data.batch_size: found 500, expected at most 24, the n",
        ),
        (["--config.train.total_steps=5", "--config.optimizer.warmup_steps=5"], "found 5, expected more than config.o"),
        (["--config.task=detection"], "ConfigError: config.task: found 'detection', expected 'retrieval' to train on "),
    ],
)
def test_wrong_settings_are_refused_before_a_video_is_read(films, live_shop, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(train_clips, "write_data_sets", lambda *_, **__: pytest.fail("a video was read"))
    monkeypatch.setattr(train_clips.jax, "device_count", lambda: 1)
    out = tmp_path / "run"
    with pytest.raises(SystemExit, match=message):
        cli.main(["train", str(films / "clips.csv"), f"--index={live_shop.directory}", f"--out={out}", *flags])
    assert not out.exists()


def test_what_the_comparison_needs_is_checked_before_a_video_is_read(live_shop):
    index = live_shop.index
    gone = dataclasses.replace(index, about=dataclasses.replace(index.about, checkpoint="gone"))
    with pytest.raises(CheckpointError, match="gone: found no checkpoint"):
        train_clips.check_comparison(gone)
    small = dataclasses.replace(index, projection=np.eye(16, 12, dtype=np.float32), vectors=index.vectors[:, :12])
    with pytest.raises(DataError, match="found 8 pictures, expected at least as many as dimensions"):
        train_clips.check_comparison(small)
    train_clips.check_comparison(index)


@pytest.fixture
def makings(monkeypatch):
    """How the data sets of a command that ends before its training, on one device, are made."""
    found = []
    monkeypatch.setattr(train_clips, "write_data_sets", lambda *values, **_: found.append(values[4]))
    monkeypatch.setattr(train_clips, "_train", lambda *_: sys.exit(3))
    monkeypatch.setattr(train_clips.jax, "device_count", lambda: 1)
    monkeypatch.setattr(train_clips, "create_mesh", lambda _: create_mesh(MeshConfig(), jax.devices()[:1]))
    return found


def test_frames_are_stored_for_the_size_that_is_trained(films, live_shop, tmp_path, makings):
    arguments = [f"--index={live_shop.directory}", f"--out={tmp_path / 'run'}", "--config.data.resize=40"]
    with pytest.raises(SystemExit, match="3"):
        cli.main(["train", str(films / "clips.csv"), *arguments])
    assert makings[0].short_side == 45


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], 10),
        (["--config.train.total_steps=1000"], 10),
        (["--config.train.total_steps=40"], 4),
        (["--config.train.total_steps=4", "--distributed=no"], 0),
        (["--config.train.total_steps=40", "--config.optimizer.warmup_steps=7"], 10),
    ],
)
def test_the_warm_up_is_at_most_a_tenth_of_the_steps(flags, expected):
    config = Config()
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=10))
    assert train_clips.shorten_warmup(config, flags).optimizer.warmup_steps == expected


@pytest.mark.usefixtures("makings")
def test_few_clips_for_a_calibration_are_told_at_the_start(films, live_shop, tmp_path, capsys):
    arguments = [f"--index={live_shop.directory}", f"--out={tmp_path / 'run'}", "--config.train.total_steps=4"]
    with pytest.raises(SystemExit, match="3"):
        cli.main(["train", str(films / "clips.csv"), *arguments])
    [line] = [line for line in capsys.readouterr().err.splitlines() if "confidences" in line]
    assert "only 8 of the clips held out show a product, and a calibration needs 20" in line
    assert train_clips.few_clips(1).startswith("only 1 of the clips held out shows a product, ")
    assert "warmup_steps = 0" in (tmp_path / "run" / "config.py").read_text()


def test_both_forms_have_a_help(capsys):
    cli.main(["train", "--help"])
    assert "rice train CLIPS.csv --index=DIR --out=RUN;" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["train", "clips.csv", "--help"])
    assert "usage: rice train CLIPS.csv" in capsys.readouterr().out
