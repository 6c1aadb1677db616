"""Which frame shows a part of a live stream."""

from dataclasses import replace

import numpy as np
import pytest

from rice_jax.index.smaller import make_smaller
from rice_jax.recognition.changes import WINDOW, Event, product_vectors
from rice_jax.recognition.engine import Frames, Match
from rice_jax.serving.stills import Still, Stills
from tests.recognition.test_changes import FakeEngine, FakeModel

ENGINE = FakeEngine()
WIDTH = 6  # of the fake engine's embeddings


def event(kind, second, product=0):
    return Event(kind, 0.0, second, Match(f"p{product}", "a", "", 0.9, 0.9, ""), 0.9, ())


def add(stills, cosines, product=0, begin=0, engine=ENGINE):
    """Adds a frame a second; each has some cosine with a product, and what is left with no other one."""
    for place, cosine in enumerate(cosines):
        features = np.zeros((1, WIDTH), np.float32)
        features[0, [product, -1]] = 3 * np.array([cosine, np.sqrt(1 - cosine**2)])
        second = float(begin + place)
        stills.add(engine, [Still(second, str(second).encode())], Frames(features, None))


def second_of(still):
    return still and still.second


def test_the_frame_that_is_most_similar_to_the_product():
    stills = Stills()
    assert stills.of(event("gone", 0.0)) is None, "there are no frames"
    add(stills, [0.99, 0.2, 0.5, 0.7, 0.6])
    assert second_of(stills.of(event("shown", 0.5))) == 3, "the first one is before the part"
    add(stills, [0.6, 0.8, 0.7], begin=5)
    add(stills, [0.9, 0.9, 0.95], begin=8)  # like the product, but after its end
    add(stills, [0.7, 0.8, 0.6], product=1, begin=11)
    assert second_of(stills.of(event("gone", 7.5))) == 6
    assert second_of(stills.of(event("shown", 10.5, product=1))) == 12
    assert second_of(stills.of(event("gone", 13.0, product=1))) == 12


@pytest.mark.parametrize("best", [0, 5, WINDOW, 2 * WINDOW, 3 * WINDOW - 1])
def test_long_parts_keep_their_best_frame_and_no_others(best):
    stills = Stills()
    add(stills, [0.5] * 3)
    stills.of(event("shown", 0.0))
    add(stills, [0.9 if place == best else 0.5 for place in range(3 * WINDOW)], begin=3)
    assert len(stills._latest) == WINDOW
    assert second_of(stills.of(event("gone", 3.0 * WINDOW + 3))) == best + 3


def test_frames_of_another_model_are_not_compared():
    stills, other = Stills(), FakeEngine()
    other.model = FakeModel()
    add(stills, [0.9] * 3)
    assert second_of(stills.of(event("shown", 0.0))) == 0
    add(stills, [0.5, 0.99], begin=3, engine=other)
    assert stills.of(event("gone", 4.0)) is None, "the event that has told the part has a frame"
    assert second_of(stills.of(event("shown", 3.0))) == 4


def test_a_product_that_has_left_the_index_has_no_frame():
    stills = Stills()
    add(stills, [0.9] * 3)
    gone = event("shown", 0.0)
    assert stills.of(gone._replace(product=gone.product._replace(id="old"))) is None


def test_vectors_of_fewer_numbers_are_compared_in_the_space_of_the_frames(live_shop):
    index = make_smaller(live_shop.index, 2)
    engine, whole = FakeEngine(), live_shop.index
    engine.index = index
    assert index.vectors.shape[1] == 2 < whole.vectors.shape[1]
    product = Match(index.product_ids[0], index.gallery_ids[0], "", 0.9, 0.9, "")
    np.testing.assert_allclose(product_vectors(engine, product)[0], index.vectors[0] @ index.projection.T, rtol=1e-6)
    stills = Stills()
    for second, vector in enumerate([whole.vectors[-1], whole.vectors[0], whole.vectors[-1]]):
        stills.add(engine, [Still(float(second), b"")], Frames(vector[None], None))
    assert second_of(stills.of(event("shown", 0.0)._replace(product=product))) == 1


def test_names_tell_frames_apart():
    still = Still(1.0, b"a")
    assert still.name == Still(2.0, b"a").name != replace(still, jpeg=b"b").name and len(still.name) == 16
