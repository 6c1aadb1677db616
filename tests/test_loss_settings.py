"""Settings of losses and aggregations that exclude each other."""

import dataclasses

import pytest

from rice_jax.config import ConfigError, LossConfig, TextConfig
from rice_jax.tasks import resolve
from tests.settings import small_config, small_values


def aggregation(values: dict, kind: str, **changes) -> None:
    values["model"]["aggregation"] = {"kind": kind, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["loss"].update(kind="icl"), "config.loss.kind: found 'icl', expected 'softmax', 'sigmoid'"),
        (lambda v: v["loss"].update(multi_positive=True), "multi_positive: found True with config.loss.kind='softmax'"),
        (
            lambda v: v["loss"].update(kind="sigmoid", multi_positive=True, mask_same_image=False),
            "multi_positive: found True with config.loss.mask_same_image=False, which makes the same pairs negatives",
        ),
        (lambda v: aggregation(v, "mean"), "aggregation.kind: found 'mean', expected 'features', 'embeddings', 'atten"),
        (
            lambda v: aggregation(v, "attention", attention={"pooling": "mean"}),
            "pooling: found 'mean' with non_local='none', which is config.model.aggregation.kind='features'",
        ),
        (
            lambda v: aggregation(v, "transformer", transformer={"heads": 3}),
            r"transformer.heads: found 3, expected a divisor of config.model.embed_dim \(16\)",
        ),
        (
            lambda v: aggregation(v, "transformer"),
            "num_frames: found 10 with config.data.num_frames=3 and config.eval.num_frames=10, expected no more frames",
        ),
        (
            lambda v: (aggregation(v, "transformer"), v["data"].update(num_frames=12)),
            "num_frames: found 10 with config.data.num_frames=12 .* and a position for each",
        ),
        (
            lambda v: (v.update(task="detection"), aggregation(v, "embeddings")),
            "found 'embeddings' and 'softmax' with config.task='detection', which does not read them",
        ),
        (
            lambda v: (v.update(task="detection"), v["loss"].update(kind="triplet")),
            "found 'features' and 'triplet' with config.task='detection', which does not read them",
        ),
    ],
)
def test_bad_settings(change, message):
    values = small_values()
    change(values)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(values)
    assert "\n" not in str(caught.value)


def test_settings_of_another_kind_are_told():
    aggregation = small_config(model__aggregation__transformer__differences=True).model.aggregation
    assert [*aggregation.unread] == ["config.model.aggregation.transformer.differences=True"]
    aggregation = small_config(model__aggregation__attention__pooling="direction").model.aggregation
    assert [*aggregation.unread] == ["config.model.aggregation.attention.pooling='direction'"]
    assert not [*dataclasses.replace(aggregation, kind="attention").unread]


def test_settings_of_another_kind_do_not_matter():
    small_config(model__aggregation__transformer__heads=3)
    small_config(model__aggregation__attention__pooling="mean")
    small_config(model__aggregation__kind="transformer", data__num_frames=10)
    small_config(loss__kind="triplet", loss__multi_positive=True)


def test_another_kind_has_what_it_is_not_said_to_have_refused():
    """Until the rules name it."""
    [problem] = LossConfig(kind="margin", multi_positive=True).problems()
    assert "multi_positive: found True with config.loss.kind='margin', which has one positive for each row" in problem
    loss = LossConfig(kind="margin", image_title_weight=1.0)
    [problem] = loss.text_loss_problems(loss.kind, "embeddings", 8, TextConfig(8))
    assert problem.startswith("config.loss.kind: found 'margin', expected 'softmax' or 'sigmoid' with image_title_wei")
    for kind in ("softmax", "sigmoid"):
        assert not [*loss.text_loss_problems(kind, "embeddings", 8, TextConfig(8))]
