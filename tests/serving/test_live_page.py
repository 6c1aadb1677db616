"""The server's page for a live stream in a browser."""

import httpx
import pytest

from rice_jax.serving.server import create_app
from tests.pages import markup
from tests.pages.browser import browser, resize
from tests.pages.reports import EVIL
from tests.serving.serving import BATCH_SIZES, LIMITS, make_named_shop, only, serving
from tests.serving.test_live import push
from tests.serving.test_serve_page import texts, wait


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_named_shop(tmp_path_factory.mktemp("shop"), p1=EVIL)


@pytest.fixture(scope="module")
def opened(engine, tmp_path_factory):
    app = create_app(only(engine), LIMITS, batch_sizes=BATCH_SIZES)
    with serving(app, LIMITS) as address, browser(tmp_path_factory.mktemp("browser") / "profile") as driver:
        yield driver, address


def test_the_present_product_is_large_and_the_timeline_grows(opened, shop):
    driver, address = opened
    with httpx.Client(base_url=address, timeout=20) as client:
        assert markup.problems(client.get("/live").text) == []
        push(client, shop, 1, 0)
        driver.get(f"{address}/live?stream=s")
        wait(driver, "return document.getElementById('message').textContent == 'Pictures of this stream are pushed.'")
        assert texts(driver, "#present p") == ["None of the shop’s products is shown."]
        for second in range(1, 10):
            push(client, shop, 1, second)
        wait(driver, "return document.querySelector('#present h2')?.textContent.length")
        assert texts(driver, "#present h2") == [EVIL] == texts(driver, ".part h3"), "texts are shown as they are"
        for second in range(10, 40):
            push(client, shop, 4, second)
        wait(driver, "return document.querySelectorAll('.timebar button').length == 2")
        assert texts(driver, "#present h2") == ["title p4"]
        frames = "[...document.querySelectorAll('.strip figure img')]"
        wait(driver, f"return {frames}.length == 2 && {frames}.every((one) => one.naturalWidth == 48)")
        assert driver.execute_script(f"return {frames}.map((one) => one.offsetHeight)") == [120, 120]
        captions = texts(driver, ".strip figcaption")
        assert captions == [one.get_attribute("alt").removeprefix("frame at ") for one in
                            driver.find_elements("css selector", ".strip figure img")]  # fmt: skip
        assert captions[0] < "0:09.5" < captions[1]
        assert set(texts(driver, "td .name span")) == {EVIL, "title p4"}
        wait(driver, "const i = document.querySelector('#present img'); return i && i.complete && i.naturalWidth")
        for start, text in ((39, EVIL), (39.5, "这款")):
            client.post("/streams/s/text", json={"text": text, "start": start, "end": 40})
        wait(driver, "return document.querySelectorAll('#present blockquote span').length == 2")  # it asks by itself
        assert texts(driver, "#present blockquote span") == [EVIL, "这款"] == texts(driver, ".part blockquote span")
        # What the server has not kept is told in words, as after many events.
        driver.execute_script("parts[0].frames[0].image = 'streams/s/frames/0123456789abcdef'; draw()")
        wait(driver, "return document.querySelector('.strip figure .nopicture')?.textContent == 'no picture'")
        assert [len(driver.find_elements("css selector", f".strip figure {own}")) for own in ("img", "span")] == [1, 1]
        assert [line["message"].count("404") for line in driver.get_log("browser")] == [1]
        resize(driver, 380, 800, "dark")
        width = "const root = document.documentElement; return root.scrollWidth <= root.clientWidth"
        assert driver.execute_script(width), "a phone need not scroll sideways"
        assert driver.get_log("browser") == []
        driver.find_element("id", "stop").click()
        wait(driver, "return document.getElementById('message').className == 'wrong'")
        assert texts(driver, "#message")[0].startswith("found no stream 's'") and texts(driver, "#present") == [""]


def test_what_the_server_no_longer_keeps_is_told(opened):
    driver, address = opened
    driver.get(f"{address}/live")
    found = driver.execute_script(
        """
        const time = new Date(Date.now() - 5000).toISOString();
        const event = (kind, id, more) => ({
          event: kind, time, confidence: null, products: [], ...more,
          product: { id, gallery: "", title: "", image: null, score: 0.5, confidence: null },
        });
        take(event("shown", "first", { second: 10 }));
        take({ event: "missed", events: 2 });
        take(event("gone", "second", { second: 50, seconds: 20 }));
        take(event("shown", "third", { second: 60 }));
        return parts.map(({ product, start, gone = null }) => [product.id, start, gone]);
        """
    )
    assert found == [["first", 10, 15], ["second", 30, 50], ["third", 60, None]]
    assert texts(driver, "#missed") == ["2 earlier events are no longer kept, so parts may be missing."]
    assert texts(driver, ".part h3") == ["first", "second", "third"]


def test_a_source_that_is_refused_is_told(opened):
    driver, address = opened
    driver.get(f"{address}/live")
    driver.find_element("id", "stream").send_keys("other")
    driver.find_element("id", "source").send_keys("https://example.com/live.m3u8")
    driver.find_element("id", "open").click()
    wait(driver, "return document.getElementById('message').className == 'wrong'")
    assert texts(driver, "#message") == ["example.com:443 is no source of this server; --allow_sources adds it."]
