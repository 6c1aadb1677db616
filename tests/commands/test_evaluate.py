"""The command `rice eval CLIPS.csv`, in this process."""

import dataclasses
import json
import logging
import re
import shutil

import pytest

from rice_jax import cli
from rice_jax.commands import evaluate
from rice_jax.index.store import read_index, write_index
from rice_jax.index.update import build_index
from tests.shop import png, write_mp4

SECONDS = 6  # that each product is shown


@pytest.fixture(autouse=True)
def leave_the_users_cache_alone(monkeypatch):
    monkeypatch.setattr(evaluate, "keep_compiled", lambda: None)


@pytest.fixture(scope="module")
def films(live_shop, tmp_path_factory):
    """A film that shows eight products and two pictures of no product, and the labels of its parts of two seconds."""
    directory = tmp_path_factory.mktemp("films")
    write_mp4(directory / "film.mp4", live_shop.pictures[:10], SECONDS)
    lines = ["clip,product,start,end,film"]
    for place in range(10):
        name = f"p{place}" if place < 8 else ""
        lines += [
            f"film.mp4,{name},{start},{start + 2},take {start % 3}" for start in range(6 * place, 6 * place + 6, 2)
        ]
    (directory / "clips.csv").write_text("\n".join(lines))
    return directory


@pytest.fixture
def index(live_shop, tmp_path):
    return shutil.copytree(live_shop.directory, tmp_path / "index")


def run(capsys, *arguments):
    cli.main(["eval", *map(str, arguments)])
    return capsys.readouterr().out


def test_clips_are_ranked_named_and_calibrate_the_index(films, index, tmp_path, capsys):
    before = read_index(index).about.calibration
    page, numbers = tmp_path / "out.html", tmp_path / "out.json"
    text = run(
        capsys, films / "clips.csv", f"--index={index}", f"--report={page}", f"--json={numbers}", "--max_wrong=0.2"
    )
    assert text.startswith("30 clips of 3 films, 6 of them without a product of the shop; 8 products\n")
    assert "calibrated on 24 clips that show a product" in text
    found = json.loads(numbers.read_text())
    present, calibrated = found["results"]
    assert (present["name"], present["ranked_by"]) == ("present", "mean")
    assert (calibrated["name"], calibrated["ranked_by"]) == ("calibrated", "frames")
    assert present["score"]["num_queries"] == 24 and present["score"]["rank"]["rank-1"] > 0.9, "the film is compressed"
    for result in found["results"]:
        counts = result["naming"]
        assert sum(counts[name] for name in ("right", "wrong", "silent", "none")) == 30
    assert found["suggested"]["wrong_share"] <= 0.2
    assert found["curve"][0]["min_confidence"] == 0 and found["curve"][0]["silent"] == 0
    assert len(found["clips"]) == 30 and found["unusable"] == []
    after = read_index(index).about.calibration
    assert after != before and dataclasses.asdict(after) == calibrated["calibration"]
    assert (after.num_clips, after.source) == (24, str(films / "clips.csv"))
    html = page.read_text(encoding="utf-8")
    assert "Rank-k by product" in html and "--min_confidence=" in html and "Named wrongly: " in html
    # What the tables say is what a second evaluation finds.
    again = run(capsys, films / "clips.csv", f"--index={index}", "--keep_calibration", f"--json={numbers}")
    assert "calibrated on" not in again and read_index(index).about.calibration == after
    [now] = json.loads(numbers.read_text())["results"]
    assert now["naming"] == calibrated["naming"] and now["score"] == calibrated["score"]
    least = found["suggested"]["min_confidence"]
    run(
        capsys,
        films / "clips.csv",
        f"--index={index}",
        f"--min_confidence={least}",
        "--keep_calibration",
        f"--json={numbers}",
    )
    [strict] = json.loads(numbers.read_text())["results"]
    assert {name: strict["naming"][name] for name in ("right", "wrong", "silent", "none")} == {
        name: found["suggested"][name] for name in ("right", "wrong", "silent", "none")
    }


def test_products_count_and_not_their_pictures(films, index, tmp_path, capsys):
    """With the first four pictures as one product, each clip of theirs is right if any of them is the best."""
    shop = read_index(index)
    write_index(index, dataclasses.replace(shop, product_ids=["p0"] * 4 + shop.product_ids[4:]))
    labels = (films / "clips.csv").read_text()
    for name in ("p1", "p2", "p3"):
        labels = labels.replace(f",{name},", ",p0,")
    path, numbers = films / "products.csv", tmp_path / "out.json"
    path.write_text(labels)
    assert "; 5 products" in run(capsys, path, f"--index={index}", f"--json={numbers}")
    result = json.loads(numbers.read_text())["results"][0]
    assert result["score"]["rank"]["rank-5"] == 1, "ranks end with the number of products"
    assert result["score"]["chance"]["rank-1"] == pytest.approx(1 / 5)


def test_a_calibration_of_own_clips_survives_an_update(films, index, live_shop, tmp_path, capsys):
    run(capsys, films / "clips.csv", f"--index={index}")
    own = read_index(index).about.calibration
    (tmp_path / "new" / "a").mkdir(parents=True)
    (tmp_path / "new" / "a" / "p9.png").write_bytes(png(live_shop.pictures[9]))
    updated = build_index(tmp_path / "new", out=index)
    assert "p9" in updated.image_ids and updated.about.calibration == own


def test_clips_that_cannot_be_used_are_listed_after_all_others(films, index, tmp_path, capsys):
    labels = (films / "clips.csv").read_text().splitlines()[:4]
    bad = ["nowhere.mp4,p1,,", "film.mp4,p1,1000,1001", "film.mp4,p1,0.1,0.2", "clips.csv,p1,,"]
    path = films / "some.csv"
    path.write_text("\n".join([*labels, *bad]))
    with pytest.raises(SystemExit) as caught:
        run(capsys, path, f"--index={index}")
    assert "3 clips of" in capsys.readouterr().out
    title, *lines = caught.value.code.splitlines()
    assert title == "DataError: 4 of 7 clips cannot be used; all others have been evaluated:"
    assert sorted(line.strip().split(": ", 1)[0] for line in lines) == [f"{path}:{line}" for line in (5, 6, 7, 8)]
    text = "\n".join(lines)
    for reason in (
        "nowhere.mp4: does not exist",
        f"begins at second 1000, but {films / 'film.mp4'} ends at 60",
        "is too short to hold a frame; lower --interval_seconds (1)",
        "clips.csv: cannot be decoded",
    ):
        assert reason in text


def test_a_clip_that_ends_after_its_film_is_named(films, index, tmp_path, capsys, caplog):
    path = films / "late.csv"
    path.write_text("clip,product,start,end\nfilm.mp4,p1,55,60.5\nfilm.mp4,p1,50,90")
    logging.getLogger("rice_jax").addHandler(caplog.handler)  # whose records the command keeps from the root
    assert "2 clips of" in run(capsys, path, f"--index={index}")
    late = [record.getMessage() for record in caplog.records if "used up to there" in record.getMessage()]
    assert late == [f"{path}:3: ends at second 90, but {films / 'film.mp4'} at 60; used up to there"]


@pytest.mark.parametrize("num, shown", [(7, "7 clips show"), (1, "1 clip shows")])
def test_few_clips_leave_the_calibration_as_it_is(films, index, tmp_path, capsys, num, shown):
    before = read_index(index).about.calibration
    (films / "few.csv").write_text("\n".join((films / "clips.csv").read_text().splitlines()[: num + 1]))
    text = run(capsys, films / "few.csv", f"--index={index}", "--gallery=a")
    assert f"keeps its calibration, as only {shown} a product; 20 or more are needed" in text
    assert "; 6 products" in text
    assert read_index(index).about.calibration == before


@pytest.mark.parametrize(
    "labels, flags, message",
    [
        ("clip,product\nfilm.mp4,\n", [], "DataError: found no clip with a product among 1"),
        ("clip,product\nfilm.mp4,p99\n", [], "DataError: 1 clip shows a product that the index does not have"),
        ("clip,product\nfilm.mp4,p7\n", ["--gallery=a"], "found the product 'p7', expected the id of one in"),
        ("clip,product\nfilm.mp4,p1,x\n", [], r"wrong\.csv:2: found 3 values, expected 2"),
        (
            "clip,product\nnowhere.mp4,p1\n",
            [],
            r"1 of 1 clips cannot be used:\n.*wrong\.csv:2: .*nowhere\.mp4: does not",
        ),
        ("clip,product\nfilm.mp4,p1\n", ["--gallery=z"], "DataError: found no gallery 'z' in the index, which has 2"),
        (
            "clip,product,start,end\nfilm.mp4,p99,,\nfilm.mp4,p1,5,4\nfilm.mp4,p1,1,2,3\n",
            [],
            r"2 lines are wrong; .*\n.*csv:3: .*\n.*csv:4: found 5 values.*\n1 clip shows .*:\n.*csv:2: .* 'p99'",
        ),
    ],
)
def test_what_is_wrong_is_said(films, index, capsys, labels, flags, message):
    path = films / "wrong.csv"
    path.write_text(labels)
    with pytest.raises(SystemExit) as caught:
        run(capsys, path, f"--index={index}", *flags)
    assert re.search(message, caught.value.code)


@pytest.mark.parametrize("flag", ["--report", "--json"])
def test_the_labels_are_not_overwritten(tmp_path, flag, capsys):
    labels = tmp_path / "clips.csv"
    labels.write_text("clip,product\nfilm.mp4,mug\n")
    for file, message in ((labels, "holds the labels"), (tmp_path, "is a directory")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["eval", str(labels), "--index=x", f"{flag}={file}"])
        assert f"{flag}={file}: {message}" in capsys.readouterr().err
    assert labels.read_text().startswith("clip,product")


def test_one_file_for_two_outputs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["clips.csv", "--index=index", f"--report={tmp_path / 'o'}", f"--json={tmp_path / 'o'}"])
    assert "--report and --json: found" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_costs_no_calibration(films, index, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert read_index(index).about.calibration.num_clips != 24
    with pytest.raises(SystemExit, match="NotADirectoryError|FileExistsError"):
        run(capsys, films / "clips.csv", f"--index={index}", f"--report={tmp_path / 'file' / 'page.html'}")
    assert read_index(index).about.calibration.num_clips == 24


def test_an_index_that_cannot_be_written_costs_no_results(films, index, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system", str(index))

    monkeypatch.setattr(evaluate, "calibrate_index", refuse)
    found, page = tmp_path / "found.json", tmp_path / "page.html"
    with pytest.raises(SystemExit, match="Read-only file system"):
        run(capsys, films / "clips.csv", f"--index={index}", f"--json={found}", f"--report={page}")
    assert json.loads(found.read_text())["clips"] and page.stat().st_size


def test_both_names_and_both_forms_of_the_command(capsys):
    for arguments in (["eval", "x.csv", "--help"], ["evaluate", "x.csv", "--help"], ["eval", "--index=x", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert not stop.value.code and "usage: rice eval CLIPS.csv --index=DIR" in capsys.readouterr().out
    cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert "usage: rice eval --config=NAME_OR_FILE" in text and "rice eval CLIPS.csv --index=DIR" in text
