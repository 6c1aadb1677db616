"""A decoder that was trained with texts reads titles and speech in recognition as in the evaluation."""

import dataclasses
import shutil

import numpy as np
import pytest

from rice_jax.index.store import read_index
from rice_jax.index.update import build_index
from rice_jax.models.weights import CheckpointError
from rice_jax.recognition.engine import Engine
from rice_jax.types import DataError
from tests.shop import draw
from tests.text_model import write_text_model
from tests.text_shop import SPEECH_OF, TITLES, make_text_shop

pytest.importorskip("tokenizers")
CLIP = [draw(place) for place in (2, 9, 2)]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module", params=[("embeddings", 1), ("embeddings", 2), ("tower", 1)], ids=str)
def shop(request, tower, tmp_path_factory):
    return make_text_shop(tmp_path_factory.mktemp("shop"), tower, *request.param)


@pytest.fixture(scope="module")
def index(shop, tmp_path_factory):
    return build_index(shop.csv, model=shop.weights, out=tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def engine(index):
    return Engine(index, rerank=len(TITLES))


def scores(engine, speech, clip=CLIP):
    """The decoder's cosines of all pictures, in the order of the index."""
    frames = engine.encode(np.stack([engine.prepare(picture) for picture in clip]))
    found = {match.image_id: match.score for match in engine.rank(frames, top=len(TITLES), speech=speech).products}
    return [found[name] for name in TITLES]


@pytest.mark.parametrize("key", SPEECH_OF)
def test_scores_are_those_of_the_evaluation(shop, engine, key):
    expected = shop.matches(CLIP, key)
    np.testing.assert_allclose(scores(engine, SPEECH_OF[key]), expected, atol=1e-5)
    alone = shop.matches(CLIP, key, with_texts=False)
    has_text = [bool(title or SPEECH_OF[key]) for title in TITLES.values()]
    assert ((np.abs(expected - alone) > 1e-3) == has_text).all(), "texts change the scores, and nothing else does"


def test_without_texts_scores_are_those_of_a_decoder_that_reads_none(shop, engine, tmp_path):
    untitled = shop.csv.with_name("untitled.csv")
    untitled.write_text("id,path\n" + "\n".join(f"{name},{name}.png" for name in TITLES), encoding="utf-8")
    index = build_index(untitled, model=shop.weights, out=tmp_path)
    expected = shop.matches(CLIP, "silent", with_texts=False)
    np.testing.assert_allclose(scores(Engine(index, rerank=4, others=[engine]), ""), expected, atol=1e-5)


def test_titles_may_also_count_in_the_scores(shop, tower, engine, tmp_path):
    index = build_index(shop.csv, model=shop.weights, out=tmp_path, text_model=tower, text_weight=0.5)
    both = Engine(index, rerank=len(TITLES))
    assert (both._reranker.texts is both.texts) == (shop.config.model.text == "embeddings"), "one tower is loaded once"
    np.testing.assert_allclose(scores(both, SPEECH_OF["clip"]), shop.matches(CLIP, "clip"), atol=1e-5)


@pytest.mark.parametrize("speech", [" ", "null", "|"])
def test_speech_of_nothing_is_none(engine, speech):
    assert scores(engine, speech) == scores(engine, "")


def test_only_a_decoder_reads_texts(index, engine):
    plain = Engine(index)
    assert engine.reads_texts and not plain.reads_texts
    assert scores(plain, SPEECH_OF["clip"]) == scores(plain, "")
    assert Engine(index, rerank=2, others=[engine])._reranker.texts is engine._reranker.texts


def test_an_index_of_before_reads_no_texts_and_says_so(shop, index, engine, caplog):
    before = dataclasses.replace(index.about, text_model="", text_fingerprint="")
    found = Engine(dataclasses.replace(index, about=before), rerank=4, others=[engine])
    assert "the index was made without titles for it, so re-ranking reads no texts" in caplog.text
    assert not found.reads_texts and scores(found, SPEECH_OF["clip"]) == scores(found, "")
    caplog.clear()
    Engine(index, rerank=4, others=[engine])
    assert "reads no texts" not in caplog.text


def test_another_tower_is_refused(shop, index, tmp_path):
    other = write_text_model(tmp_path, shift=0.5)
    about = dataclasses.replace(index.about, text_model=str(other))
    with pytest.raises(CheckpointError, match="is not the text tower that embedded the titles of the index") as caught:
        Engine(dataclasses.replace(index, about=about), rerank=2)
    assert "\n" not in str(caught.value)


def test_a_tower_that_has_moved_is_told(tower, tmp_path):
    moved = shutil.copytree(tower, tmp_path / "tower")
    shop = make_text_shop(tmp_path / "shop", moved, "embeddings")
    index = build_index(shop.csv, model=shop.weights, out=tmp_path / "index")
    assert index.about.text_model == str(moved)
    shutil.rmtree(moved)
    with pytest.raises(CheckpointError, match="is not there any more; tell where it is now") as caught:
        Engine(index, rerank=2)
    assert "\n" not in str(caught.value)
    assert Engine(index, text_model=tower, rerank=2).reads_texts
    assert not Engine(index).reads_texts, "only the decoder needs it"


def test_a_missing_tokenizer_is_told(tower, tmp_path):
    start = shutil.copytree(tower, tmp_path / "tower")
    shop = make_text_shop(tmp_path / "shop", start, "tower")
    index = build_index(shop.csv, model=shop.weights, out=tmp_path / "index")
    assert (index.about.text_model, index.about.text_fingerprint) == (
        str(shop.weights),
        read_index(tmp_path / "index").about.text_fingerprint,
    )
    shutil.rmtree(start / "tokenizer")
    with pytest.raises(DataError, match="found no file of a tokenizer") as caught:
        Engine(index, rerank=2)
    assert "\n" not in str(caught.value)
