"""What the server tells about itself and its index."""

import copy
import dataclasses
import datetime
import functools
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from rice_jax.eval.pooling import Pooling
from rice_jax.recognition.products import by_gallery, select
from rice_jax.serving.admission import Access
from rice_jax.serving.shops import Shops
from tests.serving.serving import asking, clip
from tests.shop import png


def test_pictures_come_from_the_index_alone(client, shop):
    answer = client.post("/recognize", files=clip(shop, 2), data={"top": 1})
    [product] = answer.json()["products"]
    picture = client.get(product["image"])
    assert picture.headers["content-type"] == "image/jpeg"
    thumbnail = np.asarray(Image.open(io.BytesIO(picture.content)), float)
    assert np.abs(thumbnail - shop.pictures[2]).mean() < 12
    for name in ("0" * 64, "..%2f..%2findex%2findex.parquet", "%2fetc%2fhostname", "p2.png", "%00"):
        assert client.get(f"/images/{name}").status_code == 404
    Path(shop.index.paths[7]).write_bytes(png(shop.pictures[8]))
    assert client.get(f"/images/{shop.index.digests[7]}").status_code == 404, "it is another picture now"


def test_the_picture_of_a_product_is_its_best_image(engine, shop):
    several = copy.copy(engine)
    several.index = dataclasses.replace(shop.index, product_ids=[*["mug"] * 4, "p4", "p5", "p6", "p7"])
    several._products = by_gallery(several.index)
    # So sharply that these images, which are unlike each other, count by the best of them.
    several._pooling = Pooling(several._products[None].edges, 1e4, np.zeros(5, np.float32))
    with asking(several) as client:
        for row in (1, 3):
            found = client.post("/recognize", files=clip(shop, row)).json()
            first = found["products"][0]
            assert list(first) == ["id", "gallery", "title", "score", "confidence", "image", "image_id", "fields"]
            assert (first["id"], first["title"], first["image_id"]) == ("mug", "title p0", f"p{row}")
            assert first["image"] == f"images/{shop.index.digests[row]}" and found["timeline"][0]["product"] == first
            assert len({(product["gallery"], product["id"]) for product in found["products"]}) == 5
        assert (client.get("/healthz").json()["images"], client.get("/healthz").json()["products"]) == (8, 5)
        assert "the shop’s 5 products" in client.get("/").text


def test_further_columns_are_returned_and_searched(engine, shop):
    several = copy.copy(engine)
    fields = [{"category": "lamp" if row % 2 else "mug", "url": f"http://x/{row}"} for row in range(8)]
    several.index = dataclasses.replace(shop.index, fields=fields)
    several._selected = functools.partial(select, several.index, several._products)
    lamps, odd = ("where", "category=lamp"), {"p1", "p3", "p5", "p7"}
    with asking(several) as client:

        def recognize(*conditions):
            return client.post("/recognize", files=clip(shop, 1), data={"top": 8, "where": [*conditions]})

        found = recognize("category=lamp").json()
        assert {product["id"] for product in found["products"]} == odd
        assert found["products"][0]["fields"] == {"category": "lamp", "url": "http://x/1"}
        assert {product["id"] for part in found["timeline"] for product in part["products"]} == odd
        assert len(recognize("category=lamp", "Category=mug").json()["products"]) == 8
        assert [product["id"] for product in recognize("category=lamp", "url=http://x/3").json()["products"]] == ["p3"]
        picture, kind = png(shop.pictures[1]), {"Content-Type": "image/png"}

        def push(*where):
            address, parameters = "/streams/x/frames", [("time", 1), *where]
            return client.post(address, params=parameters, content=picture, headers=kind)

        assert {product["id"] for product in push(lamps, ("top", 8)).json()["products"]} == odd
        assert len(push(lamps, ("where", "category=mug"), ("top", 8)).json()["products"]) == 8
        assert push(("where", "category=sofa")).status_code == recognize("color=red").status_code == 404
        assert push(("where", "lamp")).status_code == recognize("=lamp").status_code == 422
        assert recognize(*["category=lamp"] * 7).status_code == 422
        assert push(("gallery", "a"), ("gallery", "b")).status_code == 400


def test_the_server_describes_itself(client, engine):
    health = client.get("/healthz").json()
    assert (health["images"], health["galleries"], health["num_frames"]) == (8, 2, engine.num_frames)
    assert health["products"] == 8
    schema = client.get("/openapi.json").json()
    form = schema["paths"]["/recognize"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"].keys() == {"frames", "video", "subtitles", "text", "gallery", "top", "where"}
    assert schema["paths"]["/streams/{stream_id}/frames"]["post"]["requestBody"]["content"].keys() >= {"image/png"}
    docs = client.get("/docs")
    assert "://" not in docs.text, "nothing is fetched from elsewhere"
    for address in re.findall(r'(?:src|href)="([^"]+)"', docs.text):
        assert client.get(address).status_code == 200
    for path, policy in (("/", "script-src 'sha256-"), ("/docs", "default-src 'self'"), ("/healthz", "'none'")):
        headers = client.get(path).headers
        assert policy in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in client.get("/").headers["content-security-policy"]


def test_monitors_may_ask_by_head(client, engine):
    shops = Shops({name: Path(__file__) for name in ("a", "b")}, lambda file, others: engine)
    with asking(shops, access=Access(tokens=[b"x" * 16])) as several:
        for one, path, status in ((client, "", 200), (several, "", 204), (several, "/indexes/a", 401)):
            answers = [one.request(method, f"{path}/healthz") for method in ("HEAD", "GET")]
            assert [answer.status_code for answer in answers] == [status] * 2
            assert not answers[0].content
    assert "head" not in client.get("/openapi.json").json()["paths"]["/healthz"]


def test_metrics_have_few_labels(client):
    for path in ("/nothing", "/else", "/streams/one", "/streams/two"):
        client.delete(path)
    text = client.get("/metrics").text
    assert set(re.findall(r'rice_requests_total{route="([^"]*)"', text)) <= {
        "/", "/recognize", "/healthz", "/metrics", "/images/{digest}", "/streams/{stream_id}", "/docs", "/openapi.json",
        "/streams/{stream_id}/frames", "other", "/static-offline-docs",
    }  # fmt: skip
    assert "process_resident_memory_bytes" in text


def test_answers_are_counted(client, shop):
    def measured():
        values = re.findall(
            r"^(rice_answers_total|rice_best_score|rice_index)(\S*) (\S+)$", client.get("/metrics").text, re.M
        )
        return {name + labels: float(value) for name, labels, value in values}

    before = measured()
    client.post("/recognize", files=clip(shop, 2))
    content, kind = png(shop.pictures[2]), {"content-type": "image/png"}
    client.post("/streams/counted/frames", params={"time": 1}, content=content, headers=kind)
    unknown = {"content": png(shop.pictures[9]), "headers": kind}
    assert client.post("/streams/counted/frames", params={"time": 9000}, **unknown).json()["restarted"]
    after = measured()
    change = {name: after[name] - before.get(name, 0) for name in after}
    assert change['rice_answers_total{answer="named",index=""}'] == 2
    assert change['rice_answers_total{answer="none",index=""}'] == 1
    assert change['rice_best_score_count{index=""}'] == change['rice_best_score_bucket{index="",le="+Inf"}'] == 3
    assert (after['rice_index_products{index=""}'], after['rice_index_stale{index=""}']) == (8, 0)
    loaded = client.get("/healthz").json()["loaded"]
    stamp = datetime.datetime.fromisoformat(loaded).timestamp()
    assert after['rice_index_loaded_timestamp_seconds{index=""}'] == stamp


def test_the_time_of_a_clip_is_divided_into_stages(client, shop):
    def measured():
        found = re.findall(r'^rice_(?:stage|request)_seconds_sum{\w+="(.*)"} (\S+)$', client.get("/metrics").text, re.M)
        return {name: float(value) for name, value in found}

    before = measured()
    client.post("/recognize", files=clip(shop, 2))
    after = measured()
    spent = {name: after[name] - before.get(name, 0) for name in ("upload", "decode", "queue", "encode", "rank")}
    assert min(spent.values()) > 0
    assert sum(spent.values()) < after["/recognize"] - before.get("/recognize", 0)
