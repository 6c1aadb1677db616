"""The report of a run between domains."""

import html
import json
import re

import numpy as np
import pytest

from rice_jax.eval.results import Row, read_rankings
from rice_jax.pages import domains
from tests.pages import markup
from tests.pages.browser import browser, resize
from tests.pages.items import build_items, rank, read_domains, write_run
from tests.pages.reports import EVIL, LOG
from tests.pages.test_report_in_browser import CONTRAST, PICTURES, choose


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return build_items(tmp_path_factory.mktemp("items"))


def write(path, data_dir, **kwargs):
    items, shelf = read_domains(data_dir)
    ranked = rank(items, **kwargs)
    results = {Row(0): ranked.score(), Row(6): ranked.score()}
    log = [line | {"retrieval/pages-to-videos-rank-1": 0.5} if "loss" not in line else line for line in LOG]
    evaluation = domains.DomainEvaluation(f"run {EVIL}", results, Row(6), ranked, log)
    domains.write_domain_report(path, evaluation, shelf)
    return path.read_text(encoding="utf-8"), ranked


def test_the_page_holds_what_was_found(data_dir, tmp_path):
    text, ranked = write(tmp_path / "report.html", data_dir)
    assert markup.problems(text) == []
    for task in (ranked.score().retrieval, ranked.score().one_shot):
        for pair, of_pair in task.items():
            low, high = (100 * end for end in of_pair.score.interval["rank-1"])
            assert f"<th>{pair}</th>" in text
            assert f"{100 * of_pair.score.rank['rank-1']:.1f} %<small>{low:.1f}–{high:.1f}*</small>" in text
    assert text.count("<article") == 6 * 8, "of five products three have two items in each domain"
    hits = sum(int((of_pair.ranking.rank == 1).sum()) for of_pair in ranked.retrieval.values())
    assert text.count("card hit") == hits and 0 < hits < 48
    assert "product in place 1 of 8" in text and "after 6 steps" in text and "before training" in text
    assert "Most confused products" in text and "Rank-k" in text and "Accuracy in the batch" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_texts_are_no_html_and_nothing_is_fetched(data_dir, tmp_path):
    text, _ = write(tmp_path / "report.html", data_dir)
    assert html.escape(EVIL).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    assert EVIL not in text and "49$" not in text
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert write(tmp_path / "again.html", data_dir)[0] == text


def test_a_run_without_errors_has_no_confusions(data_dir, tmp_path):
    text, ranked = write(tmp_path / "report.html", data_dir, noise=0.0)
    assert domains.confused_products(ranked.retrieval.values()) == []
    assert "Most confused" not in text and "card hit" in text and 'class="card"' not in text


def test_confusions_are_counted_over_all_pairs(data_dir):
    ranked = rank(read_domains(data_dir)[0], noise=3.0)
    wrong = {}
    for of_pair in ranked.retrieval.values():
        for product, (first, *_) in zip(of_pair.products, of_pair.answers, strict=True):
            wrong[product, first] = wrong.get((product, first), 0) + (product != first)
    found = domains.confused_products(ranked.retrieval.values(), 100)
    assert sum(pair.there + pair.back for pair in found) == sum(wrong.values()) > 0
    for pair in found:
        assert (wrong[pair.product, pair.other], wrong.get((pair.other, pair.product), 0)) == (pair.there, pair.back)
        assert pair.there >= pair.back
    totals = [pair.there + pair.back for pair in found]
    assert totals == sorted(totals, reverse=True)


def test_the_rankings_on_disk_give_the_shares(data_dir, tmp_path):
    ranked = rank(read_domains(data_dir)[0])
    lines = read_rankings(write_run(tmp_path, ranked) / "rankings.jsonl")
    for task, pairs in (("retrieval", ranked.retrieval), ("one_shot", ranked.one_shot)):
        for pair, of_pair in pairs.items():
            own = [line for line in lines if (line["task"], line["pair"]) == (task, pair)]
            hits = [line["rank"] == 1 for line in own]
            assert np.mean(hits) == of_pair.score((1,)).score.rank["rank-1"]
            assert hits == [line["answers"][0] == line["product"] for line in own]
    assert json.loads((tmp_path / "results.json").read_text())["about"]["domains"]


@pytest.fixture(scope="module")
def opened(data_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("browser")
    write(directory / "report.html", data_dir)
    with browser(directory / "profile") as driver:
        driver.get((directory / "report.html").as_uri())
        driver.execute_script("document.querySelectorAll('.more > summary').forEach((summary) => summary.click())")
        yield driver
        assert driver.get_log("browser") == [], "whatever was done, the console stayed empty"


def test_filters_and_pictures(opened):
    from selenium.webdriver.support.wait import WebDriverWait

    assert choose(opened, "pair", "") == 48 and choose(opened, "pair", "pages to lives") == 8
    hits, misses = choose(opened, "outcome", "hit"), choose(opened, "outcome", "miss")
    assert hits + misses == 8
    assert choose(opened, "search", "NOBODY") == 0
    assert choose(opened, "search", "") == misses and choose(opened, "outcome", "") == 8
    WebDriverWait(opened, 20, 0.02).until(lambda driver: driver.execute_script(PICTURES))
    assert choose(opened, "pair", "") == 48


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_can_be_read(opened, width, scheme):
    resize(opened, width, 800, scheme)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width, "only parts of it scroll"
    for text in ("h1", "#retrieval td", "#one_shot small", "figure svg text", ".verdict", ".image .name", "option"):
        assert opened.execute_script(CONTRAST, text) > 4.5, text  # what WCAG asks for
