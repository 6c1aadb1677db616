"""A run that reads texts, from embedding them to re-ranking."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from rice_jax import main
from rice_jax.eval.results import Row, read_results
from rice_jax.eval.texts import TextEmbedder, load_text_model, write_embeddings
from rice_jax.index.model import load_model
from rice_jax.input.texts import collect, stored_texts
from rice_jax.models.weights import CheckpointError, load_weights
from rice_jax.tasks import resolve
from tests.settings import small_values
from tests.text_model import EMBED_DIM, write_text_model

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow
STEPS = 4


def embed(shop, model, out):
    embedder = TextEmbedder(load_text_model(model), 8)
    for kind in ("titles", "speech"):
        names = ("lpr4m/train", "lpr4m/query", "lpr4m/gallery")
        write_embeddings(out / kind, collect(stored_texts(str(shop), names, kind)).texts, embedder)
    return out


def settings(shop, **further):
    values = small_values(
        data__data_dir=str(shop), train__total_steps=STEPS, eval__rerank=2, train__trackers="", **further
    )
    return resolve(values)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("model"))


def test_a_run_with_embeddings_is_trained_resumed_and_evaluated(shop, text_model, tmp_path):
    texts = embed(shop, text_model, tmp_path / "texts")
    config = settings(shop, model__text="embeddings", model__text_dim=EMBED_DIM, data__texts=str(texts))
    main.run(config, tmp_path / "whole", "train")
    assert {Row(0), Row(STEPS), Row(STEPS, "match", 2)} <= read_results(tmp_path / "whole" / "results.json").keys()
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / str(STEPS))
    main.run(config, tmp_path / "killed", "train")
    for expected, found in zip(*(_leaves(tmp_path / name) for name in ("whole", "killed")), strict=True):
        np.testing.assert_array_equal(expected, found)
    assert load_model(tmp_path / "whole").config.text.embed_dim == EMBED_DIM, "an index can be made with it"
    other = embed(shop, write_text_model(tmp_path / "other", shift=0.1), tmp_path / "others")
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, texts=str(other)))
    with pytest.raises(CheckpointError, match="was trained with texts that another model embedded .*; embed them with"):
        main.run(changed, tmp_path / "whole", "eval")
    tower = settings(shop, model__text="tower", model__text_init_from=str(text_model))
    with pytest.raises(CheckpointError, match="has no trained text tower .*; evaluate a run of config.model.text="):
        main.run(tower, tmp_path / "whole", "eval")
    with pytest.raises(CheckpointError, match="the training data .*config.data.texts.* has changed since this check"):
        longer = dataclasses.replace(changed, train=dataclasses.replace(config.train, total_steps=STEPS + 1))
        main.run(longer, tmp_path / "whole", "train")


def test_a_run_trains_its_text_tower(shop, text_model, tmp_path):
    config = settings(shop, model__text="tower", model__text_init_from=str(text_model))
    assert (config.model.text_tower.width, config.model.text_tower.embed_dim) == (24, EMBED_DIM)
    main.run(config, tmp_path, "train")
    assert Row(STEPS, "match", 2) in read_results(tmp_path / "results.json")
    start, trained = load_weights(text_model)[0]["text"], load_weights(tmp_path)[0]["text"]
    moved = np.abs(trained["projection"]["kernel"] - start["projection"]["kernel"])
    assert 0 < moved.max() < 0.1
    saved = json.loads((tmp_path / "run.json").read_text())["config"]["model"]
    assert saved["text_tower"]["vocab_size"] == 187


def _leaves(workdir):
    return jax.tree.leaves(load_weights(workdir)[0])
