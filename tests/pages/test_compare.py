import dataclasses
import json
import shutil

import numpy as np
import pytest

from rice_jax.eval import metrics, ranking
from rice_jax.eval.results import Row, write_rankings, write_results
from rice_jax.pages import compare
from rice_jax.types import DataError
from tests.pages.browser import browser
from tests.pages.reports import EVIL, LOG, evaluated

ABOUT = {
    "step": 6,
    "query": "lpr4m/query",
    "gallery": "lpr4m/gallery",
    "num_frames": 3,
    "rankings": dataclasses.asdict(Row(6)),
}


def write_run(workdir, ranks, *, data_dir=None, shop=None, log=(), products=None):
    """A workdir with a ranking of those ranks, of a shop's queries or of two galleries that do not exist."""
    num = len(ranks)
    ranked = ranking.Ranking(
        query_ids=tuple(f"q{i}" for i in range(num)),
        gallery_ids=tuple(f"g{i % 2}" for i in range(num)),
        truth_ranks=tuple((rank,) if rank else () for rank in ranks),
        gallery_size=np.full(num, 9),
        truths=tuple((product,) for product in products or "a" * num),
        top=tuple((("a", 0.5), ("b", 0.25)) if rank == 1 else (("b", 0.5), ("a", 0.25)) for rank in ranks),
        images=tuple(("a", "b") if rank == 1 else ("b", "a") for rank in ranks),
    )
    if shop:
        ranked = dataclasses.replace(evaluated(shop)[0], truth_ranks=tuple((rank,) for rank in ranks))
    result = metrics.evaluate(ranked, num_queries=num + 2)
    about = ABOUT | ({"data_dir": str(data_dir)} if data_dir else {})
    write_results(workdir / "results.json", {Row(0): result, Row(6): result}, about)
    write_rankings(workdir / "rankings.jsonl", ranked)
    if log:
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return workdir


def test_it_counts_what_changed(tmp_path):
    first = write_run(tmp_path / "first", [1, 1, 1, 2, 0, 3, 1, 1], log=LOG)
    second = write_run(tmp_path / "second", [1, 1, 2, 1, 1, 3, 1, 1])
    compare.write_comparison(tmp_path / "compare.html", [first, second])
    text = (tmp_path / "compare.html").read_text()
    assert "<td>second</td><td>4</td><td>2</td><td>1</td><td>1</td>" in text
    assert "3 of 8 queries have a true image" in text and text.count("<article") == 3
    assert text.count('["gained"]') == 2 and text.count('["lost"]') == 1
    # One more of eight is gained; of ten queries, as two were not ranked.
    assert "+10.0<small>-20.0 to +40.0*</small>" in text
    assert "<th>mAP</th><th>MRR</th><th>nDCG@10</th>" in text and "<th>mAP minus first’s</th>" in text
    # 1/2 more, 1/2 less, and 1 more where there was no truth.
    assert "+10.0<small>-10.0 to +35.0*</small>" in text
    assert "no picture" in text, "the runs do not tell where the data set is"
    assert "Accuracy in the batch" in text, "though only one run has a log"


def test_rankings_of_version_0_2_have_no_map(tmp_path):
    runs = [write_run(tmp_path / name, [1, 2, 3]) for name in ("first", "second")]
    for run in runs[:1]:
        lines = [json.loads(line) for line in (run / "rankings.jsonl").read_text().splitlines()]
        old = [{name: value for name, value in line.items() if name != "truth_ranks"} for line in lines]
        (run / "rankings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    compare.write_comparison(tmp_path / "compare.html", runs)
    text = (tmp_path / "compare.html").read_text()
    assert text.count("+0.0<small>") == 1, "rank-1"


def test_differences_over_livestreams(tmp_path, monkeypatch):
    for module in (metrics, compare):
        monkeypatch.setattr(module, "MIN_GALLERIES", 2)
    first = write_run(tmp_path / "first", [1, 1, 1, 2, 0, 3, 1, 1])
    second = write_run(tmp_path / "second", [1, 1, 2, 1, 1, 3, 1, 1])
    compare.write_comparison(tmp_path / "compare.html", [first, second])
    # Of gallery g0 one more of four is lost, one gained; of g1 one gained. Of ten queries, as two were not ranked.
    assert "+10.0<small>+0.0 to +20.0</small>" in (tmp_path / "compare.html").read_text()


def test_differences_over_products_of_few_livestreams(tmp_path, monkeypatch):
    for module in (metrics, compare):
        monkeypatch.setattr(module, "MIN_GALLERIES", 4)
    first = write_run(tmp_path / "first", [1, 1, 1, 2, 0, 3, 1, 1], products="abcdabcd")
    second = write_run(tmp_path / "second", [1, 1, 2, 1, 1, 3, 1, 1], products="abcdabcd")
    compare.write_comparison(tmp_path / "compare.html", [first, second])
    # Products a and d gain one of their two queries, c loses one. Of ten queries, as two were not ranked. Four products
    # that are drawn lose two queries or more in 5 percent of the draws, and gain four in 6.
    assert "+10.0<small>-20.0 to +40.0</small>" in (tmp_path / "compare.html").read_text()
    for path, ranks in ((first, [1, 1, 1, 2, 0, 3, 1, 1]), (second, [1, 1, 2, 1, 1, 3, 1, 1])):
        write_run(path, ranks, products="aabbccdd")  # each in both galleries: eight products, and not four
    compare.write_comparison(tmp_path / "compare.html", [first, second])
    assert "+10.0<small>-20.0 to +40.0</small>" in (tmp_path / "compare.html").read_text()


def test_pictures_are_shown_if_the_data_set_is_there(evil_shop, tmp_path):
    runs = [
        write_run(tmp_path / name, ranks, data_dir=evil_shop, shop=evil_shop)
        for name, ranks in [("first", [1, 2, 1, 1]), ("second", [1, 1, 2, 1])]
    ]
    compare.write_comparison(tmp_path / "with.html", runs)
    assert "no picture" not in (tmp_path / "with.html").read_text()
    for run in runs:
        write_run(run, [1, 2, 1, 1], data_dir=tmp_path / "gone", shop=evil_shop)
    compare.write_comparison(tmp_path / "without.html", runs)
    assert "0 of 4 queries" in (tmp_path / "without.html").read_text()


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / side / "run", [1, 2]) for side in "ab"]
    compare.write_comparison(tmp_path / "compare.html", runs)
    assert all(str(run) in (tmp_path / "compare.html").read_text() for run in runs)


def test_runs_that_cannot_be_compared(tmp_path):
    run, other = write_run(tmp_path / "run", [1, 2]), write_run(tmp_path / "other", [1, 2, 3])
    page = tmp_path / "compare.html"
    with pytest.raises(DataError, match="found 1 runs to compare, expected two or more: rice compare RUN1 RUN2"):
        compare.write_comparison(page, [run])
    with pytest.raises(DataError, match="other: found other queries or galleries .3 queries. than in run .2."):
        compare.write_comparison(page, [run, other])
    with pytest.raises(FileNotFoundError, match="nowhere/results.json: not found; .*rice eval"):
        compare.write_comparison(page, [run, tmp_path / "nowhere"])
    detector = shutil.copytree(run, tmp_path / "detector")
    (detector / "results.json").write_text('{"about": {"step": 6}, "results": {"after 6 steps": {"AP": 0.5}}}')
    with pytest.raises(DataError, match="detector/results.json: found no results of retrieval"):
        compare.write_comparison(page, [run, detector])
    assert not page.exists()


@pytest.mark.parametrize("file", ["results.json", "rankings.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("damage", [lambda x: x[:-9], lambda x: b"\xff\n" + x, lambda x: b"[1, 2]\n"])
def test_a_damaged_file_is_named(tmp_path, file, damage):
    run, other = write_run(tmp_path / "run", [1, 2]), write_run(tmp_path / "other", [1, 2])
    path = other / file
    if not path.exists():
        path.write_text('{"step": 1, "loss": 1.0}\n')
    path.write_bytes(damage(path.read_bytes()))
    if file == "metrics.jsonl" and not path.read_bytes().startswith(b"\xff"):
        return  # a run's last line may be cut
    with pytest.raises(DataError, match=f"{path}.* is damaged") as caught:
        compare.write_comparison(tmp_path / "compare.html", [run, other])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["results.json", "rankings.jsonl"])
def test_an_empty_file_is_named(tmp_path, file):
    run, other = write_run(tmp_path / "run", [1, 2]), write_run(tmp_path / "other", [1, 2])
    (other / file).write_bytes(b"")
    with pytest.raises(DataError, match=f"{other / file}: .*is empty|other: found other queries"):
        compare.write_comparison(tmp_path / "compare.html", [run, other])


def test_in_a_browser(tmp_path):
    name = EVIL.replace("/", "_")
    runs = [write_run(tmp_path / run, ranks) for run, ranks in [(name, [1, 1, 2, 2, 1]), ("b", [1, 2, 1, 1, 1])]]
    compare.write_comparison(tmp_path / "compare.html", runs)
    shown = "return [...document.querySelectorAll('.card')].filter(card => card.checkVisibility()).length"
    choose = "const s = document.getElementsByName('run1')[0]; s.value = arguments[0];"
    choose += "s.dispatchEvent(new Event('input', {bubbles: true}));" + shown
    with browser(tmp_path / "profile") as driver:
        driver.get((tmp_path / "compare.html").as_uri())
        assert driver.title.startswith(name[:20])
        assert [driver.execute_script(choose, change) for change in ("", "gained", "lost")] == [3, 2, 1]
        assert driver.get_log("browser") == []
