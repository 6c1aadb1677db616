"""What an index holds, embeddings of pictures, and several indexes of one server."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from rice_jax import serve
from rice_jax.index.store import FILE, write_index
from rice_jax.recognition.engine import Engine
from rice_jax.serving.admission import Access
from rice_jax.serving.shops import Shops
from tests.serving.serving import BATCH_SIZES, asking, clip, frames
from tests.shop import png, write_products


def pictures(shop, *rows):
    return [("pictures", file) for _, file in clip(shop, *rows)]


def test_pictures_are_embedded_as_those_of_the_index(client, shop):
    answer = client.post("/embed", files=pictures(shop, 3, 0, 5, 3, 7))
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json()["embeddings"])
    np.testing.assert_allclose(found, shop.index.vectors[[3, 0, 5, 3, 7]], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert answer.json()["fingerprint"] == client.get("/healthz").json()["fingerprint"]


BAD = {
    "no pictures": ({"files": [("pictures", (None, "text"))]}, 400, "pictures: found text"),
    "another name": ({"files": frames(b"x")}, 400, "'frames'"),
    "another field": ({"files": [("pictures", b"x"), ("top", (None, "1"))]}, 400, "'top'"),
    "no image": ({"files": [("pictures", ("x", b"hello", "image/png"))]}, 400, "picture 1 is not an image"),
    "a page": ({"files": [("pictures", ("x", b"<p>", "text/html"))]}, 415, "picture 1: found 'text/html'"),
    "too many": ({"files": [("pictures", ("x", b"x", "image/png"))] * 13}, 413, "limit of 12"),
    "no form": ({"content": b"x"}, 415, "multipart/form-data"),
    "a parameter": ({"files": [("pictures", b"x")], "params": {"top": "1"}}, 422, "top"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused(client, name):
    request, status, reason = BAD[name]
    answer = client.post("/embed", **request)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


def test_products_are_listed_page_by_page(shop, engine, tmp_path):
    fields = [{"color": "red", "price": str(row)} if row else {"color": "blue"} for row in range(8)]
    titles = ["", *shop.index.titles[1:]]
    directory = write_products(
        shop, tmp_path, ["mug", "mug", *shop.index.product_ids[2:]], fields=fields, titles=titles
    )
    found = Engine(directory, batch_sizes=BATCH_SIZES, others=[engine])
    with asking(Shops({"": directory / FILE}, lambda *_: found)) as client:

        def ask(**params):
            return client.get("/products", params=params).json()

        whole = ask()
        assert (whole["total"], whole["index"]) == (7, client.get("/healthz").json()["index"])
        mug = whole["products"][0]
        assert (mug["id"], mug["gallery"], mug["title"]) == ("mug", "a", "title p1")
        assert mug["fields"] == {"color": "blue", "price": "1"}
        assert [image["id"] for image in mug["images"]] == ["p0", "p1"]
        assert client.get("/" + mug["images"][1]["image"]).status_code == 200
        pages = [ask(offset=offset, limit=3)["products"] for offset in (0, 3, 6, 9)]
        assert sum(pages, []) == whole["products"] and list(map(len, pages)) == [3, 3, 1, 0]
        assert [product["id"] for product in ask(gallery="b")["products"]] == ["p6", "p7"]
        assert ask(gallery="b", where=["price=6", "price=5"])["total"] == 1
        for params, status in (
            ({"gallery": "c"}, 404), ({"where": "size=1"}, 404), ({"limit": 501}, 422), ({"offset": -1}, 422),
            ({"top": 1}, 422), ({"limit": ["1", "2"]}, 400),
        ):  # fmt: skip
            assert client.get("/products", params=params).status_code == status, params
        assert client.get("/products", params={"where": "color"}).json()["detail"].startswith("where: ")


@pytest.fixture(scope="module")
def several(shop, engine, tmp_path_factory):
    """The shop and a part of it with other titles, in one server."""
    directory = tmp_path_factory.mktemp("part")
    part = dataclasses.replace(shop.index.take(range(4)), titles=["other"] * 4)
    write_index(directory, part)
    files = {"whole": shop.directory / FILE, "a.part-1": directory / FILE}
    shops = Shops(files, lambda file, others: Engine(file.parent, batch_sizes=BATCH_SIZES, others=[engine, *others]))
    assert shops["whole"].engine.model is shops["a.part-1"].engine.model, "one model in memory"
    with asking(shops) as client:
        yield client


def test_each_index_has_its_own_routes(several, shop):
    for name, title, count in (("whole", "title p3", 8), ("a.part-1", "other", 4)):
        base = f"/indexes/{name}"
        [first, *rest] = several.post(f"{base}/recognize", files=clip(shop, 3)).json()["products"]
        assert (first["id"], first["title"], len(rest) + 1) == ("p3", title, min(count, 5))
        assert several.get(f"{base}/{first['image']}").status_code == 200
        health = several.get(f"{base}/healthz").json()
        assert health["products"] == count == several.get(f"{base}/products").json()["total"]
        assert several.get("/healthz").json()["indexes"][name] == health
        assert several.post(f"{base}/embed", files=pictures(shop, 1)).status_code == 200
        page = several.get(f"{base}/")
        assert f"the shop’s {count} products" in page.text
        assert "script-src 'sha256-" in page.headers["content-security-policy"]
        docs = re.search(r'<a href="([^"]+)">the API', page.text)[1]
        assert several.get(str(page.url.join(docs))).status_code == 200
        assert several.get(base).status_code == 307
    overview = several.get("/")
    assert re.findall(r'href="(indexes[^"]+)"', overview.text) == ["indexes/whole/", "indexes/a.part-1/"]
    assert "style-src 'sha256-" in overview.headers["content-security-policy"]
    paths = several.get("/openapi.json").json()["paths"]
    assert {"/indexes/{index}/recognize", "/healthz", "/metrics"} <= paths.keys() and "/recognize" not in paths


def test_streams_of_two_indexes_are_not_mixed(several, shop):
    push = {"content": png(shop.pictures[1]), "headers": {"content-type": "image/png"}}
    for name in ("whole", "a.part-1"):
        found = several.post(f"/indexes/{name}/streams/s/frames?time=1", **push).json()
        assert found["num_frames"] == 1
    assert several.delete("/indexes/whole/streams/s").status_code == 204
    assert several.delete("/indexes/whole/streams/s").status_code == 404
    assert several.delete("/indexes/a.part-1/streams/s").status_code == 204


@pytest.mark.parametrize("name", ["", "WHOLE", "other", "%2e%2e", "..%2fwhole", "whole%00", "/etc"])
def test_unknown_indexes_are_refused(several, shop, name):
    for path in ("products", "healthz", f"images/{shop.index.digests[0]}", ""):
        assert several.get(f"/indexes/{name}/{path}").status_code in (404, 307)
    answer = several.post(f"/indexes/{name}/recognize", content=b"x" * 400_000)
    assert answer.status_code == 404 and answer.headers["connection"] == "close", "its body is not even read"
    assert several.post("/recognize", files=clip(shop, 1)).status_code == 404


def test_names_and_directories_are_told_apart():
    assert serve._index("shop") == ("", Path("shop"))
    assert serve._index("a.b-1=x=y") == ("a.b-1", Path("x=y"))
    for text in ("./a=b", "../x=y", ".=x", "..=x", "a/b=c", "=x", "a=", "x" * 65 + "=y"):
        assert serve._index(text) == ("", Path(text))


def test_a_name_that_is_none_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in ("lämp=shop", "a b=shop", "-a=shop", "x" * 65 + "=shop"):
        with pytest.raises(SystemExit, match="2"):
            serve.main([f"--index={text}"])
        assert f"found {text!r}, expected DIR or NAME=DIR with a name of letters" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["a", "b"], ["x=a", "b"], ["x=a", "x=b"]])
def test_several_indexes_need_names(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        serve.main([f"--index={flag}" for flag in flags])
    assert "expected a name of its own for each: --index=NAME=DIR" in capsys.readouterr().err


def test_the_overview_needs_a_token(several, shop, engine):
    shops = Shops({"x": Path(__file__)}, lambda *_: engine)
    with asking(shops, access=Access(tokens=[b"0" * 32])) as client:
        assert [client.get(path).status_code for path in ("/", "/indexes/x/", "/indexes/x/healthz")] == [401] * 3
        assert (client.get("/healthz").status_code, client.get("/healthz").content) == (204, b"")
