"""The evaluation of own clips, as text and as a page."""

import re

import pytest

from rice_jax.pages.clips import clip_tables, suggestion, write_clips_page
from tests.pages import markup
from tests.pages.reports import EVIL
from tests.shop import draw, png

CUTOFFS = ("rank-1", "rank-3", "rank-5", "rank-10")


def result(name, ranked_by, right, wrong):
    score = {
        "num_queries": 8,
        "rank": dict(zip(CUTOFFS, (0.5, 0.625, 0.75, 1.0), strict=True)),
        "chance": dict.fromkeys(CUTOFFS, 0.1),
        "interval": dict.fromkeys(CUTOFFS, (0.25, 1.0)),
        "interval_over": "clips",
    }
    naming = {"right": right, "wrong": wrong, "silent": 8 - right - wrong, "none": 2, "min_confidence": None}
    naming |= {"wrong_share": wrong / (right + wrong), "wrong_interval": (0.1, 1.0)}
    return {"name": name, "ranked_by": ranked_by, "calibration": None, "score": score, "naming": naming}


def clip(number, product, best, named, confidence):
    return {
        "clip": f"{EVIL}{number}.mp4", "start": 1.5, "end": None if number % 2 else 9.0, "film": "f", "rank": 3,
        "product": product, "best": best, "gallery": "", "named": named, "confidence": confidence,
        "place": f"clips.csv:{number}",
    }  # fmt: skip


@pytest.fixture
def found():
    results = [result("present", "mean", 4, 2), result("calibrated", "frames", 5, 1)]
    point = lambda least, right, wrong: {  # noqa: E731
        "right": right, "wrong": wrong, "silent": 8 - right - wrong, "none": 2, "min_confidence": least
    }  # fmt: skip
    return {
        "about": {
            "clips": "clips.csv", "index": "shop", "gallery": None, "num_clips": 10, "num_none": 2, "num_films": 1,
            "num_products": 1200, "num_unusable": 3, "max_wrong": 0.15,
        },
        "results": results,
        "suggested": results[1]["naming"] | {"min_confidence": 0.6123},
        "curve": [point(0.0, 5, 3), point(0.6123, 5, 1), point(0.9, 1, 0)],
        "clips": [
            clip(1, "mug", "sofa", True, 0.7), clip(2, "", EVIL, True, 0.9), clip(3, "mug", "mug", True, 0.8),
            clip(4, "sofa", "mug", False, 0.2), clip(5, "", "mug", False, 0.1), clip(6, "mug", "sofa", True, None),
        ],
    }  # fmt: skip


def test_tables(found):
    found["difference"] = {name: {"mean": 0.125, "ends": [-0.25, 0.5]} for name in CUTOFFS}
    text = clip_tables(found)
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith(
        "10 clips of 1 film, 2 of them without a product of the shop; 1,200 products; 3 more cannot be"
    )
    rows = {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:] for line in text.splitlines() if "  " in line}
    assert rows["difference"] == ["+12.5 (-25..+50)"] * 4
    assert rows["chance"] == ["10.0 %"] * 4
    assert rows["calibrated, by frames"] == ["5", "1", "2", "2", "16.7 % (10-100)"]
    assert rows["--min_confidence=0.6123"][0] == "5"
    assert (
        "50.0 % (25-100)" in text and "bootstrapped over clips, none where all agree; of wrong names, binomial." in text
    )
    assert text.endswith("With --min_confidence=0.6123, 6 of these clips are named, 1 of them wrongly (limit: 15.0 %).")


def test_one_clip_is_one_and_an_interval_without_length_is_none(found, tmp_path):
    found["about"] |= {"num_clips": 1, "num_none": 1, "num_products": 1, "num_unusable": 0}
    for result in found["results"]:
        result["score"] |= {"rank": dict.fromkeys(CUTOFFS, 0.0), "interval": dict.fromkeys(CUTOFFS, (0.0, 0.0))}
    found["difference"] = {name: {"mean": 0.0, "ends": [0.0, 0.0]} for name in CUTOFFS}
    text = clip_tables(found)
    assert text.startswith("1 clip of 1 film, 1 of it without a product of the shop; 1 product\n")
    assert "(0-0)" not in text and "none where all agree" in text and max(map(len, text.splitlines())) <= 100
    assert "+0.0" in text and "+0..+0" not in text
    write_clips_page(tmp_path / "out.html", found, {})
    assert "0.0–0.0" not in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_the_threshold_has_all_its_digits(found, tmp_path):
    """A rounded one may name another clip."""
    found["suggested"]["min_confidence"] = 0.6123456789012345
    assert max(map(len, clip_tables(found).splitlines())) <= 100
    write_clips_page(tmp_path / "out.html", found, {})
    for text in (clip_tables(found), (tmp_path / "out.html").read_text(encoding="utf-8")):
        assert re.findall(r"--min_confidence=([\d.]*\d)", text) == ["0.6123456789012345"] * 2


def test_where_nothing_can_be_suggested(found):
    found["suggested"] = None
    assert suggestion(found) == "No threshold gives at most 15.0 % of wrong names on these clips."
    found["curve"] = []
    assert suggestion(found).startswith("Without a calibration there are no confidences")
    assert "--min_confidence" not in clip_tables(found)


def test_the_page_shows_the_mistakes_the_surest_first(found, tmp_path):
    (tmp_path / "mug.png").write_bytes(png(draw(1)))
    pictures = {("", "mug"): str(tmp_path / "mug.png"), ("", "sofa"): str(tmp_path / "gone.png")}
    write_clips_page(tmp_path / "out.html", found, pictures)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert EVIL not in page, "it is escaped"
    assert markup.problems(page) == []
    assert "Named wrongly: 3" in page and "Not named: 1" in page
    assert [int(number) for number in re.findall(r"clips\.csv:(\d)", page)] == [2, 1, 6, 4]
    assert "<svg" in page and "named rightly" in page
    assert page.count("<img data-picture") == 3, "those of the mug"
    # Of two galleries with the same ids, the pictures are those of the gallery in which the product was found.
    pictures = {("a", "mug"): str(tmp_path / "gone.png"), ("b", "mug"): str(tmp_path / "mug.png")}
    for gallery, count in (("a", 0), ("b", 3)):
        clips = [clip | {"gallery": gallery} for clip in found["clips"]]
        write_clips_page(tmp_path / "out.html", found | {"clips": clips}, pictures)
        assert (tmp_path / "out.html").read_text(encoding="utf-8").count("<img data-picture") == count
    found |= {"curve": [], "suggested": None}
    write_clips_page(tmp_path / "out.html", found, {})
    assert "<svg" not in (tmp_path / "out.html").read_text(encoding="utf-8")
