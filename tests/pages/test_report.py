import dataclasses
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from rice_jax.eval import attention, metrics, ranking
from rice_jax.eval.results import Row
from rice_jax.input.ground_truth import Query
from rice_jax.input.product_boxes import ProductBoxes
from rice_jax.input.source import Source
from rice_jax.pages import album, plots, report
from rice_jax.pages.attention import Attention
from rice_jax.types import DataError
from tests.pages import markup
from tests.pages.reports import EVIL, LOG, evaluated, write
from tests.settings import small_config


def test_the_page_holds_what_was_found(evil_shop, tmp_path):
    text = write(tmp_path / "report.html", evil_shop, LOG)
    assert markup.problems(text) == []
    ranked, _, result, _ = evaluated(evil_shop)
    for share, ends in zip(result.score.rank.values(), result.score.interval.values(), strict=True):
        assert f"{100 * share:.1f} %<small>{100 * ends[0]:.1f}–{100 * ends[1]:.1f}*</small>" in text, (
            "of two livestreams"
        )
    for name, mean in result.score.order.items():
        low, high = (100 * end for end in mean.interval)
        assert f"<th>{name}</th>" in text and f"{100 * mean.mean:.1f} %<small>{low:.1f}–{high:.1f}*</small>" in text
    assert "all 4 queries, 1 of them misses" in text
    assert "2 queries could not be ranked" in text and "1 × unreadable" in text
    assert "truth in place 4 of 4" in text and "truth in place 1 of 4" in text
    for title in ("Rank-k", "Score of the first product", "Loss", "Accuracy in the batch", "Most confused pairs"):
        assert title in text
    assert all(query in text for query in ranked.query_ids)
    pictures = json.loads(re.search(r'id="pictures">(.*?)</script>', text)[1])
    assert len(pictures) == 12 + 8, "three frames of each of four queries, and every image of two galleries once"
    assert text.count('class="box true"') > 1 and 'class="box found"' not in text[text.index("<article") :]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_texts_are_no_html(evil_shop, tmp_path):
    text = write(tmp_path / "report.html", evil_shop, LOG)
    assert html.escape(EVIL).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    assert EVIL not in text and "<b title=" not in text
    assert text.count("<script") == 2 and text.count("</script>") == 2, "the page's own, and its pictures"
    assert "49$" not in text, "no template either"


def test_the_page_fetches_nothing(evil_shop, tmp_path):
    text = write(tmp_path / "report.html", evil_shop, LOG)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert "@import" not in text and "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert "default-src 'none'" in text


def test_the_same_evaluation_writes_the_same_page(evil_shop, tmp_path):
    first = write(tmp_path / "a.html", evil_shop, LOG)
    assert write(tmp_path / "b.html", evil_shop, LOG) == first


def test_a_run_with_little_to_tell(evil_shop, tmp_path):
    text = write(tmp_path / "report.html", evil_shop, labels=(), single=True)
    assert "fewer than 20 livestreams" in text and "*</small>" in text and "1</b>gallery of\n4 products" in text
    assert "Subsets" not in text and "Loss" not in text and 'name="category"' not in text
    assert "all 2 queries, 1 of them misses" in text


def test_a_truth_that_is_not_in_the_gallery(evil_shop, tmp_path):
    ranked, queries, result, pictures = evaluated(evil_shop)
    missing = dict(truth_ranks=((), *ranked.truth_ranks[1:]), truths=(("gone",), *ranked.truths[1:]))
    ranked = dataclasses.replace(ranked, **missing)
    path = tmp_path / "report.html"
    report.write_report(path, report.Evaluation("run", {Row(0): result}, Row(0), ranked, queries, [], {}), pictures)
    assert "no truth among 4 products" in path.read_text() and "no picture" in path.read_text()


class Noise:
    """A data set of pictures that cannot be compressed."""

    def __init__(self, *_, **__):
        pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        self.row = {"frames": [file.getvalue()] * 10, "image": file.getvalue()}

    def __getitem__(self, index):
        return self.row | {"clip_id": f"q{index}".encode()}


@pytest.mark.slow
def test_a_report_of_many_queries_stays_small(monkeypatch, tmp_path):
    monkeypatch.setattr(album, "Source", Noise)
    num, long = 20_000, "商品" * 500
    rng = np.random.default_rng(0)
    names = [f"{image} {long}" for image in range(60)]
    ranked = ranking.Ranking(
        query_ids=tuple(f"q{i}" for i in range(num)),
        gallery_ids=tuple(f"g{i % 100}" for i in range(num)),
        truth_ranks=tuple((rank,) for rank in rng.integers(1, 4, num).tolist()),
        gallery_size=np.full(num, 60),
        truths=tuple((names[i % 60],) for i in range(num)),
        top=tuple(tuple((names[(i + k) % 60], 1.0 - k / 10) for k in range(10)) for i in range(num)),
        images=tuple(tuple(names[(i + k) % 60] for k in range(10)) for i in range(num)),
    )
    queries = [
        Query(f"q{i}", f"g{i % 100}", (names[i % 60],), long, f"{i % 900} {long}", "", "", "") for i in range(num)
    ]
    result = metrics.evaluate(ranked, labels={"category": [query.category for query in queries]})
    rows = {(f"g{gallery}", name): place for place, name in enumerate(names) for gallery in range(100)}
    pictures = album.Album("", "", "", {pair: hash(pair) for pair in rows}, 10)
    path = tmp_path / "report.html"
    places = sorted(report.choose_queries(ranked.rank)[: attention.NUM_QUERIES])
    weights = rng.integers(0, 256, (len(places), attention.GRID**2, 10, attention.GRID**2)).astype(np.uint8)
    seen = Attention(small_config().input, {place: names[place % 60] for place in places}, weights)
    evaluation = report.Evaluation("run", {Row(0): result}, Row(0), ranked, queries, [], {})
    report.write_report(path, evaluation, pictures, seen)
    text = path.read_text()
    assert 10e6 < path.stat().st_size < 20e6
    assert "The 60 largest of 900." in text
    [shown] = re.findall(r"a sample of (\d+) of 20,000 queries", text)
    assert text.count("<article") == int(shown) > 30
    assert text.count('<details class="attention"') == len(places) == 40
    assert 0.3 < text.count("card hit") / int(shown) < 0.7, "what has no room is missing everywhere alike"


@pytest.mark.parametrize(
    ("num_misses", "num_hits", "expected"), [(50, 50, 5), (3, 50, 3), (50, 3, 7), (4, 3, 4), (0, 9, 0)]
)
def test_misses_and_hits_are_shown_alike(num_misses, num_hits, expected):
    rank = np.array([2, 0, 9] * num_misses)[:num_misses].tolist() + [1] * num_hits
    rank = np.random.default_rng(0).permutation(rank)
    chosen = report.choose_queries(rank, 10)
    assert chosen == report.choose_queries(rank, 10)
    assert len(set(chosen)) == len(chosen) == min(10, num_misses + num_hits)
    assert sum(rank[chosen] != 1) == expected


def test_the_most_confused_pairs():
    firsts = [("a", "b"), ("a", "b"), ("b", "a"), ("c", "a"), ("c", "a"), ("d", "d"), ("e", "c"), ("c", "e")]
    ranked = ranking.Ranking(
        query_ids=tuple(map(str, range(len(firsts)))),
        gallery_ids=("g",) * len(firsts),
        truth_ranks=tuple((1,) if truth == first else (2,) for truth, first in firsts),
        gallery_size=np.full(len(firsts), 5),
        truths=tuple((truth,) for truth, _ in firsts),
        top=tuple(((first, 0.5),) for _, first in firsts),
        images=tuple((first,) for _, first in firsts),
    )
    found = [pair[1:] for pair in report.confused_pairs(ranked)]
    assert found == [("a", "b", 2, 1), ("c", "a", 2, 0), ("e", "c", 1, 1)]
    assert report.confused_pairs(ranked, 1) == [("g", "a", "b", 2, 1)]


def test_a_log_that_is_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert report.read_log(path) == []
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert report.read_log(path) == [{"step": 1, "loss": 2.0}]


def test_plots_take_the_color_of_the_page_and_no_names():
    curve = plots.Curve([1, 2, 5], [0.1, 0.2, 1.0])
    for plot in (
        plots.lines("t", {EVIL: curve, "_x": curve}, xlabel="k", percent=True, places=[1, 2, 5]),
        plots.histogram("t", {EVIL: [0.5], "_x": [0.1, 0.2], "none": []}, xlabel="score"),
        plots.histogram("t", {EVIL: [0.5, 0.5], "_x": [0.5]}, xlabel="score"),
    ):
        assert "currentColor" in plot.svg and "script" not in plot.svg and plot.svg.startswith("<svg")
        assert [name for name, _ in plot.legend] == [EVIL, "_x"]
        assert all(color in plot.svg for _, color in plot.legend)


def test_a_long_training_becomes_few_points():
    log = [{"step": step, "loss": float(step % 2)} for step in range(1, 100_001)]
    [plot] = report.training_plots({"": log})
    assert len(plot.svg) < 30_000


def test_every_loss_with_a_weight_has_a_curve():
    names = ["loss", "icl", "pmd", "pfr", "distill", "distill_direct", "image_title", "video_speech", "title_speech"]
    [plot] = report.training_plots({"": [{"step": step, **dict.fromkeys(names, 1.0)} for step in (1, 2)]})
    assert plot.title == "Loss" and sorted(name for name, _ in plot.legend) == sorted(names)


@pytest.mark.parametrize("size", [(27, 48), (2000, 100), (480, 854)])
def test_thumbnails_are_small_and_keep_their_shape(size):
    file = io.BytesIO()
    Image.new("RGBA", size, (200, 30, 30, 255)).save(file, "PNG")
    encoded, (width, height) = album.thumbnail(file.getvalue())
    assert width <= min(size[0], album.WIDTH) and height <= min(size[1], album.HEIGHT)
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)
    assert Image.open(io.BytesIO(encoded)).size == (width, height)


def test_detected_boxes_are_drawn_beside_the_data_set_s_own(evil_shop, tmp_path):
    rows = Source(str(evil_shop), "lpr4m/query", ("frame_ids",))
    lines = [{"frame_id": frame.decode(), "boxes": [], "scores": []} for row in rows for frame in row["frame_ids"]]
    lines[0] |= {"boxes": [[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]], "scores": [0.9, 0.6]}
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = small_config(model__ipd="boxes", data__query_boxes=str(tmp_path / "boxes.jsonl")).input
    boxes = ProductBoxes(data, data.query_boxes, ())
    clip_id = lines[0]["frame_id"].rpartition("-")[0]
    first, *others = album.Album(str(evil_shop), "lpr4m/query", "lpr4m/gallery", {}, 3, boxes).query(0, clip_id)
    assert first["found"] == [pytest.approx((0.25, 0.5, 0.75, 1.0))] and not any(frame["found"] for frame in others)
    assert first["truths"] == [pytest.approx((0.1, 0.2, 0.6, 0.8)), pytest.approx((0.5, 0.5, 1.0, 1.0))]


def test_a_data_set_that_was_built_anew_is_refused(evil_shop):
    pictures = album.Album(str(evil_shop), "lpr4m/query", "lpr4m/gallery", {}, 3)
    with pytest.raises(DataError, match="query/1.0.0: found clip .* in row 1, expected another-one.*rice eval"):
        pictures.query(1, "another-one")


def test_a_product_is_shown_by_its_best_image(evil_shop):
    ranked, queries, result, pictures = evaluated(evil_shop)
    place = 1
    gallery, images = ranked.gallery_ids[place], ranked.images[place]
    # The products' images take each other's places: the first product is shown by the image of the last one.
    top = tuple((f"product {number}", score) for number, (_, score) in enumerate(ranked.top[place]))
    tops, shown = list(ranked.top), list(ranked.images)
    tops[place], shown[place] = top, images[::-1]
    truths = list(ranked.truths)
    truths[place] = ("product 1",)
    other = dataclasses.replace(ranked, top=tuple(tops), images=tuple(shown), truths=tuple(truths))
    card = report._card(
        place, report.Evaluation("run", {Row(6): result}, Row(6), other, queries, [], {}), pictures, None
    )
    assert [image["id"] for image in card["images"]] == [f"product {number}" for number in range(len(top))]
    assert [image["truth"] for image in card["images"]] == [number == 1 for number in range(len(top))]
    expected = [pictures.image(gallery, image)["thumbnail"] for image in images[::-1]]
    assert [image["thumbnail"] for image in card["images"]] == expected and len(set(expected)) == len(top)
