"""scripts/long_videos.py: counts against counts by hand, recognition on a shop that the index knows exactly."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rice_jax.index.store import write_index
from rice_jax.models.create import create_model, create_params
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.programs import comparing
from rice_jax.recognition.recognizer import encode_video
from rice_jax.recognition.video import Frame
from scripts import long_videos
from tests.settings import model_of, small_config
from tests.shop import draw, make_shop

A, B = {"product": "a"}, {"product": "b"}
EMPTY, OTHER = {"product": None, "gap": "empty"}, {"product": None, "gap": "other"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(make_shop(tmp_path_factory.mktemp("shop"), decoder=False).directory, batch_sizes=(32,))


@pytest.fixture(scope="module")
def index_by_frames(engine, tmp_path_factory):
    """The same index with three galleries, of four, two and two images, and a calibration by frames."""
    directory, about = tmp_path_factory.mktemp("by_frames"), engine.index.about
    calibration = dataclasses.replace(about.calibration, scale_by_frames=9.0)
    about = dataclasses.replace(about, calibration=calibration)
    write_index(
        directory, dataclasses.replace(engine.index, gallery_ids=["a"] * 4 + ["c"] * 2 + ["b"] * 2, about=about)
    )
    return directory


def test_tally_by_hand():
    truth = [EMPTY] * 3 + [A] * 4 + [B] * 2 + [OTHER] * 2
    named = [None, "a", "a", "a", "a", None, "b", "b", "b", "a", None]
    found = long_videos.tally(truth, named, ["a"] * 11)
    assert found == {
        "shown": 6, "right": 4, "none": 1, "wrong": 1, "forced": 4,
        "gap": 5, "alarm": 3, "gap empty": 3, "alarm empty": 2, "gap other": 2, "alarm other": 1,
        "false segments": 1,  # the last "a"; half of the first one is in the product's time
    }  # fmt: skip


def test_percentages():
    total = {"timeline shown": 8, "timeline right": 6, "timeline none": 2, "timeline gap": 30, "timeline alarm": 3}
    total |= {"timeline gap other": 10, "timeline alarm other": 3, "timeline false segments": 2}
    total |= {f"{way} {name}": 1 for way in ("live", "known") for name in ("shown", "gap")}
    found = long_videos.percentages(total)
    assert found["timeline right"] == 75 and found["timeline none"] == 25 and found["timeline wrong"] == 0
    assert found["timeline alarm"] == 10 and found["timeline alarm other"] == 30 and found["timeline alarm empty"] == 0
    assert found["timeline false segments"] == 4, "two in half a minute"


def test_recognizes_what_it_knows(engine):
    """With the shop's own pictures as frames, errors are possible only near borders that are not known."""
    shows = [(None, 9)] * 8 + [("p0", 0)] * 8 + [("p3", 3)] * 8 + [(None, 10)] * 8
    segments, truth = [], []
    for start in range(0, 32, 8):
        product = shows[start][0]
        segments.append({"start": start, "end": start + 8, "product": product} | ({} if product else {"gap": "other"}))
        truth += [segments[-1]] * 8
    frames = [Frame(float(t), draw(picture)) for t, (_, picture) in enumerate(shows)]
    times, encoded = encode_video(engine, frames, 32)
    film = long_videos.Film({"gallery": "a", "segments": segments}, truth, times, encoded)
    never = dataclasses.replace(engine.naming, min_confidence=1.0)
    found, nothing = long_videos.recognize(engine, film, [engine.naming, never])
    assert list(found) == list(nothing) == list(long_videos.WAYS) and engine.naming != never
    assert all(named == [None] * 32 and forced == found[way][1] for way, (named, forced) in nothing.items())
    expected = [product for product, _ in shows]
    for way, (named, forced) in found.items():
        right = np.array([name == product for name, product in zip(named, expected, strict=True)])
        assert len(forced) == 32 and None not in forced
        if way == "known":
            assert right.all()
        else:
            assert right.sum() >= 24 and right[[4, 12, 20, 28]].all()
    assert set(found["known"][1][8:24]) == {"p0", "p3"}


def test_the_least_confidence_is_the_lowest_that_names_in_few_gaps(engine):
    vectors, gap, part = engine.index.vectors, {"product": None, "gap": "other"}, {"product": "p3"}
    features = np.repeat([vectors[2] + 0.3 * vectors[0], vectors[3]], 8, axis=0)  # the gap resembles a product
    times, video = [float(time) for time in range(16)], {"gallery": "a", "segments": [gap, part]}
    film = long_videos.Film(video, [gap] * 8 + [part] * 8, times, Frames(features, None))
    [found] = engine.rank(film.frames.take(slice(0, 8)), "a", 1).products
    least = long_videos.least_confidences(engine, [film], {"a": engine.calibration}, 0)
    assert 0.05 < found.confidence < least["known"] < found.confidence + 0.05 < 1
    assert set(long_videos.least_confidences(engine, [film], {"a": engine.calibration}, 100).values()) == {0.05}


def test_clips_are_embedded_as_the_engine_compares_them(engine):
    parts = model_of(small_config(model__aggregation__kind="attention"))
    mesh, rng = engine.model.mesh, np.random.default_rng(0)
    params = create_params(parts, mesh, seed=0)
    params |= {"aggregation": jax.tree.map(lambda x: x + rng.normal(size=x.shape), params["aggregation"])}
    model = dataclasses.replace(engine.model, config=parts, graphdef=create_model(parts, mesh), params=params)
    similar, _ = comparing(model, engine.index)
    features = rng.normal(size=(3, parts.embed_dim)).astype(np.float32)
    (found,) = long_videos.embed_clips(types.SimpleNamespace(model=model), [Frames(features, None)])
    identity = jnp.eye(parts.embed_dim)
    np.testing.assert_allclose(found, similar(params, identity, jnp.asarray(features), jnp.ones(3, bool)), atol=1e-6)
    assert np.abs(found - long_videos.unit(features.mean(axis=0))).max() > 0.01


def test_calibrates_with_the_other_shops_clips_alone(engine):
    vectors = engine.index.vectors
    clips = {"c0": "p0", "c1": "p6", "c2": "p7", "c3": "elsewhere"}
    encoded = [Frames(3 * vectors[[row]], None) for row in (1, 6, 7, 2)]  # shop "b"'s are right, that of "a" is wrong
    alone = long_videos.calibrate(engine, clips, encoded, {"b"})
    assert alone.num_clips == 2 and alone.scale_by_frames
    others = [Frames(vectors[[0]], None), *encoded[1:3], Frames(vectors[[5]], None)]
    changed = long_videos.calibrate(engine, clips, others, {"b"})
    assert dataclasses.astuple(alone) == dataclasses.astuple(changed), "nothing of shop a plays a part"
    assert long_videos.calibrate(engine, clips, encoded, {"a", "b"}).scale < 0.5 * alone.scale, "where it would show"
    with pytest.raises(SystemExit, match="no clip"):
        long_videos.calibrate(engine, {"c": "elsewhere"}, encoded[:1], {"b"})


@pytest.mark.parametrize("score", ["mean", "frames"])
def test_measures_films_and_clips(index_by_frames, score, tmp_path, monkeypatch):
    """End to end, with pictures of the index instead of films."""
    engine = long_videos.open_engine(index_by_frames, score)
    assert engine.by_frames == (score == "frames")
    (tmp_path / "frames").mkdir()
    galleries = dict(zip(engine.index.image_ids, engine.index.gallery_ids, strict=True))
    lines = ["image_id,product_id\n"]
    for row, name in enumerate(galleries):
        (tmp_path / "frames" / f"clip{row}").mkdir()
        shutil.copy(engine.index.paths[row], tmp_path / "frames" / f"clip{row}" / "0000.png")
        lines.append(f"i{row},{name}\n")
    (tmp_path / "attribution.csv").write_text("".join(lines))
    truth = {f"clip{row}": [f"i{row}"] for row in range(8)}
    (tmp_path / "test_videoid_to_gtimage_8.json").write_text(json.dumps(truth))
    videos = [
        {"video": name, "gallery": galleries[name], "seconds": 8, "segments": [{"start": 0, "end": 8, "product": name}]}
        for name in ("p2", "p4", "p6")
    ]
    for video in videos:
        video["segments"] = [
            {"start": 0, "end": 6, "product": video["video"]},
            {"start": 6, "end": 8, "product": None, "gap": "empty"},
        ]
    shown = {"p2": 2, "p4": 4, "p6": 6}
    monkeypatch.setattr(
        long_videos, "read_video", lambda path: [Frame(float(t), draw(shown[path.name])) for t in range(8)]
    )
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(video) + "\n" for video in videos))
    [found] = long_videos.measure(engine, tmp_path, tmp_path, long_videos.read_truth(tmp_path))
    again, all_gaps = long_videos.measure(engine, tmp_path, tmp_path, videos, max_gaps=100)
    _, no_gap = long_videos.measure(engine, tmp_path, tmp_path, videos, max_gaps=-1)
    assert again == found and {all_gaps["known least"], no_gap["known least"]} == {5, 95}
    assert (
        all_gaps["known alarm"] == 100 and all_gaps["known chance"] == no_gap["known chance"] == found["known chance"]
    )
    assert found["known right"] == found["timeline forced"] == 100
    assert found["timeline chance"] == pytest.approx((100 / 4 + 100 / 2 + 100 / 2) / 3)
    assert found["timeline alarm"] == found["timeline alarm empty"] == 100, "the gap shows the product still"
    assert "3 videos of 3 shops" in long_videos.summary(videos) and "100.0 ± 0.0" in long_videos.table([found, found])


def test_says_what_is_missing(engine, tmp_path):
    write_index(tmp_path / "by_mean", engine.index)
    with pytest.raises(SystemExit, match="by_mean has no calibration by frames: evaluate the run and index again, or"):
        long_videos.open_engine(tmp_path / "by_mean", "frames")
    with pytest.raises(SystemExit, match="does not exist"):
        long_videos.read_truth(tmp_path)
    (tmp_path / "truth.jsonl").write_text(json.dumps({"gallery": "a"}) + "\n")
    with pytest.raises(SystemExit, match="videos of 1 shops, expected 2"):
        long_videos.read_truth(tmp_path)
    with pytest.raises(SystemExit, match="simulate.py"):
        long_videos.read_clips(tmp_path)


def test_segment_at_a_time():
    segments = [types.SimpleNamespace(start=0.0), types.SimpleNamespace(start=2.5)]
    starts = [0.0, 2.5]
    assert [segments.index(long_videos.at(segments, starts, t)) for t in (0.0, 2.0, 2.5, 9.0)] == [0, 0, 1, 1]
