"""Settings of texts: what excludes each other, and what is taken from a converted tower."""

import numpy as np
import pytest

from rice_jax.config import ConfigError, TextConfig, TextTowerConfig, TextTowerSettings, load_config
from rice_jax.config.command_line import override
from rice_jax.models.text_weights import start_text
from rice_jax.models.weights import CheckpointError, save_weights
from rice_jax.tasks import resolve
from tests.settings import model_of, small_config

EMBEDDINGS = {"model__text": "embeddings", "data__texts": "texts"}
TOWER = {"model__text": "tower", "model__text_init_from": "text"}
XCLIP = {
    "model__architecture": "xclip",
    "model__embed_dim": 512,
    "loss__pmd_weight": 0.0,
    "loss__image_title_weight": 1.0,
}


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
        (
            TOWER | XCLIP,
            "config.model.text: found 'tower' with config.model.architecture='xclip', expected 'off'",
        ),
        ({"optimizer__text_learning_rate": 0.1}, "config.optimizer.text_learning_rate: found 0.1 with .*text='off'"),
        (TOWER | {"model__text_tower__heads": 7}, "config.model.text_tower.heads: found 7, expected a divisor of the"),
        (TOWER | {"model__text_tower__context": 600}, "config.model.text_tower.context: found 600, expected at most"),
        (
            TOWER | {"model__text_tower__head": "pooler"},
            "config.model.text_tower.embed_dim: found 512 with head=",
        ),
        (
            {"eval__text_weight": "fit"},
            "config.eval.text_weight: found 'fit' with config.model.text='off'.* expected 'off'",
        ),
        (EMBEDDINGS | {"eval__text_weight": "-1"}, "config.eval.text_weight: found '-1', expected 'off', 'fit', or a"),
        (EMBEDDINGS | {"eval__text_weight": "much"}, "config.eval.text_weight: found 'much', expected 'off', 'fit'"),
        ({"loss__image_title_weight": 1.0}, "config.loss.image_title_weight: found 1.0 with config.model.text='off'"),
        (
            EMBEDDINGS | {"loss__video_speech_weight": 1.0},
            "config.loss.video_speech_weight: found 1.0 with texts of 512 numbers and pictures of 16, expected 0, or",
        ),
        (
            EMBEDDINGS | {"loss__title_speech_weight": 1.0},
            "config.loss.title_speech_weight: found 1.0 with config.model.text='embeddings', expected 0",
        ),
        (
            TOWER | {"loss__title_speech_weight": 1.0, "loss__kind": "triplet"},
            "config.loss.kind: found 'triplet', expected 'softmax' or 'sigmoid' with image_title_weight",
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
    with pytest.raises(ConfigError, match="config.model.text_tower.width: found 48, expected 24 as in .*; leave it"):
        small_config(**tower, model__text_tower__width=48)


def test_cope_starts_from_a_bert_of_three_layers(tmp_path):
    """A plain BERT reads texts of any length; the config names the other settings."""
    saved = TextTowerSettings(layers=3, head="pooler", embed_dim=768, context=512)
    save_weights(tmp_path / "rbt3", {"text": {"x": np.ones(2)}}, {"text": vars(saved)})
    values = override(load_config("cope").to_dict(), [f"--config.model.text_init_from={tmp_path / 'rbt3'}"])
    assert resolve(values).model.text_tower == saved


def test_the_towers_settings_are_those_of_the_run_that_trained_it(tmp_path):
    saved = vars(TextTowerSettings(width=24, heads=3, layers=1))
    other = {"text": "off", "text_tower": vars(TextTowerSettings())}  # it has settings of a tower, but none
    for step, model in ((1, other), (2, {"text": "tower", "text_tower": saved})):
        save_weights(tmp_path / "checkpoints" / str(step), {"text": {"x": np.ones(2)}}, {"model": model})
    tower = TOWER | {"model__text_init_from": str(tmp_path)}
    assert small_config(**tower).model.text_tower == TextTowerSettings(**saved)
    with pytest.raises(ConfigError, match="config.model.text_tower.width: found 48, expected 24 as in .*; leave it"):
        small_config(**tower, model__text_tower__width=48)


def test_a_tower_of_other_sizes_is_refused(tmp_path):
    kernel = {"projection": {"kernel": np.zeros((4, 2))}}
    save_weights(tmp_path / "text", {"text": kernel}, {"text": vars(TextTowerSettings())})
    with pytest.raises(CheckpointError, match=r"projection/kernel: found \(4, 2\), expected \(4, 3\)"):
        start_text(tmp_path / "text", {"text": {"projection": {"kernel": np.zeros((4, 3))}}})
    with pytest.raises(CheckpointError, match=r"pooler/kernel: found None, expected \(4, 2\)"):
        start_text(tmp_path / "text", {"text": kernel | {"pooler": kernel["projection"]}})


@pytest.mark.parametrize(
    "used", [{"eval__text_weight": "0.3"}, {"loss__image_title_weight": 1.0, "model__text_dim": 16}]
)
def test_texts_need_no_decoder_if_something_else_reads_them(used):
    assert small_config(**EMBEDDINGS, loss__pmd_weight=0.0, **used).model.text == "embeddings"


def test_domains_read_texts_in_training_only():
    domains = {"task": "domains", "data__domains": "rope/pages,rope/lives"}
    domains |= dict.fromkeys(("data__train", "data__query", "data__gallery"), "")
    assert small_config(**EMBEDDINGS, **domains).model.text == "embeddings"
    contrast = {"loss__image_title_weight": 1.0, "model__text_dim": 16}
    assert small_config(**EMBEDDINGS, **domains, loss__pmd_weight=0.0, **contrast).loss.contrasts_texts
    with pytest.raises(ConfigError, match="config.model.text: found 'embeddings' with .*pmd_weight=0.0, expected 'off"):
        small_config(**EMBEDDINGS, **domains, loss__pmd_weight=0.0)
    with pytest.raises(ConfigError, match="config.eval.text_weight: found '0.3' .* only task 'retrieval' compares"):
        small_config(**EMBEDDINGS, **domains, eval__text_weight="0.3")


@pytest.mark.parametrize(
    ("weight", "fuses", "fixed"), [("off", False, 0), ("0", False, 0), ("fit", True, 0), ("2", True, 2)]
)
def test_the_weight_of_texts(weight, fuses, fixed):
    evaluation = small_config(**EMBEDDINGS, eval__text_weight=weight).eval
    assert (evaluation.fuses, evaluation.fixed_text_weight) == (fuses, fixed)
