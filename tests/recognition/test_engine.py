"""The engine gives what the model's own methods give, which evaluation uses."""

import dataclasses
import logging
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from rice_jax.eval.pooling import SHARPNESS
from rice_jax.input.transforms import sample_frames
from rice_jax.models.layers import video_token_mask
from rice_jax.models.weights import CheckpointError, load_weights, match_fingerprint, save_weights
from rice_jax.recognition.engine import Engine, Frames, Match, first_places
from rice_jax.types import DataError
from tests.shop import NUM_FRAMES, SCALE, SLOPE, THRESHOLD, make_shop, png, show, write_products


@pytest.fixture(scope="module")
def shop(live_shop):
    return live_shop


@pytest.fixture(scope="module")
def engine(shop):
    return Engine(shop.directory, batch_sizes=(1, 4))


@pytest.fixture(scope="module")
def matching(shop):
    return Engine(shop.directory, rerank=3)


PRODUCTS = {("a", "mug"): [0, 3], ("a", "p1"): [1], ("a", "sofa"): [2, 4, 5], ("b", "mug"): [6, 7]}
CLIPS = [[2, 9, 2], [3], [10, 0], [7, 8], [4, 11, 5], [0, 1, 2, 3]]


@pytest.fixture(scope="module")
def several(shop, tmp_path_factory):
    """Engines of an index with several images of a product: without, and with re-ranking of the first two."""
    names = {row: name for (_, name), rows in PRODUCTS.items() for row in rows}
    titles = ["", "", "", "red mug", "sofa", "the sofa's back", "", ""]
    products = [names[row] for row in range(8)]
    directory = write_products(shop, tmp_path_factory.mktemp("several"), products, titles=titles)
    return Engine(directory), Engine(directory, rerank=2)


def encode(engine, shop, rows):
    return engine.encode(np.stack([engine.prepare(shop.pictures[row]) for row in rows]))


def cosines_of(shop, rows):
    """Cosines between a clip of these pictures and all images, by the model itself."""
    video = np.stack([show(png(shop.pictures[row]), shop.config) for row in rows])[None]
    batch = {"video": jnp.asarray(video), "frame_mask": jnp.ones(video.shape[:2], bool)}
    embedding = shop.model.embed_video(batch)[0]
    return shop.index.vectors @ np.asarray(embedding)


def test_a_picture_is_cut_as_evaluation_does(engine, shop):
    picture = shop.pictures[0]
    expected = show(png(picture), shop.config)
    np.testing.assert_array_equal(engine.prepare(picture), expected)
    np.testing.assert_array_equal(engine.prepare(png(picture)), expected)


@pytest.mark.parametrize("broken", [b"", b"no picture", png(np.zeros((40, 40, 3), np.uint8))[:60]])
def test_a_broken_picture_is_refused(engine, broken):
    with pytest.raises(DataError, match=f"a picture of {len(broken)} bytes cannot be decoded"):
        engine.prepare(broken)


def test_a_clip_ranks_as_the_model_says(engine, shop):
    found = engine.rank(encode(engine, shop, [2, 9, 2]), top=3, time=7.0)
    cosines = cosines_of(shop, [2, 9, 2])
    order = np.argsort(-cosines)
    assert [match.id for match in found.products] == [f"p{row}" for row in order[:3]]
    np.testing.assert_allclose([match.score for match in found.products], cosines[order[:3]], atol=1e-6)
    none = 1 / (1 + np.exp(SLOPE * (cosines.max() - THRESHOLD)))
    shares = np.exp(SCALE * (cosines - cosines.max()))
    expected = (1 - none) * shares / shares.sum()
    np.testing.assert_allclose([match.confidence for match in found.products], expected[order[:3]], rtol=2e-3)
    np.testing.assert_allclose(found.none, none, rtol=2e-3)
    assert found.time == 7.0
    first = found.products[0]
    assert (first.gallery, first.title) == ("a", "title p2")


def pooled(engine, values):
    """The score of a product from those of its images, by the definition."""
    sharpness = SHARPNESS * engine.logit_scale
    return np.log(np.mean(np.exp(sharpness * values))) / sharpness


def added_by_images(engine, products):
    """{product: what its images add to its cosine in clips that show others}, for which all other images stand."""
    vectors = engine.index.vectors.astype(float)
    found = {}
    for name, rows in products.items():
        others = [vectors[rows] @ vectors[other] for other in range(len(vectors)) if other not in rows]
        found[name] = np.mean([pooled(engine, values) - values.mean() for values in others])
    return found


@pytest.mark.parametrize("rows", CLIPS)
@pytest.mark.parametrize("gallery", [None, "a", "b"])
def test_products_rank_by_the_pooled_cosines_of_their_images(several, shop, rows, gallery):
    engine, _ = several
    frames = encode(engine, shop, rows)
    own = {name: rows for name, rows in PRODUCTS.items() if gallery in (None, name[0])}
    cosines = engine._cosines(frames)
    best = {name: max(rows, key=lambda row: cosines[row]) for name, rows in own.items()}
    added = added_by_images(engine, PRODUCTS)
    assert added["a", "p1"] == pytest.approx(0, abs=1e-12) and min(added["a", "mug"], added["a", "sofa"]) > 0
    scores = {name: pooled(engine, cosines[rows].astype(float)) - added[name] for name, rows in own.items()}
    found = engine.rank(frames, gallery, top=8)
    order = sorted(best, key=lambda name: -scores[name])
    assert [(match.gallery, match.id) for match in found.products] == order, "each once"
    assert [match.image_id for match in found.products] == [f"p{best[name]}" for name in order]
    np.testing.assert_allclose([match.score for match in found.products], [scores[n] for n in order], atol=2e-7)
    shares = engine.calibration.probabilities(np.array([match.score for match in found.products]))
    np.testing.assert_allclose([*(match.confidence for match in found.products), found.none], shares, rtol=1e-5)
    assert sum(match.confidence for match in found.products) + found.none == pytest.approx(1)
    titles = {"p1": "", "sofa": "sofa", "mug": "red mug"}
    assert [match.title for match in found.products if match.gallery == "a"] == [
        titles[name] for shop_gallery, name in order if shop_gallery == "a"
    ]
    assert engine.rank(frames, gallery, top=1).products == found.products[:1]


def test_products_are_re_ordered_by_their_best_images(several, shop):
    engine, matching = several
    everything = Engine(shop.directory, rerank=8)
    for rows in CLIPS:
        frames = encode(matching, shop, rows)
        decoder = {match.id: match.score for match in everything.rank(frames, top=8).products}
        before, found = engine.rank(frames, top=8), matching.rank(frames, top=8)
        first = sorted(before.products[:2], key=lambda match: -decoder[match.image_id])
        assert [match.image_id for match in found.products] == [
            match.image_id for match in (*first, *before.products[2:])
        ]
        scores = [decoder[match.image_id] for match in first] + [match.score for match in before.products[2:]]
        np.testing.assert_allclose([match.score for match in found.products], scores, atol=1e-5)
        by_image = {match.image_id: match.confidence for match in before.products}
        for match in found.products:
            assert match.confidence == pytest.approx(by_image[match.image_id], rel=1e-3)


@pytest.mark.parametrize("by_frames", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.02, 50.0])
def test_the_decoder_is_added_with_the_weight_of_the_calibration(several, shop, caplog, by_frames, weight):
    plain, alone = several
    params, _ = load_weights(shop.index.about.checkpoint)
    decoder = match_fingerprint(params, shop.index.about.model)
    calibration = dataclasses.replace(
        shop.index.about.calibration,
        scale_by_frames=SCALE if by_frames else None,
        match_weight=0.7 if by_frames else weight,
        match_weight_by_frames=weight if by_frames else None,
        match_fingerprint=decoder,
    )
    own = dataclasses.replace(shop.index.about, calibration=calibration, match_fingerprint=decoder)
    index = dataclasses.replace(plain.index, about=own)
    before, found = Engine(index, others=[plain]), Engine(index, rerank=2, others=[alone])
    assert ("gives the decoder no weight" in caplog.text) == (weight == 0)
    assert before.by_frames == found.by_frames == by_frames
    for rows in CLIPS:
        frames = encode(alone, shop, rows)
        ranked = before.rank(frames, top=8).products
        places = [index.image_ids.index(match.image_id) for match in ranked[:2]]
        sums = [
            match.score + weight * cosine
            for match, cosine in zip(ranked, alone._reranker.match(frames, np.array(places)), strict=False)
        ]
        order = sorted(range(2), key=lambda place: -sums[place])
        assert [match.image_id for match in found.rank(frames, top=8).products] == [
            *(ranked[place].image_id for place in order),
            *(match.image_id for match in ranked[2:]),
        ]
        expected = [sums[place] for place in order] + [match.score for match in ranked[2:]]
        np.testing.assert_allclose([match.score for match in found.rank(frames, top=8).products], expected, rtol=1e-6)
        if not weight:
            assert found.rank(frames, top=8) == before.rank(frames, top=8)


@pytest.mark.parametrize("calibrated", [True, False])
def test_without_a_weight_of_its_own_the_decoder_orders_alone(several, shop, caplog, calibrated):
    """The calibration is of another decoder, or there is none."""
    plain, alone = several
    other = dataclasses.replace(shop.index.about.calibration, match_weight=0.0, match_fingerprint="of another")
    about = dataclasses.replace(shop.index.about, calibration=other if calibrated else None)
    found = Engine(dataclasses.replace(plain.index, about=about), rerank=2, others=[alone])
    assert "no calibrated weight of its decoder" in caplog.text
    frames = encode(alone, shop, CLIPS[0])
    expected = alone.rank(frames, top=8).products
    products = found.rank(frames, top=8).products
    assert [match[:4] for match in products] == [match[:4] for match in expected]


@pytest.mark.parametrize("rows", CLIPS)
@pytest.mark.parametrize("gallery", [None, "a", "b"])
def test_with_one_image_each_products_rank_as_images(engine, shop, rows, gallery):
    """Bit by bit."""
    frames = encode(engine, shop, rows)
    here = [row for row in range(8) if gallery in (None, shop.index.gallery_ids[row])]
    cosines = engine._cosines(frames)[here]
    shares = engine.calibration.probabilities(cosines)
    expected = tuple(
        Match(f"p{here[place]}", shop.index.gallery_ids[here[place]], f"title p{here[place]}",
              float(cosines[place]), float(shares[place]), f"p{here[place]}")
        for place in first_places(cosines, 5)
    )  # fmt: skip
    named = expected[0] if shares[-1] <= 0.5 else None
    assert engine.rank(frames, gallery, top=5) == (0.0, expected, float(shares[-1]), False, named)


def test_a_gallery_is_all_there_is(engine, shop):
    found = engine.rank(encode(engine, shop, [2]), "b", top=5)
    assert {match.id for match in found.products} == {"p6", "p7"}
    assert sum(match.confidence for match in found.products) + found.none == pytest.approx(1)
    assert engine.galleries == ["a", "b"]


@pytest.mark.parametrize(
    "gallery, frames, message",
    [
        ("c", 1, "found no gallery 'c' in the index, which has 2: 'a', 'b'"),
        (None, 0, "found 0 frames and top=5, expected at least one of both"),
        (None, np.nan, "not finite"),
    ],
)
def test_what_cannot_be_ranked(engine, gallery, frames, message):
    features = np.full((1, 16), frames, np.float32) if frames else np.empty((0, 16), np.float32)
    with pytest.raises(DataError, match=message):
        engine.rank(Frames(features, None), gallery)


def test_nothing_to_name(engine, shop):
    with pytest.raises(DataError, match="found 1 frames and top=0"):
        engine.rank(encode(engine, shop, [0]), top=0)


def test_any_number_of_pictures_is_encoded(engine, shop):
    together = encode(engine, shop, range(7))
    apart = [encode(engine, shop, [row]).features[0] for row in range(7)]
    np.testing.assert_allclose(together.features, apart, atol=1e-5)


def test_of_a_long_clip_frames_are_chosen_evenly(engine, shop):
    rows = [*range(8), *range(8)]
    frames = encode(engine, shop, rows)
    assert engine.num_frames == NUM_FRAMES
    chosen = [rows[place] for place in sample_frames(16, NUM_FRAMES)]
    assert engine.rank(frames) == engine.rank(encode(engine, shop, chosen))


def test_the_decoder_re_orders_the_first(matching, engine, shop):
    rows, best = [2, 9, 5], 3
    frames, cosines = encode(matching, shop, rows), cosines_of(shop, rows)
    order = np.argsort(-cosines)
    video = np.stack([show(png(shop.pictures[row]), shop.config) for row in rows])[None]
    tokens = shop.model.video_tokens({"video": jnp.asarray(video)})
    token_mask = video_token_mask(jnp.ones((1, 3), bool), None, tokens.shape[2])
    keys_values = shop.model.pmd.keys_values(tokens.reshape(1, -1, tokens.shape[-1]))
    scores = {
        row: shop.model.pmd.cosine(
            shop.model.pmd.decode(jnp.asarray(shop.index.queries[row], jnp.float32)[None], keys_values, token_mask)
        ).item()
        for row in order[:best].tolist()
    }
    expected = sorted(scores, key=lambda row: -scores[row]) + order[best:5].tolist()
    found = matching.rank(frames, top=5)
    assert [match.id for match in found.products] == [f"p{row}" for row in expected]
    np.testing.assert_allclose(
        [match.score for match in found.products],
        [*(scores[row] for row in expected[:best]), *cosines[expected[best:]]],
        atol=1e-5,
    )
    by_embedding = {match.id: match.confidence for match in engine.rank(frames, top=8).products}
    for match in found.products:
        assert match.confidence == pytest.approx(by_embedding[match.id], rel=1e-3), "the calibration is of embeddings"
    small = matching.rank(frames, "b", top=5)
    assert sorted(match.id for match in small.products) == ["p6", "p7"], "a gallery smaller than what is re-ranked"


def test_nothing_is_compiled_after_the_constructor(engine, matching, shop, programs):
    for number in range(1, 7):
        for used in (engine, matching):
            frames = encode(used, shop, range(number))
            for gallery in (None, "a", "b"):
                used.rank(frames, gallery, top=number)
    assert not programs


def test_many_threads_get_their_own_answers(engine, shop):
    expected = [engine.rank(encode(engine, shop, [row])) for row in range(8)]
    found = {}

    def ask(row):
        for _ in range(5):
            found.setdefault(row, []).append(engine.rank(encode(engine, shop, [row])))

    threads = [threading.Thread(target=ask, args=[row]) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {row: [expected[row]] * 5 for row in range(8)}


def test_equal_scores_stay_in_the_order_of_the_index():
    scores = np.array([0.5, 0.9, 0.5, 0.9, 0.1, 0.5], np.float32)
    assert first_places(scores, 4).tolist() == [1, 3, 0, 2]
    assert first_places(scores, 9).tolist() == [1, 3, 0, 2, 5, 4]


def test_without_decoder_nothing_is_re_ranked(tmp_path, caplog):
    shop = make_shop(tmp_path, decoder=False, calibrated=False, ipd="boxes")
    with pytest.raises(CheckpointError, match="holds nothing to re-rank with.*leave --rerank out"):
        Engine(shop.directory, rerank=3)
    with caplog.at_level(logging.WARNING):
        engine = Engine(shop.directory)
    assert "frames are encoded whole" in caplog.text and "The index has no calibration" in caplog.text
    found = engine.rank(encode(engine, shop, [0]))
    assert found.none is None and {match.confidence for match in found.products} == {None}


def test_another_models_checkpoint_is_refused(shop, tmp_path):
    other = make_shop(tmp_path / "other", decoder=False)
    params, config = load_weights(other.index.about.checkpoint)
    params["encoder"]["position_embedding"] = params["encoder"]["position_embedding"] + 0.1
    save_weights(tmp_path / "changed", params, config)
    with pytest.raises(CheckpointError, match="index"):
        Engine(shop.directory, model=tmp_path / "changed")
