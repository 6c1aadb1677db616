"""The server's page in a browser turns a video into a timeline."""

import pytest

from rice_jax.recognition.engine import Engine
from rice_jax.serving.limits import Limits
from rice_jax.serving.server import create_app
from tests.pages import markup
from tests.pages.browser import browser, resize
from tests.pages.reports import EVIL
from tests.pages.test_report_in_browser import CONTRAST
from tests.serving.serving import BATCH_SIZES, make_named_shop, only, serving
from tests.shop import png, write_mp4

LIMITS = Limits(upload_bytes=200_000, video_seconds=20.0)
SETTLED = "const m = document.getElementById('message'); return m.textContent && m.className != 'busy'"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_named_shop(tmp_path_factory.mktemp("shop"), p1=EVIL)


@pytest.fixture(scope="module")
def opened(shop, tmp_path_factory):
    app = create_app(only(Engine(shop.directory, batch_sizes=BATCH_SIZES)), LIMITS, batch_sizes=BATCH_SIZES)
    profile = tmp_path_factory.mktemp("browser") / "profile"
    with (
        serving(app, LIMITS) as address,
        browser(profile) as driver,
    ):
        driver.get(address)
        assert driver.get_log("browser") == []
        yield driver


@pytest.fixture(scope="module")
def film(shop, tmp_path_factory):
    """The first product, then the fifth."""
    directory = tmp_path_factory.mktemp("film")
    path = directory / f"{EVIL.replace('/', '-')[:40]}.mp4"
    return write_mp4(path, [shop.pictures[1], shop.pictures[4]], seconds=8, codec="libx264")  # browsers play it


def wait(driver, script, *arguments):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 20, 0.02).until(lambda driver: driver.execute_script(script, *arguments))


def choose(driver, *paths):
    driver.execute_script("document.getElementById('message').textContent = ''")
    driver.find_element("id", "file").send_keys("\n".join(map(str, paths)))
    wait(driver, SETTLED)
    return driver.find_element("id", "message")


def texts(driver, selector):
    return [element.text for element in driver.find_elements("css selector", selector)]


@pytest.fixture
def shown(opened, film):
    message = choose(opened, film)
    assert message.text == "16 frames looked at."
    yield opened
    assert opened.get_log("browser") == []


def test_a_video_becomes_a_timeline(shown, shop):
    names = [name for name in texts(shown, ".part h3") if not name.startswith("none")]
    assert names == [EVIL, "title p4"], "texts are shown as they are"
    assert texts(shown, ".part .when")[-1].endswith("– 0:16") and texts(shown, ".ticks span")[0] == "0:00"
    widths = shown.execute_script(
        "const bar = document.querySelector('.timebar');"
        "return [...bar.querySelectorAll('button')].map((one) => one.offsetWidth / bar.clientWidth)"
    )
    assert sum(widths) == pytest.approx(1, abs=0.01)
    assert set(texts(shown, ".part summary")) <= {"likely", "unsure", "none"}
    wait(shown, "return [...document.querySelectorAll('.runners img, .shown > figure img')].every((one) => {"
         "if (!one.naturalWidth) one.scrollIntoView(); return one.naturalWidth == 48; })")  # fmt: skip
    assert not shown.find_element("id", "whole").is_displayed(), "a film of several products has no single answer"


def test_frames_are_taken_from_the_film(shown):
    images = "[...document.querySelectorAll('.strip figure img')]"
    wait(shown, f"const all = {images}; const next = all.find((one) => !one.naturalWidth);"
         "next?.scrollIntoView(); return all.length >= 12 && !next")  # fmt: skip
    colors = shown.execute_script(
        f"return [{images}[0], {images}.at(-1)].map((one) => {{ const canvas = document.createElement('canvas');"
        "canvas.width = canvas.height = 1; const context = canvas.getContext('2d');"
        "context.drawImage(one, 0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; })"
    )
    assert max(abs(a - b) for a, b in zip(*colors, strict=True)) > 30, "the first and the last frame differ"


def test_a_part_that_is_chosen_is_played(shown):
    wait(shown, "return document.querySelector('#timeline > video').readyState > 1")
    first, *_, last = shown.find_elements("css selector", ".part .when")
    for button, second in ((last, 8), (first, 0)):
        shown.execute_script("arguments[0].click()", button)
        wait(shown, f"return Math.abs(document.querySelector('#timeline > video').currentTime - {second}) < 1.6")
        wait(shown, "return arguments[0].closest('.part').className.includes('now')", button)
        assert len(shown.find_elements("css selector", ".part.now")) == 1


def test_the_shops_products_can_be_chosen(shown):
    from selenium.webdriver import Keys

    shown.find_element("css selector", ".judgment .wrong").send_keys(Keys.ENTER)
    field = shown.find_element("css selector", ".choice input")
    shown.execute_script("arguments[0].focus()", field)
    wait(shown, "return document.querySelectorAll('datalist option').length == 8")
    assert field.get_property("list").get_property("tagName") == "DATALIST"
    field.send_keys("p3", Keys.ENTER)
    assert shown.find_element("css selector", ".told").text == "p3"
    field.clear()
    field.send_keys("title p4", Keys.ENTER)
    assert shown.find_element("css selector", ".told").text == "p4"
    field.clear()
    field.send_keys("p99", Keys.TAB)
    assert "no product" in field.get_property("validationMessage")
    assert texts(shown, ".downloads .count")[0].startswith("1 of ")


def test_a_phone_can_record(opened, film):
    record = opened.find_element("id", "record")
    assert not record.find_element("xpath", "..").is_displayed(), "there is no camera to hold"
    opened.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        assert record.find_element("xpath", "..").text == "Record a video"
        assert [record.get_attribute(name) for name in ("accept", "capture")] == ["video/*", "environment"]
        assert texts(opened, ".drop")[0].startswith("Choose a video")
    finally:
        opened.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    opened.execute_script("document.getElementById('message').textContent = ''")
    record.send_keys(str(film))
    wait(opened, SETTLED)
    assert opened.find_element("id", "message").text == "16 frames looked at."


def test_several_pictures_are_one_clip(opened, shop, tmp_path):
    paths = [tmp_path / f"{place}.png" for place in range(3)]
    for path in paths:
        path.write_bytes(png(shop.pictures[2]))
    assert choose(opened, *paths).text == "3 frames looked at."
    assert texts(opened, ".part h3") == ["title p2"]
    assert not opened.find_elements("css selector", "#timeline > video")
    wait(opened, "return [...document.querySelectorAll('.strip figure img')].every((one) => one.naturalWidth)")
    assert len(opened.find_elements("css selector", ".strip figure img")) == 3
    assert len(texts(opened, "#products .name")) == 5, "as a whole"
    assert not opened.find_elements("css selector", ".judgment"), "labels are of a film"
    assert choose(opened, paths[0]).text == "1 frame looked at."
    opened.execute_script(
        "window.told = []; const message = document.getElementById('message');"
        "window.watch = new MutationObserver(() => told.push(message.textContent));"
        "watch.observe(message, { childList: true })"
    )
    choose(opened, paths[0])
    choose(opened, *paths)
    told = opened.execute_script("watch.disconnect(); return told.filter(Boolean)")
    assert told == ["Looking at 0.png …", "1 frame looked at.", "Looking at 3 pictures …", "3 frames looked at."]


def test_a_gallery_is_looked_at_alone(opened, film):
    choose(opened, film)
    for value, names in (("=b", {"title p6", "title p7"}), ("", None)):
        opened.execute_script(
            "document.getElementById('message').textContent = '';"
            "const gallery = document.getElementById('gallery'); gallery.value = arguments[0];"
            "gallery.dispatchEvent(new Event('change'))", value,
        )  # fmt: skip
        wait(opened, SETTLED)
        found = opened.execute_script(
            "const one = document.querySelector('.part'), shown = one.querySelectorAll('h3, .runners span:last-child');"
            "return [...shown].map((name) => name.textContent)"
        )
        found = {name for name in found if not name.startswith("none of")}
        assert found == names if names else len(found) == 5


def test_what_is_wrong_is_said(opened, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"hello")
    message = choose(opened, path)
    assert "wrong" in message.get_attribute("class") and "cannot be read" in message.text
    assert not opened.find_element("id", "result").is_displayed()
    path.write_bytes(bytes(300_000))
    assert "0.3 MB" in choose(opened, path).text, "it is not even sent"
    [line] = opened.get_log("browser")
    assert "400" in line["message"], "the browser itself tells of the refusal"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_can_be_read(shown, width, scheme):
    resize(shown, width, 800, scheme)
    assert shown.execute_script("return document.documentElement.scrollWidth") <= width
    for text in ("h1", ".drop span", "#message", ".part h3", ".part summary", ".when", ".judgment button", ".foot a"):
        assert shown.execute_script(CONTRAST, text) > 4.5, text  # what WCAG asks for
    dark = shown.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_nothing_comes_from_elsewhere(opened):
    assert markup.problems(opened.execute_script("return fetch('.').then((answer) => answer.text())")) == []
    names = opened.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    address = opened.execute_script("return location.origin")
    assert names and all(name.startswith((address, "blob:", "data:")) for name in names)


def test_the_page_for_programs_works(opened):
    docs = opened.find_element("css selector", ".foot a[href$='docs']").get_attribute("href")
    opened.switch_to.new_window("tab")
    try:
        opened.get(docs)
        wait(opened, "return document.querySelectorAll('.opblock').length >= 6")
        assert opened.get_log("browser") == []
    finally:
        opened.close()
        opened.switch_to.window(opened.window_handles[0])


SRT = "1\n00:00:01,000 --> 00:00:03,000\nthe <i>red</i> armchair & more\n\n2\n00:00:09,000 --> 00:00:11,000\n这款\n"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    path = tmp_path_factory.mktemp("said") / "film.srt"
    path.write_text(SRT, encoding="utf-8")
    return path


def test_what_is_said_is_shown_with_each_part(opened, film, said, tmp_path):
    message = choose(opened, film, said)
    assert message.text == "16 frames looked at. 2 sentences are said, which do not count in the scores."
    assert texts(opened, ".part blockquote") == ["the red armchair & more", "这款"]
    assert opened.find_element("id", "said").text == said.name
    for width, scheme in ((1100, "light"), (1100, "dark"), (380, "light"), (380, "dark")):
        resize(opened, width, 800, scheme)
        wide = "const root = document.documentElement; return root.scrollWidth <= root.clientWidth"
        assert opened.execute_script(wide), f"{width} pixels need no scrolling sideways"
        for text in (".part blockquote", ".said label", "#said", "#unsaid"):
            assert opened.execute_script(CONTRAST, text) > 4.5, text
    resize(opened, 1100, 800)
    assert choose(opened, film).text == "16 frames looked at.", "subtitles are of the film that they came with"
    assert not texts(opened, ".part blockquote") and opened.find_element("id", "said").text.startswith(".srt, .vtt")
    opened.execute_script("document.getElementById('message').textContent = ''")
    opened.find_element("id", "subtitles").send_keys(str(said))  # for the film that is shown
    wait(opened, SETTLED)
    assert len(texts(opened, ".part blockquote")) == 2
    opened.execute_script("document.getElementById('message').textContent = ''")
    opened.find_element("id", "unsaid").click()
    wait(opened, SETTLED)
    assert not texts(opened, ".part blockquote") and not opened.find_element("id", "unsaid").is_displayed()
    assert opened.get_log("browser") == []
    broken = tmp_path / "broken.vtt"
    broken.write_text("WEBVTT\n\nsoon --> later\nhello\n")
    message = choose(opened, film, broken)
    assert message.text.startswith("subtitles:3: found 'soon --> later'") and message.get_attribute("class") == "wrong"
    opened.get_log("browser")  # Chromium tells of the status 400


def test_subtitles_wait_for_a_film(opened, film, said):
    opened.refresh()
    opened.find_element("id", "subtitles").send_keys(str(said))
    wait(opened, "return document.getElementById('said').className == 'chosen'")
    assert opened.find_element("id", "message").text == "", "there is no film yet"
    choose(opened, film)
    assert texts(opened, ".part blockquote") == ["the red armchair & more", "这款"]
    assert opened.get_log("browser") == []
