"""What is said goes to the server with a film, a clip, or a stream, and comes back with the parts."""

import dataclasses
import json

import pytest

from rice_jax.index.text import Texts, embed_titles
from rice_jax.index.update import build_index
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.recognizer import encode_video, products_over_time
from rice_jax.recognition.subtitles import parse_subtitles
from rice_jax.recognition.video import read_video
from rice_jax.serving import server as server_module
from rice_jax.serving import service as service_module
from tests.serving.serving import BATCH_SIZES, asking, clip, video
from tests.serving.test_live import push
from tests.serving.test_server import require_equal
from tests.shop import write_mp4
from tests.text_model import write_text_model
from tests.text_shop import make_text_shop

SRT = b"""1
00:00:00,500 --> 00:00:02,000
the <b>armchair</b>

2
00:00:04,500 --> 00:00:06,000
\xe8\xbf\x99\xe6\xac\xbe & co

3
00:01:00,000 --> 00:01:01,000
after the end
"""


def subtitles(content, kind="application/x-subrip"):
    return [("subtitles", ("said.srt", content, kind))]


@pytest.fixture(scope="module")
def film(shop, tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_mp4(path, [shop.pictures[1], shop.pictures[4]], seconds=4)


@pytest.fixture(scope="module")
def reading(shop, tmp_path_factory):
    """An engine whose index holds titles as vectors."""
    tower = write_text_model(tmp_path_factory.mktemp("tower"))
    titles = ["简约", "西装", "外套", "", "红色", "鞋", "面膜", "空"]
    text = embed_titles(Texts(tower, batch_size=4), 0.5, titles, {})
    return Engine(dataclasses.replace(shop.index, titles=titles, text=text), batch_sizes=BATCH_SIZES)


@pytest.fixture(scope="module")
def reading_client(reading):
    pytest.importorskip("tokenizers")
    with asking(reading) as client:
        yield client


def test_a_film_has_what_is_said_in_each_part(client, engine, film):
    plain = client.post("/recognize", files=video(film.read_bytes()), data={"gallery": "a"}).json()
    assert {part["speech"] for part in plain["timeline"]} == {None} and plain["text_used"] is False
    for files in (video(film.read_bytes()) + subtitles(SRT), subtitles(SRT) + video(film.read_bytes())):
        answer = client.post("/recognize", files=files, data={"gallery": "a"})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        expected = products_over_time(
            engine, *encode_video(engine, read_video(film)), gallery="a", speech=parse_subtitles(SRT, "")
        )
        for part, other in zip(found["timeline"], expected, strict=True):
            assert [tuple(said.values()) for said in part["speech"]] == [tuple(said) for said in other.speech]
        said = [(one["start"], one["text"]) for part in found["timeline"] for one in part["speech"]]
        assert said == [(0.5, "the armchair"), (4.5, "这款 & co")]
        assert not found["text_used"], "the index has no titles as vectors"
        for part in found["timeline"]:
            part["speech"] = None
        assert found == plain, "nothing else changes"


def test_a_speech_recognizer_tells_its_confidence(client, film):
    said = json.dumps({"segments": [{"start": 1, "end": 2, "text": " a", "avg_logprob": 0}]}).encode()
    found = client.post("/recognize", files=video(film.read_bytes()) + subtitles(said, "application/json")).json()
    assert found["timeline"][0]["speech"] == [{"start": 1, "end": 2, "text": "a", "confidence": 1}]


def test_a_clip_has_one_text(client, shop):
    found = client.post("/recognize", files=clip(shop, 2, 2), data={"text": " the \n lamp "}).json()
    assert found["timeline"][0]["speech"] == [{"start": 0, "end": 2, "text": "the lamp", "confidence": None}]
    assert found["text_used"] is False
    found = client.post("/recognize", files=clip(shop, 2, 2), data={"text": ""}).json()
    assert found["timeline"][0]["speech"] is None


def test_text_counts_where_the_index_holds_titles_as_vectors(reading_client, reading, engine, shop):
    assert reading.reads_texts
    frames = reading.encode(reading.prepare(shop.pictures[2])[None])
    for text in ("", "红色"):
        found = reading_client.post("/recognize", files=clip(shop, 2), data={"text": text}).json()
        assert found["text_used"] is bool(text)
        require_equal(found["products"], reading.rank(frames, speech=text).products)
    assert found["products"] != reading_client.post("/recognize", files=clip(shop, 2)).json()["products"]


def test_text_counts_where_the_decoder_reads_it(shop, tmp_path):
    pytest.importorskip("tokenizers")
    made = make_text_shop(tmp_path / "shop", write_text_model(tmp_path / "tower"), "embeddings")
    index = build_index(made.csv, model=made.weights, out=tmp_path / "index")
    decoding = Engine(index, rerank=4, batch_sizes=BATCH_SIZES)
    frames = decoding.encode(decoding.prepare(shop.pictures[2])[None])

    def scores(answer):
        return {product["id"]: product["score"] for product in answer["products"]}

    def decoder(speech):
        return {product.id: product.score for product in decoding.rank(frames, speech=speech).products}

    with asking(decoding) as client:
        for text in ("", "红色"):
            found = client.post("/recognize", files=clip(shop, 2), data={"text": text}).json()
            assert found["text_used"] is bool(text)
            assert scores(found) == pytest.approx(decoder(text), abs=1e-5)
        alone = push(client, shop, 2, 0.5).json()
        assert say(client, "红色", 0.2, 0.8).json() == {"text_used": True}
        again = push(client, shop, 2, 0.5).json()
    assert scores(alone) == pytest.approx(decoder(""), abs=1e-5) != decoder("红色")
    assert scores(again) == pytest.approx(decoder("红色"), abs=1e-5)


FRAME = [("frames", ("a.png", b"x", "image/png"))]
VIDEO = video(b"x")
REFUSED = {
    "malformed": (SRT.replace(b"00:00:04,500", b"soon"), {}, VIDEO, 400, "subtitles:6: found 'soon --> 00:00:06,000'"),
    "segment": (b'[\n{"start": 1, "text": "a"}]', {}, VIDEO, 400, "subtitles:2: segment 1: found None as `end`"),
    "nothing": (b"", {}, VIDEO, 400, "subtitles: found no subtitles"),
    "latin": (b"1\n00:00:00,500 --> 00:00:02,000\n\xff\n", {}, VIDEO, 400, "subtitles: found bytes that are not UTF-8"),
    "large": (b" " * 70_000, {}, VIDEO, 413, "subtitles: exceeds the size of 60,000 bytes"),
    "text and film": (None, {"text": "a"}, VIDEO, 400, "text: found beside a video, expected with frames"),
    "text and subtitles": (SRT, {"text": "a"}, FRAME, 400, "text: found beside subtitles"),
    "long text": (None, {"text": "a" * 1001}, FRAME, 422, "text: String should have at most 1000 characters"),
    "subtitles alone": (SRT, {}, [], 400, "found no frames"),
    "a field": (None, {"subtitles": "a"}, VIDEO, 400, "subtitles: found text, expected a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_with_the_reason(client, film, monkeypatch, name):
    monkeypatch.setattr(server_module, "SUBTITLE_BYTES", 60_000)
    said, data, files, status, reason = REFUSED[name]
    files = video(film.read_bytes()) if files is VIDEO and status == 400 else files
    answer = client.post("/recognize", files=files + (subtitles(said) if said is not None else []), data=data)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


def test_other_kinds_of_subtitles_are_refused(client):
    answer = client.post("/recognize", files=FRAME + subtitles(b"x", "image/png"))
    assert (answer.status_code, "expected .srt, .vtt, or .json" in answer.text) == (415, True), answer.text
    answer = client.post("/recognize", files=FRAME + 2 * subtitles(SRT))
    assert (answer.status_code, "found several files named subtitles" in answer.text) == (400, True), answer.text


def say(client, text, start, end, name="s"):
    return client.post(f"/streams/{name}/text", json={"text": text, "start": start, "end": end})


def test_a_stream_has_what_is_said_while_its_pictures_are_shown(client, shop):
    assert say(client, "early", 0, 1).status_code == 404, "a stream starts with its first picture"
    first = push(client, shop, 1, 100).json()
    assert first["speech"] == [] and first["text_used"] is False
    assert say(client, "这款 \n <b>", 100, 102).json() == {"text_used": False}
    assert say(client, "later", 150, 151).status_code == 200
    said = {"start": 100, "end": 102, "text": "这款 <b>", "confidence": None}
    assert push(client, shop, 1, 101).json()["speech"] == [said]
    state = client.get("/streams/s").json()
    assert [one["text"] for one in state["speech"]] == ["这款 <b>", "later"]
    assert client.delete("/streams/s").status_code == 204
    assert say(client, "after", 0, 1).status_code == 404


def test_only_the_last_sentences_are_in_the_state(client, shop, monkeypatch):
    monkeypatch.setattr(service_module, "NUM_SAID", 2)
    push(client, shop, 1, 0)
    for second in (3, 1, 2):
        say(client, f"at {second}", second, second)
    assert [one["text"] for one in client.get("/streams/s").json()["speech"]] == ["at 2", "at 3"]
    client.delete("/streams/s")


def test_what_is_said_in_a_stream_counts(reading_client, shop):
    plain = push(reading_client, shop, 2, 0).json()
    assert say(reading_client, "红色", 0.2, 0.8).json() == {"text_used": True}
    again = push(reading_client, shop, 2, 0.5).json()
    assert again["text_used"] and again["num_frames"] == 1
    before, after = ({one["id"]: one["score"] for one in found["products"]} for found in (plain, again))
    assert before != after
    reading_client.delete("/streams/s")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"text": "a", "start": 2, "end": 1}, 422, "expected an end of 2 or later"),
        ({"text": "", "start": 0, "end": 1}, 422, "text"),
        ({"text": " \n ", "start": 0, "end": 1}, 422, "expected words"),
        ({"text": "a" * 1001, "start": 0, "end": 1}, 422, "at most 1000 characters"),
        ({"text": "a", "start": 0}, 422, "end: Field required"),
        ({"text": "a", "start": 0, "end": 1, "more": 1}, 422, "more: Extra inputs"),
        ({"text": "a", "start": 0, "end": 1e300}, 422, "end"),
    ],
)
def test_other_texts_of_streams_are_refused(client, body, status, reason):
    answer = client.post("/streams/s/text", json=body)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


def test_a_followed_stream_has_a_clock_of_its_own(engine):
    from rice_jax.recognition.allowed import parse_allowed

    with asking(engine, allowed=parse_allowed(["127.0.0.1:9"])) as client:
        assert client.post("/streams/s/source", json={"url": "http://127.0.0.1:9/a.ts"}).status_code == 201
        answer = say(client, "a", 0, 1)
        assert (answer.status_code, "whose clock is not known" in answer.text) == (409, True)
        client.delete("/streams/s")


def test_an_index_is_searched_with_words(reading_client, client, reading):
    found = reading_client.get("/search", params={"q": "红色", "top": 3}).json()
    assert [one["title"] for one in found["products"]][0] == "红色" and found["by"] == "titles"
    assert found["products"][0]["score"] == pytest.approx(1, abs=1e-4) and len(found["products"]) == 3
    assert reading_client.get("/search?q=a&by=pictures").json()["by"] == "pictures"
    assert found["products"][0]["confidence"] is None and found["index"] == reading.index.checksum
    assert reading_client.get("/" + found["products"][0]["image"]).headers["content-type"] == "image/jpeg"
    assert {one["gallery"] for one in reading_client.get("/search?q=a&gallery=b").json()["products"]} == {"b"}
    for query, status, reason in (
        ("", 422, "q: Field required"),
        ("q=", 422, "q: String should have at least 1 character"),
        ("q=%20|", 422, "q: found no words"),
        ("q=a&q=b", 400, "q: found twice"),
        ("q=a&gallery=c", 404, "'c'"),
        ("q=a&by=sound", 422, "by: Input should be 'pictures' or 'titles'"),
    ):
        answer = reading_client.get(f"/search?{query}")
        assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text
    answer = client.get("/search?q=a")
    assert answer.status_code == 404 and "no titles as vectors" in answer.json()["detail"]


def test_the_api_is_described(client):
    schema = client.get("/openapi.json").json()
    form = schema["paths"]["/recognize"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"video", "frames", "subtitles", "text"} <= form["properties"].keys()
    body = schema["paths"]["/streams/{stream_id}/text"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["text", "start", "end"]
