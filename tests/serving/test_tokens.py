"""A server with a token refuses requests without it, and pages of other sites may use a server that names them."""

import json

import pytest

from rice_jax.serving.admission import Access
from rice_jax.serving.hosts import LOCAL
from rice_jax.serving.server import create_app
from rice_jax.serving.tokens import read_tokens
from rice_jax.types import DataError
from tests.pages.browser import browser
from tests.serving.serving import LIMITS, asking, clip, only, serving

TOKEN, OLD = "0123456789abcdef", "!~`'\"<>|?*;:,./[]"
SITE = "https://shop.example.com"
PATHS = ("/", "/docs", "/openapi.json", "/metrics", "/images/x", "/nothing", "/healthz/", "//healthz", "/HEALTHZ")


@pytest.fixture(scope="module")
def access(tmp_path_factory):
    file = tmp_path_factory.mktemp("token") / "tokens"
    file.write_text(f"\n{TOKEN}\r\n  {OLD}\n")
    return Access(LOCAL, [SITE], read_tokens(file))


@pytest.fixture(scope="module")
def guarded(engine, access):
    with asking(engine, access=access) as client:
        yield client


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_requests_without_a_token_are_refused(guarded, shop):
    wrong = [
        {}, {"authorization": "Bearer"}, bearer(TOKEN[:-1]), bearer(TOKEN + "0"), bearer(TOKEN.upper()),
        {"authorization": TOKEN}, {"authorization": f"Digest {TOKEN}"}, {"authorization": "Basic %"},
        {"authorization": "Basic MDox"}, bearer("\xff" * 16), {"cookie": f"token={TOKEN}"},
    ]  # fmt: skip
    for headers in wrong:
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = guarded.post("/recognize", files=clip(shop, 0), headers=headers)
        assert answer.status_code == 401, (headers, answer.text)
        assert "Authorization: Bearer" in answer.json()["detail"] and TOKEN not in answer.text
        assert "Bearer " in answer.headers["www-authenticate"]
    assert [guarded.get(path, params={"token": TOKEN}).status_code for path in PATHS] == [401] * len(PATHS)
    assert guarded.delete("/streams/x").status_code == 401


def test_requests_with_a_token_are_answered(guarded, shop):
    for token in (TOKEN, OLD):
        for authorization in ({"headers": bearer(token)}, {"auth": ("anyone", token)}):
            found = guarded.post("/recognize", files=clip(shop, 3), **authorization).json()
            assert found["products"][0]["id"] == "p3"
            assert guarded.get("/" + found["products"][0]["image"], **authorization).status_code == 200
    statuses = [guarded.get(path, headers=bearer(TOKEN)).status_code for path in PATHS[:6]]
    assert statuses == [200, 200, 200, 200, 404, 404]
    assert "bearer" in str(guarded.get("/openapi.json", headers=bearer(TOKEN)).json()["components"]["securitySchemes"])


def test_health_without_a_token_tells_nothing_else(guarded):
    answer = guarded.get("/healthz")
    assert (answer.status_code, answer.content) == (204, b"")
    assert guarded.get("/healthz", headers=bearer(TOKEN)).json()["products"] == 8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found no token"),
        ("\n \n", "found no token"),
        (f"{TOKEN}\nsecret\n", r"tokens:2: found a token of 6 characters, expected 16 or more"),
        ("0123456789 abcdef", "none a space"),
        ("ü" * 16, "ASCII"),
    ],
)
def test_bad_tokens_are_refused(text, reason, tmp_path):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(DataError, match=reason) as error:
        read_tokens(tmp_path / "tokens")
    assert not any(line and line in str(error.value) for line in text.split()), "a token is never shown"


def test_a_file_that_every_user_can_read_is_told(tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    for mode, told in ((0o600, []), (0o640, []), (0o644, [f"{path}: every user of this machine can read it; "])):
        path.chmod(mode)
        caplog.clear()
        assert len(read_tokens(path)) == 1
        assert [message.partition("restrict")[0] for message in caplog.messages] == told


def test_pages_of_named_sites_may_ask(guarded, shop):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = guarded.options("/recognize", headers={"origin": SITE, **asked})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SITE)
    for other in ("https://example.com", "https://shop.example.com:444", "http://shop.example.com", "null"):
        assert guarded.options("/recognize", headers={"origin": other, **asked}).status_code == 400
        refused = guarded.post("/recognize", files=clip(shop, 3), headers={"origin": other, **bearer(TOKEN)})
        assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    for headers, status in ((bearer(TOKEN), 200), ({}, 401)):
        answer = guarded.post("/recognize", files=clip(shop, 3), headers={"origin": SITE, **headers})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, SITE)
        assert "access-control-allow-credentials" not in answer.headers


def test_the_page_works_with_a_token(engine, access, shop, tmp_path):
    (tmp_path / "frame.png").write_bytes(clip(shop, 4)[0][1][1])
    app = create_app(only(engine), LIMITS, batch_sizes=(1, 2, 4), access=access)
    with serving(app, LIMITS) as address, browser(tmp_path / "profile") as driver:
        driver.get(address.replace("//", f"//anyone:{TOKEN}@"))  # what a browser asks its user for
        driver.get(address)
        driver.find_element("id", "file").send_keys(str(tmp_path / "frame.png"))
        from selenium.webdriver.support.wait import WebDriverWait

        shown = "const one = document.querySelector('#segments img, #products img'); return one && one.naturalWidth"
        WebDriverWait(driver, 20, 0.02).until(lambda driver: driver.execute_script(shown) == 48)
        assert "1 frame looked at." in driver.find_element("id", "message").text
        errors = driver.get_log("browser")
        assert errors == [] and TOKEN not in json.dumps(errors)
