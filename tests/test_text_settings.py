"""Settings of texts: what excludes each other, and what is taken from a converted tower."""

import numpy as np
import pytest

from rice_jax.config import ConfigError, TextConfig, TextTowerConfig, TextTowerSettings
from rice_jax.models.weights import save_weights
from tests.settings import model_of, small_config

EMBEDDINGS = {"model__text": "embeddings", "data__texts": "texts"}
TOWER = {"model__text": "tower", "model__text_init_from": "text"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__text": "embeddings"}, "config.data.texts: found '' with config.model.text='embeddings'"),
        (
            {"data__texts": "texts"},
            "config.data.texts: found 'texts' with config.model.text='off', which does",
        ),
        (TOWER | {"data__texts": "texts"}, "config.data.texts: found 'texts' with config.model.text='tower'"),
        ({"model__text": "tower"}, "config.model.text_init_from: found '' with config.model.text='tower', expected a"),
        (EMBEDDINGS | {"loss__pmd_weight": 0.0}, "config.model.text: found 'embeddings' with .*pmd_weight=0.0, exp"),
        (
            TOWER | {"task": "detection"},
            "config.model.text: found 'tower' with config.task='detection'.* expected 'off'",
        ),
        ({"optimizer__text_learning_rate": 0.1}, "config.optimizer.text_learning_rate: found 0.1 with .*text='off'"),
        (TOWER | {"model__text_tower__heads": 7}, "config.model.text_tower.heads: found 7, expected a divisor of the"),
        (TOWER | {"model__text_tower__context": 600}, "config.model.text_tower.context: found 600, expected at most"),
        (
            TOWER | {"model__text_tower__head": "pooler"},
            "config.model.text_tower.embed_dim: found 512 with head=",
        ),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**settings)


def test_a_model_is_told_of_its_texts():
    assert model_of(small_config()).text is None
    assert model_of(small_config(**EMBEDDINGS, model__text_dim=7)).text == TextConfig(7)
    found = model_of(small_config(**TOWER, model__text_tower__embed_dim=9)).text
    assert found == TextConfig(9, TextTowerConfig(embed_dim=9, dtype="float32"))


def test_the_towers_settings_are_those_of_its_weights(tmp_path):
    saved = TextTowerSettings(width=24, heads=3, layers=1)
    save_weights(tmp_path / "text", {"text": {"x": np.ones(2)}}, {"text": vars(saved)})
    tower = TOWER | {"model__text_init_from": str(tmp_path / "text")}
    assert small_config(**tower).model.text_tower == saved
    with pytest.raises(ConfigError, match="config.model.text_tower: found .*, expected the settings of .*; leave the"):
        small_config(**tower, model__text_tower__width=48)
