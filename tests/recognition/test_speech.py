"""What is said has a part in the ranking if the index holds titles as vectors."""

import dataclasses

import numpy as np
import pytest

from rice_jax.eval.scores import scores_by_frames
from rice_jax.eval.texts import TextEmbedder, load_text_model
from rice_jax.index.milvus_copy import write_milvus
from rice_jax.index.text import Texts, embed_titles
from rice_jax.models.weights import CheckpointError
from rice_jax.recognition.candidates import find_candidates
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.naming import Naming
from rice_jax.recognition.recognizer import Recognizer, products_over_time
from rice_jax.recognition.speech import said_around
from rice_jax.recognition.stream import Stream
from rice_jax.recognition.subtitles import Sentence, join_sentences, said_between
from rice_jax.types import DataError
from tests.golden.cases import HERE
from tests.index.test_milvus import needs_milvus
from tests.text_model import EMBED_DIM, write_text_model

CLIP, WEIGHT = [2, 9, 2], 0.01
WORDS = [word for word in (HERE / "text" / "vocab.txt").read_text().split() if word.isalpha() and not word.isascii()]
TITLES = [*WORDS[:3], "", *WORDS[3:6], WORDS[0]]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def index(live_shop, tower):
    text = embed_titles(Texts(tower, batch_size=4), WEIGHT, TITLES, {})
    return dataclasses.replace(live_shop.index, text=text)


@pytest.fixture(scope="module")
def engine(index):
    return Engine(index)


@pytest.fixture(scope="module")
def pictures(live_shop):
    return Engine(live_shop.directory)


def encode(engine, shop, rows=CLIP):
    return engine.encode(np.concatenate([engine.prepare(shop.pictures[row])[None] for row in rows]))


def scores(found):
    return {match.id: match.score for match in found.products}


def test_a_score_is_the_cosine_of_the_pictures_and_the_weighted_one_of_the_texts(live_shop, tower, engine, pictures):
    embed = TextEmbedder(load_text_model(tower), batch_size=8)
    [speech], titles = embed([WORDS[1]])[0], embed([title or "a" for title in TITLES])[0]
    titles[[not title for title in TITLES]] = 0
    for gallery in (None, "a"):
        frames = encode(engine, live_shop)
        alone = scores(pictures.rank(frames, gallery, top=8))
        found = scores(engine.rank(frames, gallery, top=8, speech=WORDS[1]))
        for name, score in found.items():
            expected = alone[name] + WEIGHT * float(titles[int(name[1:])] @ speech)
            assert score == pytest.approx(expected, abs=1e-6)
        assert len(found) == len(alone)


@pytest.mark.parametrize("speech", ["", " ", "null", "|"])
def test_without_speech_pictures_alone_are_compared_to_the_bit(live_shop, engine, pictures, speech):
    frames = encode(engine, live_shop)
    assert engine.rank(frames, top=8, speech=speech) == pictures.rank(frames, top=8)


def test_an_index_without_titles_does_not_read_speech(live_shop, pictures):
    frames = encode(pictures, live_shop)
    assert not pictures.reads_texts
    assert pictures.rank(frames, speech="title p3") == pictures.rank(frames)
    with pytest.raises(DataError, match="has no titles as vectors"):
        pictures.embed_texts(["a"])


def test_texts_of_any_length_are_embedded(engine, index):
    texts = ["", WORDS[0], WORDS[0] * 10_000, "🪑" * 10_000, "[SEP]"]
    vectors = engine.embed_texts(texts)
    assert vectors.shape == (5, EMBED_DIM) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 1, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(vectors[1], index.text.vectors[0], atol=1e-6)
    np.testing.assert_array_equal(engine.embed_texts([WORDS[0]])[0], vectors[1])


def test_another_tower_is_refused(index, tmp_path):
    other = write_text_model(tmp_path, shift=0.5)
    with pytest.raises(CheckpointError, match="is not the text tower that embedded the titles of the index") as caught:
        Engine(index, text_model=other)
    assert "\n" not in str(caught.value)


def test_engines_share_a_tower(index, engine):
    assert Engine(index, others=iter([engine])).texts is engine.texts


def test_a_calibration_of_another_weight_is_told(index, engine, caplog):
    """As `rice eval CLIPS.csv` leaves it in the index, since labeled clips have no speech."""
    Engine(index, others=[engine])
    assert f"weight {WEIGHT:g} in this index and 0 in the calibration" in caplog.text
    caplog.clear()
    fused = dataclasses.replace(index.about.calibration, text_weight=WEIGHT)
    Engine(dataclasses.replace(index, about=dataclasses.replace(index.about, calibration=fused)), others=[engine])
    assert "weight" not in caplog.text


def test_a_stream_gets_what_is_said_while_its_window_is_shown(live_shop, index, engine):
    recognizer = Recognizer(index, top=8)
    recognizer.add_text(0.2, 0.8, WORDS[1])
    recognizer.add_text(100.0, 101.0, WORDS[2])
    found = recognizer.push(live_shop.pictures[2], time=0.0)
    assert found.products == engine.rank(encode(engine, live_shop, [2]), top=8, speech=WORDS[1]).products
    assert found.products != engine.rank(encode(engine, live_shop, [2]), top=8).products


def test_what_was_said_is_forgotten_when_the_clock_jumps():
    stream = Stream(4)
    stream.add_text(0.0, 1.0, "first")
    stream.add_text(2.0, 3.0, "third")
    stream.add_text(1.0, 2.0, "second")
    window, _ = stream.window(0.0)
    for time in range(3):
        window.put(float(time), Frames(np.ones((1, 2), np.float32), None))
    assert stream.speech(window) == "first,second,third"
    later, restarted = stream.window(1000.0)
    assert restarted and stream.speech(window) == "" and stream.speech(later) == ""


def test_a_single_stray_time_forgets_nothing_that_was_said():
    stream = Stream(4)
    stream.window(100.0)
    stream.add_text(100.0, 101.0, "before")
    stream.window(5.0)
    assert not stream.sentences, "they are of another clock"
    stream.add_text(101.0, 102.0, "meanwhile")
    stream.window(101.0)
    assert [one.text for one in stream.sentences] == ["before", "meanwhile"]
    for time in (5.0, 6.0, 7.0, 100.0):
        stream.window(time)
    assert not stream.sentences, "the window with them has been forgotten"


@pytest.mark.parametrize(("start", "end"), [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_times_that_are_none_are_refused(start, end):
    with pytest.raises(DataError, match="text: found second"):
        Stream(4).add_text(start, end, "a")


def test_each_part_of_a_film_gets_what_is_said_meanwhile(live_shop, engine):
    times = [float(second) for second in range(12)]
    frames = encode(engine, live_shop, [2] * 12)
    sentences = [Sentence(1.0, 2.0, WORDS[0]), Sentence(9.0, 10.0, WORDS[1])]
    alone = products_over_time(engine, times, frames, top=8, speech=())
    segments = products_over_time(engine, times, frames, top=8, speech=sentences)
    assert [one.speech for one in segments if one.speech]
    for one in segments:
        own = join_sentences(said_between(sentences, one.start, one.end))
        ranked = engine.rank(frames.take(one.frames), top=8, speech=own)
        assert one.products == ranked.products
    assert alone == [one._replace(speech=()) for one in products_over_time(engine, times, frames, top=8)]


def test_speech_decides_where_pictures_do_not(live_shop, index):
    """Two products with one picture: the film shows the one that is spoken of, and then the other one."""
    vectors, titles = live_shop.index.vectors.copy(), np.eye(8, EMBED_DIM, dtype=np.float32)
    vectors[1] = vectors[0]
    text = dataclasses.replace(index.text, weight=0.5, vectors=titles)
    alike = Engine(dataclasses.replace(index, vectors=vectors, text=text), naming=Naming(none_prior=0.0))
    says = lambda texts: np.stack([titles[int("second" in own)] * bool(own) for own in texts])  # noqa: E731
    alike._titles.texts = says  # p0 or p1
    times = [float(second) for second in range(40)]
    frames = encode(alike, live_shop, [0] * 40)
    sentences = [Sentence(t, t + 1, "first" if t < 20 else "second") for t in times]
    segments = products_over_time(alike, times, frames, gallery="a", speech=sentences)
    assert [one.product.id for one in segments] == ["p0", "p1"]
    assert segments[0].end == pytest.approx(20, abs=3)


def test_said_around_a_frame_is_what_is_said_in_its_clip():
    sentences = [Sentence(float(second), second + 1.0, str(second)) for second in range(6)]
    found = said_around([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], sentences, 4, 6.0)
    assert found == ["0,1", "0,1,2", "0,1,2,3", "1,2,3,4", "2,3,4,5", "3,4,5"]
    assert said_around([0.0, 1.0], (), 4, 2.0) == ["", ""]


@pytest.mark.parametrize("by_frames", [False, True])
def test_by_frames_a_score_is_that_of_concatenated_vectors(live_shop, index, by_frames):
    about = index.about
    calibration = dataclasses.replace(about.calibration, scale_by_frames=8000.0 if by_frames else None)
    made = dataclasses.replace(index, about=dataclasses.replace(about, calibration=calibration))
    engine, speech = Engine(made), WORDS[4]
    assert engine.by_frames == by_frames
    frames, vector = encode(engine, live_shop), np.sqrt(WEIGHT) * engine.embed_texts([WORDS[4]])[0]
    rows = made.rows[:6].astype(np.float64)
    unit = frames.features / np.linalg.norm(frames.features, axis=1, keepdims=True)
    mean = frames.features.mean(axis=0) / np.linalg.norm(frames.features.mean(axis=0))
    clips = np.concatenate([unit if by_frames else mean[None], np.tile(vector, (3 if by_frames else 1, 1))], axis=1)
    expected = scores_by_frames(clips @ rows.T) if by_frames else (clips @ rows.T)[0]
    found = scores(engine.rank(frames, "a", top=6, speech=speech))
    np.testing.assert_allclose([found[f"p{row}"] for row in range(6)], expected, atol=1e-6)


@needs_milvus
def test_candidates_of_milvus_are_those_of_what_is_said(live_shop, index, engine, tmp_path):
    stored = write_milvus(index, str(tmp_path / "shop.db"))
    frames = encode(engine, live_shop)
    found = find_candidates(engine, frames, stored, limit=8, said=[WORDS[1]] * 3)
    part = Engine(found, others=[engine])
    expected, got = (one.rank(frames, "a", top=6, speech=WORDS[1]) for one in (engine, part))
    assert [match.id for match in got.products] == [match.id for match in expected.products]
    np.testing.assert_allclose(
        [match.score for match in got.products], [match.score for match in expected.products], atol=1e-6
    )
