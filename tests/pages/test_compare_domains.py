"""The page that compares runs between domains."""

import html
import shutil

import pytest

from rice_jax.eval.domain_leads import mean_lead, read_domain_run
from rice_jax.pages import compare
from rice_jax.types import DataError
from tests.pages import markup
from tests.pages.browser import browser, resize
from tests.pages.items import build_items, rank, read_domains, write_run
from tests.pages.reports import EVIL
from tests.pages.test_compare import write_run as write_retrieval_run
from tests.pages.test_report_in_browser import choose


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("items")
    data_dir = build_items(directory)
    items, _ = read_domains(data_dir)
    return [write_run(directory / f"run{seed}", rank(items, seed, 2.0 - seed), data_dir) for seed in (0, 1)]


def test_the_page_holds_the_differences(runs, tmp_path):
    compare.write_comparison(tmp_path / "compare.html", runs)
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert markup.problems(text) == []
    first, second = (read_domain_run(run).asked() for run in runs)
    for groups in ([[pair] for pair in first], [[pair for pair in first if pair[0] == "retrieval"]]):
        for pairs in groups:
            lead = mean_lead([second[pair] for pair in pairs], [first[pair] for pair in pairs])
            assert f"<small>{100 * lead.mean:+.1f} ({100 * lead.low:+.1f} to {100 * lead.high:+.1f})*</small>" in text
    changed = sum(int((first[pair].hits != second[pair].hits).sum()) for pair in first if pair[0] == "retrieval")
    assert f"{changed} of 48 queries have an item" in text and text.count("<article") == changed > 0
    assert text.count('["gained"]') + text.count('["lost"]') == changed
    assert html.escape(EVIL).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text and EVIL not in text
    assert 'data-picture="0"' in text


def test_without_the_data_the_page_has_no_pictures(runs, tmp_path, caplog):
    gone = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for run in gone:
        path = run / "results.json"
        path.write_text(path.read_text().replace(str(runs[0].parent / "data"), str(tmp_path / "nowhere")))
    compare.write_comparison(tmp_path / "compare.html", gone)
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "data-picture=" not in text.partition("<script")[0] and "no picture" in text
    assert "the page has no pictures" in caplog.text


def test_data_that_were_built_again_are_refused(runs, tmp_path):
    """Items are found by id, and others may have taken the ids."""
    data_dir = build_items(tmp_path, num_products=4)
    moved = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for run in moved:
        path = run / "results.json"
        path.write_text(path.read_text().replace(str(runs[0].parent / "data"), str(data_dir)))
    with pytest.raises(DataError, match=f"{data_dir}: found other data sets than those that were evaluated"):
        compare.write_comparison(tmp_path / "compare.html", moved)
    for run in moved:  # version 0.2 did not record what was evaluated
        path = run / "results.json"
        path.write_text(path.read_text().replace('"evaluation"', '"other"'))
    with pytest.raises(DataError, match=r"found no item \S+, expected that of the evaluation: the data set is not the"):
        compare.write_comparison(tmp_path / "compare.html", moved)


def test_runs_of_other_tasks_are_refused(runs, tmp_path):
    other = write_retrieval_run(tmp_path / "retrieval", [1, 1, 2])
    with pytest.raises(DataError, match="found no results between domains"):
        compare.write_comparison(tmp_path / "compare.html", [runs[0], other])
    with pytest.raises(DataError, match="found no results of retrieval"):
        compare.write_comparison(tmp_path / "compare.html", [other, runs[0]])


def test_in_a_browser(runs, tmp_path):
    compare.write_comparison(tmp_path / "compare.html", runs)
    with browser(tmp_path / "profile") as driver:
        driver.get((tmp_path / "compare.html").as_uri())
        everything = choose(driver, "run1", "")
        assert choose(driver, "run1", "gained") + choose(driver, "run1", "lost") == everything > 0
        assert choose(driver, "pair", "pages to videos") < everything
        for width, scheme in ((360, "dark"), (1200, "light")):
            resize(driver, width, 800, scheme)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert driver.get_log("browser") == []
