"""The timeline page: what it says, and how its reader sees it."""

import csv
import dataclasses
import json
import re
import time

import numpy as np
import pytest

from rice_jax.clips.labels import read_clips
from rice_jax.index.store import read_index
from rice_jax.pages import timeline as page
from rice_jax.pages.album import thumbnail
from rice_jax.pages.timeline import Video, timeline_page, write_timeline
from rice_jax.recognition.engine import Match
from rice_jax.recognition.recognizer import Segment
from rice_jax.recognition.subtitles import Sentence
from tests.pages import markup
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
        Segment(9.5, 14.5, None, confidence, (evil,), slice(10, 15), 0.6, (Sentence(10.0, 12.0, EVIL),)),
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
    return timeline_page(Video(EVIL, shown or parts(), TIMES, frames, 0.75), index, **options)


def test_the_markup(index, frames):
    text = html(index, frames)
    assert markup.problems(text) == []
    assert markup.problems(text.replace("</section>", "", 1)) and markup.problems(
        text.replace("<main>", "<main id='result'>")
    )


def told(text):
    """What the page tells its script."""
    [found] = re.findall(r'<script type="application/json" id="result">(.*?)</script>', text)
    return json.loads(found)


def test_names_are_texts(index, frames):
    text = html(index, frames)
    assert EVIL not in text and "&lt;/script&gt;" in text
    shown = told(text)["result"]
    assert shown["name"] == EVIL == shown["timeline"][2]["product"]["title"]


def test_how_many_products_there_were(index, frames):
    assert "out of the 8 products of the index" in html(index, frames)
    assert "out of the 2 products of gallery b" in html(index, frames, gallery="b")
    several = dataclasses.replace(index, product_ids=["mug", "mug", "mug", "p3", "p4", "p5", "mug", "mug"])
    assert "out of the 5 products of the index" in html(several, frames)
    assert "out of the 1 product of gallery b" in html(several, frames, gallery="b")


def test_the_products_to_choose_from(index, frames, monkeypatch):
    found = told(html(index, frames))["products"]
    assert found["complete"] and [one["id"] for one in found["products"]] == index.product_ids
    part = dataclasses.replace(index, centers={None: index.vectors[0]})
    assert not told(html(part, frames))["products"]["complete"], "of a larger index, whose other products may be right"
    monkeypatch.setattr(page, "MAX_PRODUCTS", 3)
    found = told(html(index, frames))["products"]
    assert not found["complete"] and [one["id"] for one in found["products"]] == index.product_ids[:3]


def pictures(text):
    """Of each part: the picture of its product, and those of the similar products; None = it has none."""
    parts = told(text)["result"]["timeline"]
    return [
        (part["product"] and part["product"]["image"], [one["image"] for one in part["products"]]) for part in parts
    ]


def test_the_best_picture_of_a_product_is_shown(index, frames, tmp_path):
    """Of a product's images, only the best of each part is there."""
    best = [match(1)._replace(id="mug"), match(2)._replace(id="mug")]
    shown = [Segment(10.0 * n, 10.0 * n + 10, one, 0.5, (one,), slice(0, 1)) for n, one in enumerate(best)]
    paths = [path if row in (1, 2) else str(tmp_path / "gone.png") for row, path in enumerate(index.paths)]
    text = html(dataclasses.replace(index, product_ids=["mug"] * 8, paths=paths), frames, shown)
    (first, [alike]), (second, _) = pictures(text)
    assert first == alike and first["place"] != second["place"]
    only = [path if row == 1 else str(tmp_path / "gone.png") for row, path in enumerate(index.paths)]
    text = html(dataclasses.replace(index, product_ids=["mug"] * 8, paths=only), frames, shown)
    assert pictures(text) == [(first, [first]), (None, [None])]


def test_a_picture_that_has_gone_or_has_no_room_is_left_out(index, frames, monkeypatch, tmp_path):
    moved = dataclasses.replace(index, paths=[str(tmp_path / "gone.png")] * 8)
    assert pictures(html(moved, frames)) == [(None, [None] * num) for num in (2, 1, 2, 1)]
    assert all(image for _, images in pictures(html(index, frames)) for image in images)
    monkeypatch.setattr(page, "MAX_CHARACTERS", 100)
    assert "The page is full" in html(index, frames)


@pytest.fixture(scope="module")
def opened(index, frames, tmp_path_factory):
    directory = tmp_path_factory.mktemp("timeline")
    write_timeline(directory / "page.html", Video(EVIL, parts(), TIMES, frames, 0.75), index)
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
    bars = opened.find_elements("css selector", ".timebar button")
    widths = [bar.rect["width"] for bar in bars]
    np.testing.assert_allclose(np.array(widths) / sum(widths), np.array([9.5, 5, 5, 10.5]) / 30, atol=0.01)
    drawn = [
        opened.execute_script(
            "const s = getComputedStyle(arguments[0], '::before'); return [s.backgroundColor, s.opacity]", bar
        )
        for bar in bars
    ]
    assert drawn[0] == drawn[3] and drawn[0][0] != drawn[2][0] and bars[1].get_attribute("class") == "none"
    assert drawn[0][1] == "0.5", "the opacity is the confidence"
    assert [bar.text for bar in bars][:2] == ["p1", "none"]
    bars[2].click()
    active = opened.switch_to.active_element
    assert active.text == "0:14.5 – 0:19.5", "without the film, its card is gone to"


def test_what_is_shown_of_a_part(opened):
    cards = opened.find_elements("css selector", ".part")
    texts = [opened.execute_script("return arguments[0].textContent", card) for card in cards]
    assert "0:09.5 – 0:14.5" in texts[1] and "none of the shop’s products" in texts[1]
    assert f"Nearest: {EVIL} (0.60; named from 0.75)" in texts[1]
    assert "likely" in texts[0] and "probability 50\u00a0%, score 0.750" in texts[0] and "p1" in texts[0]
    assert not cards[0].find_element("css selector", ".sure span").is_displayed(), "numbers on demand"
    shown = [len(card.find_elements("css selector", ".strip figure img")) for card in cards]
    assert shown == [6, 5, 5, 6]
    assert {image.rect["height"] for image in cards[0].find_elements("css selector", ".strip figure img")} == {120}
    assert [len(card.find_elements("css selector", ".shown > figure img")) for card in cards] == [1, 0, 1, 1]
    assert [len(card.find_elements("css selector", ".runners img")) for card in cards] == [1, 1, 1, 0]


def test_the_table_of_products(opened):
    rows = opened.find_elements("css selector", "tbody tr")
    texts = [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]
    assert [row[1:3] for row in texts] == [["0:20", "2"], ["0:05", "1"], ["0:05", "1"]]
    assert [row[3] for row in texts] == ["likely", "likely", "none"] and texts[0][0] == "p1"


CLOCK = {0: "0:00", 9.96: "0:10", 59.5: "0:59.5", 61: "1:01", 3599.96: "1:00:00", 7325.25: "2:02:05.3"}


def test_times(opened):
    assert opened.execute_script("return arguments[0].map(clock)", list(CLOCK)) == list(CLOCK.values())


def render(driver, result, **options):
    """Renders a timeline into an element of its own, twice, as a live stream's page does; returns its text."""
    return driver.execute_script(
        "const section = document.getElementById('other') ?? document.createElement('section');"
        "section.id = 'other'; document.body.append(section);"
        "for (const parts of [result.timeline.slice(0, 1), result.timeline])"
        "  renderTimeline(section, { ...result, timeline: parts }, options);"
        "const text = section.textContent; section.remove(); return text".replace("result", "arguments[0]")
        .replace("options", "arguments[1]"),
        result, options,
    )  # fmt: skip


def test_without_calibration_it_says_so(opened, index, frames):
    shown = told(html(index, frames, parts(confidence=None)))["result"]
    for part in shown["timeline"]:
        part["frames"] = []
        for product in [part["product"], *part["products"]]:
            product and product.update(image=None, confidence=None)
    text = render(opened, shown)
    assert "The index has no calibration" in text and text.count("Right") == 4, "not five: parts are replaced"
    assert "likely" not in text and "probability" not in text
    assert "no calibration" not in opened.find_element("id", "timeline").text


def test_a_long_id_is_cut_to_some_lines(opened):
    product = match(1)._replace(id="S" * 3000)._asdict()
    part = {"start": 0.0, "end": 9.5, "product": product, "confidence": 0.5, "products": [product], "frames": []}
    height, title = opened.execute_script(
        "const section = document.createElement('section'); document.body.append(section);"
        "renderTimeline(section, { name: 'film', index: 'one', timeline: [arguments[0]] });"
        "const caption = section.querySelector('.shown figcaption'), found = [caption.offsetHeight, caption.title];"
        "section.remove(); return found",
        part,
    )
    assert 0 < height < 100 and title == product["id"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_can_be_read(opened, width, scheme):
    resize(opened, width, 800, scheme)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width, "only parts of it scroll"
    for text in (
        "h1",
        ".part h3",
        ".part h4",
        ".part summary",
        ".part .when",
        ".nearest",
        ".runners span",
        ".ticks span",
        ".timebar .none span",
        ".strip figcaption",
        "td",
        ".judgment button",
        ".downloads button",
        ".openfilm",
    ):
        assert opened.execute_script(CONTRAST, text) > 4.5, text  # what WCAG asks for


LABELED = {
    "a, b": "=cmd|' /C calc'!A0",
    'says "hello"': "p,1",
    "a;b\tc": '"',
    "两\nlines": "ü",
    "=1+1.mp4": "+p1",
    " first.mp4": "@p1",
}


@pytest.mark.parametrize(("name", "product"), LABELED.items())
def test_labels_are_those_of_own_clips(opened, tmp_path, name, product):
    """What is downloaded is read as it was shown: the part, and the id of its product."""
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    shown = match(1)._replace(id=product)._asdict()
    gap = {"start": 9.5, "end": 1e4 / 3, "product": None, "confidence": 0.5, "products": [shown], "frames": []}
    timeline = [gap | {"start": 0.0, "end": 9.5, "product": shown}, gap]
    opened.execute_script(
        "const section = document.createElement('section'); section.id = 'other'; document.body.append(section);"
        "renderTimeline(section, arguments[0]);"
        "for (const one of section.querySelectorAll('.right')) one.click();"
        "section.querySelector('.labels').click(); section.remove();",
        {"name": name, "index": "one", "timeline": timeline},
    )
    [path] = until(lambda: list(tmp_path.glob("*.labels.csv")))
    found = read_clips(path)
    assert [(clip.path, clip.product) for clip in found] == [(tmp_path / name, product), (tmp_path / name, "")]
    assert [(clip.start, clip.end) for clip in found] == [(0.0, 9.5), (9.5, 1e4 / 3)]


def until(find):
    deadline = time.monotonic() + 20
    while not (found := find()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_labels_survive_a_reload_and_the_keyboard_is_enough(opened, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(opened).send_keys(*keys).perform()
        return opened.switch_to.active_element

    opened.refresh()
    opened.execute_script("localStorage.clear()")
    opened.refresh()
    seen, active = [], press(Keys.TAB)
    while active.text != "Right":
        assert (
            len(seen) < 30
            and opened.execute_script("return getComputedStyle(arguments[0]).outlineStyle", active) != "none"
        ), "the focus is visible"
        seen.append(active.text or active.tag_name)
        active = press(Keys.TAB)
    assert seen[0] == "input" and "0:00 – 0:09.5" in seen, seen
    press(Keys.SPACE)
    assert active.get_attribute("aria-pressed") == "true"
    press(Keys.TAB, Keys.ENTER)
    choice = opened.find_element("css selector", ".choice")
    assert choice.is_displayed() and active.get_attribute("aria-pressed") == "false"
    count = ".downloads .count"
    assert opened.find_element("css selector", count).text.startswith("0 of 4 parts labeled; 1 wrong without a product")
    assert press(Keys.TAB).text == "none of the shop’s products"
    press(Keys.TAB)
    press("p3", Keys.ENTER)
    assert opened.find_element("css selector", count).text == "1 of 4 parts labeled"
    opened.refresh()
    assert opened.find_element("css selector", count).text == "1 of 4 parts labeled"
    assert opened.find_element("css selector", ".told").text == "p3"
    opened.find_element("css selector", ".runners button").send_keys(Keys.ENTER)
    label = opened.execute_script("return JSON.parse(localStorage[localStorage.key(0)])[0]")
    assert label == {"shown": "p1", "product": "p2"}, "a similar product is chosen by its picture"


def test_what_is_written_stays_when_there_is_more(opened):
    """A live stream's page renders again and again, while its reader labels."""
    shown = match(1)._asdict()
    first = {"start": 0.0, "end": 9.5, "product": shown, "confidence": 0.5, "products": [shown], "frames": []}
    second = first | {"start": 9.5, "end": 12.0, "product": None}
    result = {"name": "live", "index": "one", "timeline": [first, second]}
    longer = result | {"timeline": [first, second | {"end": 15.0}, first | {"start": 15.0, "end": 20.0}]}
    found = opened.execute_script(
        "const section = document.createElement('section'); document.body.append(section);"
        "renderTimeline(section, arguments[0]); section.querySelector('.wrong').click();"
        "const field = section.querySelector('.choice input'); field.value = 'mu'; field.focus();"
        "renderTimeline(section, arguments[1]);"
        "const cards = [...section.querySelectorAll('.part')];"
        "const found = [cards.length, cards[0].querySelector('input').value,"
        "  cards[1].querySelector('.when').textContent, document.activeElement === cards[0].querySelector('input')];"
        "cards[2].querySelector('.when').click(); found.push(document.activeElement.textContent);"
        "section.remove(); return found", result, longer,
    )  # fmt: skip
    assert found == [3, "mu", "0:09.5 – 0:15", True, "0:15 – 0:20"]


def test_the_other_files(opened, index, frames):
    shown = told(html(index, frames))["result"]
    chapters, plain, table = opened.execute_script(
        "return [chapters(arguments[0]), timelineJson(arguments[0]), timelineCsv(arguments[0])]", shown
    )
    first, second, *_ = chapters.removeprefix("WEBVTT\n\n").split("\n\n")
    assert first == "00:00:00.000 --> 00:00:09.500\np1" and second.startswith(
        "00:00:14.500 --> 00:00:19.500\n&lt;/script"
    )
    assert list(json.loads(plain)) == ["timeline", "film"] and json.loads(plain)["timeline"][0]["product"]["id"] == "p1"
    rows = list(csv.DictReader(table.removeprefix("\ufeff").splitlines()))
    assert [row["product"] for row in rows] == ["p1", "", "p2", "p1"] and rows[2]["title"] == EVIL


@pytest.mark.parametrize(
    ("title", "written"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), (" =1", "' =1"), ("a=1", "a=1"), ("'a", "'a")],
)
def test_a_spreadsheet_takes_no_title_for_a_formula(opened, title, written):
    product = match(1, title)._asdict() | {"id": title, "gallery": title, "score": -0.5}
    shown = {"timeline": [{"start": 0.0, "end": 9.5, "product": product, "confidence": 0.5}]}
    table = opened.execute_script("return timelineCsv(arguments[0])", shown)
    [row] = csv.DictReader(table.removeprefix("\ufeff").splitlines())
    assert [row[name] for name in ("product", "gallery", "title")] == [written] * 3
    assert row["score"] == "-0.5", "it stays a number"
