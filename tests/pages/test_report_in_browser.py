"""The report as its reader sees it."""

import numpy as np
import pytest

from tests.pages.browser import browser, resize
from tests.pages.reports import EVIL, LOG, write

SHOWN = "return [...document.querySelectorAll('.card')].filter(card => card.checkVisibility()).length"
# A picture is read when it comes near the window.
PICTURES = """
const images = [...document.querySelectorAll('img[data-picture]')].filter((image) => image.checkVisibility());
const missing = images.find((image) => !image.naturalWidth);
if (missing) missing.scrollIntoView({ block: "center", inline: "center" });
return !missing && images.every((image) => image.naturalWidth == image.getAttribute("width"));"""
# Luminance of the text and of what is behind it.
CONTRAST = """
const luminance = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const text = document.querySelector(arguments[0]);
let behind = text;
while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
const style = getComputedStyle(text);
const pair = [text instanceof SVGElement ? style.fill : style.color, getComputedStyle(behind).backgroundColor];
const [low, high] = pair.map(luminance).sort((a, b) => a - b);
return (high + 0.05) / (low + 0.05)"""


@pytest.fixture(scope="module")
def opened(evil_shop, tmp_path_factory):
    directory = tmp_path_factory.mktemp("browser")
    weights = np.random.default_rng(0).integers(0, 256, (4, 3, 4)).astype(np.uint8)
    write(directory / "report.html", evil_shop, LOG, weights)
    with browser(directory / "profile") as driver:
        driver.get((directory / "report.html").as_uri())
        assert driver.execute_script(SHOWN) == 0, "details are behind a click, and not printed"
        driver.execute_script("document.querySelectorAll('.more > summary').forEach((summary) => summary.click())")
        yield driver
        assert driver.get_log("browser") == [], "whatever was done, the console stayed empty"


def choose(driver, name, value):
    driver.execute_script(
        "const field = document.getElementById('filters').elements[arguments[0]]; field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))", name, value,
    )  # fmt: skip
    shown = driver.execute_script(SHOWN)
    assert driver.find_element("id", "count").text == str(shown)
    return shown


def test_it_opens_and_fetches_nothing(opened):
    assert opened.title.startswith("run </script><script>document.title='broken'</script>"), "a text, not a script"
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(opened, 20, 0.02).until(lambda driver: driver.execute_script(PICTURES))


def test_filters(opened):
    assert choose(opened, "outcome", "") == 4
    assert choose(opened, "outcome", "miss") == 1
    assert choose(opened, "outcome", "hit") == 3
    assert choose(opened, "category", "=") == 0, "the query of no category is the miss"
    assert choose(opened, "outcome", "") == 1
    assert choose(opened, "category", f"={EVIL.casefold()}") == 3
    assert choose(opened, "search", "NOBODY") == 0
    clip = opened.execute_script("return document.querySelectorAll('.card')[1].dataset.text.split(' ')[0]")
    assert choose(opened, "search", clip.upper()) == 1
    assert choose(opened, "category", "") == 1
    assert choose(opened, "search", "") == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_can_be_read(opened, width, scheme):
    resize(opened, width, 800, scheme)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width, "only parts of it scroll"
    for text in ("h1", "#results td", "#results small", "figure svg text", ".verdict", ".image .name", "option"):
        assert opened.execute_script(CONTRAST, text) > 4.5, text  # what WCAG asks for
    dark = opened.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_boxes_and_attention_lie_on_their_frames(opened):
    [details] = opened.find_elements("css selector", "details.attention")
    details.find_element("css selector", "summary").click()
    opened.execute_script("document.querySelectorAll('.frame img').forEach(image => image.scrollIntoView())")
    outside = opened.execute_script("""
        return [...document.querySelectorAll('.frame')].filter((frame) => {
          const [image, ...others] = [...frame.children].map((child) => child.getBoundingClientRect());
          return others.some((other) => other.width < 2 || other.left < image.left - 1 || other.top < image.top - 1
            || other.right > image.right + 1 || other.bottom > image.bottom + 1);
        }).length""")
    assert outside == 0


def test_a_chosen_patch_shows_its_attention(opened):
    [details] = opened.find_elements("css selector", "details.attention")
    if not details.get_attribute("open"):
        details.find_element("css selector", "summary").click()
    weights = np.random.default_rng(0).integers(0, 256, (4, 3, 4))
    buttons = details.find_elements("css selector", ".patches button")
    assert [button.accessible_name for button in buttons] == [f"row {r}, column {c}" for r in (1, 2) for c in (1, 2)]
    for patch in (3, 1):
        opened.execute_script("arguments[0].click()", buttons[patch])
        pressed = [button.get_attribute("aria-pressed") for button in buttons]
        assert pressed == ["true" if other == patch else "false" for other in range(4)]
    drawn = opened.execute_script(
        """
        return [...arguments[0].querySelectorAll('canvas')].map((canvas) =>
          [...canvas.getContext('2d').getImageData(0, 0, 2, 2).data].filter((_, place) => place % 4 === 3))""",
        details,
    )
    np.testing.assert_allclose(drawn, 0.85 * weights[patch], atol=1)
