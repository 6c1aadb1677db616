"""The demo's table: the queries of each seed are paired with those of the untrained model."""

import dataclasses
import os
import shutil
import subprocess

import pytest

from rice_jax.eval.results import PIXELS, Row, write_rankings, write_results
from scripts import demo_table
from tests.eval.evaluations import evaluation
from tests.fixtures import ROOT

RANKED, RESULT = evaluation()  # 60 queries in three galleries, and two that could not be ranked


NUM_PRODUCTS = 20  # three queries show each


def image_id(seed, query):
    return f"{seed}-image-{query % NUM_PRODUCTS}"  # the simulation draws new ids for each seed


def of_seed(seed):
    """The ranking, whose queries show images of this seed."""
    return dataclasses.replace(RANKED, truths=tuple((image_id(seed, query),) for query in range(60)))


def write_attribution(directory, seed, num_products=NUM_PRODUCTS):
    path = directory / "raw" / f"sample-{seed}" / "test" / "attribution.csv"
    path.parent.mkdir(parents=True)
    lines = [f"{image_id(seed, product)},p{product}\n" for product in range(num_products)]
    path.write_text("image_id,product_id\n" + "".join(lines))


def write_run(place, step, first, ranked=RANKED):
    """An evaluation of which the first queries are right."""
    row = Row(step)
    write_results(place / "results.json", {PIXELS: RESULT, row: RESULT}, {"rankings": dataclasses.asdict(row)})
    ranks = tuple((rank,) for rank in [1] * first + [22] * (60 - first))
    write_rankings(place / "rankings.jsonl", dataclasses.replace(ranked, truth_ranks=ranks))


@pytest.fixture
def runs(tmp_path):
    for seed, before, after in ((0, 12, 18), (1, 24, 30)):
        write_run(tmp_path / f"start-{seed}", 0, before, of_seed(seed))
        write_run(tmp_path / f"demo-{seed}", 100, after, of_seed(seed))
        write_attribution(tmp_path, seed)
    return tmp_path


def print_table(runs, *seeds):
    demo_table.main([str(runs), *seeds, "--raw_dir", str(runs / "raw")])


def read_difference(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_the_table(runs, capsys):
    print_table(runs, "0", "1")
    lines = {" ".join(line.split()[:-3]): line.split()[-3:] for line in capsys.readouterr().out.splitlines()[2:-1]}
    shares = {name: cells[0] for name, cells in lines.items()}
    # Of 62 queries, as two could not be ranked.
    assert shares["0: start"] == "19.4" and shares["0: after training"] == "29.0"
    assert shares["1: start"] == "38.7" and shares["1: after training"] == "48.4"
    assert shares["mean: start"] == "29.0" and shares["mean: after training"] == "38.7"
    assert shares["chance"] == f"{100 * RESULT.score.chance['rank-1']:.1f}"
    assert shares["mean: nearest raw pixels"] == f"{100 * RESULT.score.rank['rank-1']:.1f}"


def test_the_difference_is_that_of_the_same_queries(runs, capsys):
    print_table(runs, "0", "1")
    difference = read_difference(capsys).split("  ")
    assert difference[0] == "difference"
    assert [cell.split()[0] for cell in difference[1:] if cell.strip()] == ["+9.7"] * 3


def test_products_are_the_same_for_all_seeds(tmp_path, capsys):
    """Copies of a run, whose images have other ids, say nothing about other products: the interval stays the same."""
    for seed in range(3):
        write_run(tmp_path / f"start-{seed}", 0, 12, of_seed(seed))
        write_run(tmp_path / f"demo-{seed}", 100, 30, of_seed(seed))
        write_attribution(tmp_path, seed)
    print_table(tmp_path, "0")
    one = read_difference(capsys)
    print_table(tmp_path, "0", "1", "2")
    assert read_difference(capsys) == one
    assert "(" in one


def test_an_unknown_image_is_named(runs):
    (runs / "raw" / "sample-1" / "test" / "attribution.csv").unlink()
    with pytest.raises(SystemExit, match="sample-1/test/attribution.csv: is missing; run scripts/demo_table.sh with"):
        print_table(runs, "0", "1")
    write_attribution(runs, 2, NUM_PRODUCTS - 1)
    for name in ("start", "demo"):
        write_run(runs / f"{name}-2", 0, 12, of_seed(2))
    with pytest.raises(SystemExit, match="sample-2/test/attribution.csv: found no image 2-image-19, expected all"):
        print_table(runs, "0", "2")


def test_other_queries_are_refused(runs):
    renamed = dataclasses.replace(of_seed(1), query_ids=tuple(f"other-{query}" for query in RANKED.query_ids))
    write_run(runs / "start-1", 0, 24, renamed)
    with pytest.raises(SystemExit, match="demo-1: found other queries than in start-1, expected these"):
        print_table(runs, "0", "1")


def test_a_missing_run_is_named(runs):
    with pytest.raises(SystemExit, match="start-2/results.json: is missing; run scripts/demo_table.sh with this seed"):
        print_table(runs, "0", "2")


def run_script(directory, name, **environment):
    """Runs a script of a checkout with nothing but scripts."""
    (directory / "scripts").mkdir(exist_ok=True)
    for own in (name, "sample.sh"):
        shutil.copy(ROOT / "scripts" / own, directory / "scripts")
    (directory / "scripts" / "setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\n')
    environment = os.environ | environment
    command = ["bash", f"scripts/{name}"]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["demo.sh", "demo_table.sh", "long_videos.sh"])
def test_runs_of_other_settings_are_not_taken(tmp_path, name):
    run = tmp_path / "runs" / "demo-0"
    run.mkdir(parents=True)
    (run / "report.html").touch()
    (run / "settings.txt").write_text("--config.train.total_steps=400\n")
    done = run_script(tmp_path, name, SEEDS="1 0")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "runs/demo-0/settings.txt: found the settings '--config.train.total_steps=400', expected '': give these, or "
        "delete runs/demo-0\n"
    )


def test_too_few_films_are_refused_at_once(tmp_path):
    done = run_script(tmp_path, "long_videos.sh", VIDEOS="2")
    assert done.returncode == 1 and done.stderr == "VIDEOS=2: expected at least 3, a film of each shop\n"
