"""The timeline page: what it says, and how its reader sees it."""

import dataclasses
import re

import numpy as np
import pytest

from rice_jax.index.store import read_index
from rice_jax.pages import timeline as page
from rice_jax.pages.album import thumbnail
from rice_jax.pages.timeline import Video, clock, timeline_page, write_timeline
from rice_jax.recognition.engine import Match
from rice_jax.recognition.recognizer import Segment
from tests.pages.browser import browser, resize
from tests.pages.reports import EVIL
from tests.pages.test_report_in_browser import CONTRAST, PICTURES
from tests.shop import draw

TIMES = [float(second) for second in range(30)]


def match(row, title="", confidence=0.5):
    return Match(f"p{row}", "a", title, 0.75, confidence, image_id=f"p{row}")


def parts(confidence=0.5):
    """A product, none, another one with a title that is none of the page's own, and the first again."""
    evil = match(2, EVIL, confidence)
    first = match(1, "", confidence)
    return [
        Segment(0.0, 9.5, first, confidence, (first, evil), slice(0, 10)),
        Segment(9.5, 14.5, None, confidence, (evil,), slice(10, 15)),
        Segment(14.5, 19.5, evil, confidence, (evil, first), slice(15, 20)),
        Segment(19.5, 30.0, first, confidence, (first,), slice(20, 30)),
    ]


@pytest.fixture(scope="module")
def index(live_shop):
    return read_index(live_shop.directory)


@pytest.fixture(scope="module")
def frames():
    return [thumbnail(draw(seed)) for seed in range(30)]


def html(index, frames, shown=None, **options):
    return timeline_page(Video(EVIL, shown or parts(), TIMES, frames), index, **options)


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (9.96, "0:10"), (59.5, "0:59.5"), (61, "1:01"), (3599.96, "1:00:00"), (7325.25, "2:02:05.2")],
)
def test_clock(seconds, text):
    assert clock(float(seconds)) == text


def test_names_are_texts(index, frames):
    text = html(index, frames)
    assert EVIL not in text and "&lt;/script&gt;" in text


def test_without_calibration_it_says_so(index, frames):
    without = dataclasses.replace(index, about=dataclasses.replace(index.about, calibration=None))
    text = html(without, frames, parts(confidence=None))
    assert "The index has no calibration" in text and " sure" not in re.sub(r"<style>.*?</style>", "", text)
    assert "The index has no calibration" not in html(index, frames)


def test_how_many_products_there_were(index, frames):
    assert "out of the 8 products of the index" in html(index, frames)
    assert "out of the 2 products of gallery b" in html(index, frames, gallery="b")
    several = dataclasses.replace(index, product_ids=["mug", "mug", "mug", "p3", "p4", "p5", "mug", "mug"])
    assert "out of the 5 products of the index" in html(several, frames)
    assert "out of the 1 products of gallery b" in html(several, frames, gallery="b")


def test_the_best_picture_of_a_product_is_shown(index, frames, tmp_path):
    """Of a product's images, only the best of each part is there; a product has one color."""
    best = [match(1)._replace(id="mug"), match(2)._replace(id="mug")]
    shown = [Segment(10.0 * n, 10.0 * n + 10, one, 0.5, (one,), slice(0, 1)) for n, one in enumerate(best)]
    paths = [path if row in (1, 2) else str(tmp_path / "gone.png") for row, path in enumerate(index.paths)]
    text = html(dataclasses.replace(index, product_ids=["mug"] * 8, paths=paths), frames, shown)
    assert "no picture" not in text and "<b>1</b>product<" in text
    assert len(set(re.findall(r'style="border-left-color:([^"]+)"', text))) == 1
    only = [path if row == 1 else str(tmp_path / "gone.png") for row, path in enumerate(index.paths)]
    text = html(dataclasses.replace(index, product_ids=["mug"] * 8, paths=only), frames, shown)
    assert text.count("no picture") == 2, "of the second part, in both places"


def test_a_picture_that_has_gone_or_has_no_room_is_left_out(index, frames, monkeypatch, tmp_path):
    moved = dataclasses.replace(index, paths=[str(tmp_path / "gone.png")] * 8)
    assert html(moved, frames).count("no picture") == 9, "three products and six similar images"
    assert "no picture" not in html(index, frames)
    monkeypatch.setattr(page, "MAX_CHARACTERS", 100)
    assert "The page is full" in html(index, frames)


@pytest.fixture(scope="module")
def opened(index, frames, tmp_path_factory):
    directory = tmp_path_factory.mktemp("timeline")
    write_timeline(directory / "page.html", Video(EVIL, parts(), TIMES, frames), index)
    with browser(directory / "profile") as driver:
        driver.get((directory / "page.html").as_uri())
        yield driver
        assert driver.get_log("browser") == [], "whatever was done, the console stayed empty"


def test_it_opens_and_fetches_nothing(opened):
    from selenium.webdriver.support.wait import WebDriverWait

    assert opened.title.startswith(EVIL[:10])
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    WebDriverWait(opened, 20, 0.02).until(lambda driver: driver.execute_script(PICTURES))


def test_the_bar_is_the_video(opened):
    bars = opened.find_elements("css selector", ".bar a")
    widths = [bar.rect["width"] for bar in bars]
    np.testing.assert_allclose(np.array(widths) / sum(widths), np.array([9.5, 5, 5, 10.5]) / 30, atol=0.01)
    colors = [bar.value_of_css_property("background-color") for bar in bars]
    assert colors[0] == colors[3] != colors[2] and bars[1].get_attribute("class") == "none"
    opened.execute_script("arguments[0].click()", bars[2])
    assert opened.find_element("css selector", ".part:target h3").text.startswith(EVIL[:10])


def test_what_is_shown_of_a_part(opened):
    cards = opened.find_elements("css selector", ".part")
    opened.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    texts = [opened.execute_script("return arguments[0].textContent", card) for card in cards]
    assert "0:09.5 – 0:14.5" in texts[1] and "none of the shop's products" in texts[1]
    assert "50.0 % sure" in texts[0] and "score 0.750" in texts[0] and "p1" in texts[0]
    shown = [len(card.find_elements("css selector", ".frame img")) for card in cards]
    assert shown == [6, 5, 5, 6]
    assert [len(card.find_elements("css selector", ".product img")) for card in cards] == [1, 0, 1, 1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_can_be_read(opened, width, scheme):
    resize(opened, width, 800, scheme)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width, "only parts of it scroll"
    for text in (
        "h1",
        ".part h2",
        ".part .sure",
        ".product h3",
        ".product p",
        ".ticks span",
        ".frame small",
        "summary",
    ):
        assert opened.execute_script(CONTRAST, text) > 4.5, text  # what WCAG asks for
