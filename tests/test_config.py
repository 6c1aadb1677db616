import copy
import importlib
from pathlib import Path

import pytest

from configs import base
from rice_jax.config import ConfigError, resolve
from tests.settings import small_config, small_values

FILES = ["lpr4m", "lpr750k", "movingfashion", "rope", "sample", "sample_pretrain"]
DETECTORS = ["detector_frame", "detector_clip", "sample_detector"]
PARENTS = {"sample_pretrain": "sample", "sample_detector": "sample", "detector_clip": "detector_frame"}


@pytest.mark.parametrize("name", FILES + DETECTORS)
def test_every_config_resolves_and_derives_nothing(name):
    values = importlib.import_module(f"configs.{name}").get_config().to_dict()
    config = resolve(values)
    assert "image_size" not in values["data"] and "seed" not in values["data"]
    assert config.data.image_size == config.model.image_size
    third = config.data.detect if name in DETECTORS else config.data.gallery
    roles = (config.data.train, config.data.query, third)
    assert (config.model.detector is not None) == (name in DETECTORS)
    assert not any(roles) if config.data.domains else all(roles)


@pytest.mark.parametrize("name", FILES + DETECTORS)
def test_no_config_repeats_a_default(name):
    """Every line of a file of differences changes something."""
    text = Path(importlib.import_module(f"configs.{name}").__file__).read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("config.")]
    default = importlib.import_module(f"configs.{PARENTS.get(name, 'base')}").get_config()
    for line in lines:
        changed = copy.deepcopy(default)
        exec(line, {"config": changed, "kind": "clip"})
        assert changed.to_dict() != default.to_dict(), line


def test_every_stage_of_the_sample_encoder_resolves():
    module = importlib.import_module("configs.sample_pretrain")
    stages = [resolve(module.get_config(stage).to_dict()) for stage in ("close", "near", "far", "wide")]
    assert [stage.model.image_size for stage in stages] == [64, 64, 96, 96]
    with pytest.raises(ValueError, match="stage 'deep': expected close, near, far or wide"):
        module.get_config("deep")


def test_both_detectors_of_the_sample_resolve():
    module = importlib.import_module("configs.sample_detector")
    for kind in ("frame", "clip"):
        assert resolve(module.get_config(kind).to_dict()).model.detector.kind == kind
    with pytest.raises(ValueError, match="detector 'video': expected frame or clip"):
        module.get_config("video")


def test_domains_are_named_with_commas_between():
    config = small_config(data__domains="rope/pages, rope/lives", data__train="", data__query="", data__gallery="")
    assert config.data.domain_names == ("rope/pages", "rope/lives")
    assert small_config().data.domain_names == ()


def test_derived_values_follow_overrides():
    config = small_config(model__image_size=8, model__ipd="boxes")
    assert config.data.image_size == 8 and config.model.num_tokens == 2 and config.data.ipd == "boxes"


def test_a_detector_takes_the_place_of_decoder_and_head():
    config = small_config(model__detector__kind="clip", model__detector__num_boxes=2, data__batch_size=1)
    assert config.model.detector and config.loss.detection and not config.model.pmd and not config.model.pfr
    assert config.data.num_boxes == 2
    config = small_config()
    assert not config.model.detector and not config.loss.detection and config.data.num_boxes is None


def detector(values: dict, **changes) -> None:
    values["model"]["detector"] |= {"kind": "frame"} | changes


def test_a_loss_without_weight_leaves_its_module_out_and_unchecked():
    config = small_config(loss__pfr_weight=0.0, model__pmd__num_heads=1)
    assert config.model.pmd and not config.model.pfr
    config = small_config(loss__pmd_weight=0.0, data__batch_size=2, model__pmd__num_heads=5)
    assert not config.model.pmd and not config.model.pfr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"].update(widht=3), r"config.model: unknown keys \['widht'\], expected some of"),
        (lambda v: v.pop("eval"), r"config: missing keys \['eval'\]; start from configs/base.py"),
        (lambda v: v["data"].update(image_size=3), r"config.data: unknown keys \['image_size'\]"),
        (lambda v: v["data"].update(batch_size="8"), r"config.data.batch_size: found '8' \(str\), expected int"),
        (lambda v: v["data"].update(cut_tail=1), r"config.data.cut_tail: found 1 \(int\), expected bool"),
        (lambda v: v["data"].update(batch_size=True), r"config.data.batch_size: found True \(bool\), expected int"),
        (lambda v: v.update(model=3), r"config.model: found 3, expected a group of settings"),
        (lambda v: v["data"].update(crop="clip"), r"config.data.crop: found 'clip', expected 'frame' or 'video'"),
        (lambda v: v["data"].update(image_crop_min_area=0.0), "config.data.image_crop_min_area: found 0.0, expected"),
        (lambda v: v["data"].update(frame_crop_max_area=0.5), "found 1.0 and 0.5, expected 0 < minimum <= maximum"),
        (lambda v: v["data"].update(crop_around_box=True), "config.data.crop_around_box: expected with"),
        (lambda v: v["data"].update(resize=8), r"config.data.resize: found 8, expected model.image_size \(16\)"),
        (lambda v: v["data"].update(batch_size=1), r"config.data.batch_size: found 1, expected 2 or more"),
        (
            lambda v: v["data"].update(domains="rope/pages"),
            r"config.data.domains: found 'rope/pages', expected two sets",
        ),
        (
            lambda v: v["data"].update(domains="a, b,a"),
            r"config.data.domains: found 'a, b,a', expected two .* each once",
        ),
        (lambda v: v["data"].update(domains="a,b,"), r"config.data.domains: found 'a,b,', expected two sets or more"),
        (lambda v: v["data"].update(domains="a,b"), r"config.data.domains: found 'a,b' beside train, query or gallery"),
        (
            lambda v: (v["data"].update(domains="a,b", train="", query="", gallery=""), v["eval"].update(rerank=5)),
            "config.data.domains: expected with config.model.ipd='off' and config.eval.rerank=0, found 'off' and 5",
        ),
        (lambda v: v["model"].update(patch_size=5), r"config.model.image_size: found 16, expected a multiple"),
        (lambda v: v["model"].update(heads=3), r"config.model.width: found 32, expected a multiple of heads \(3\)"),
        (lambda v: v["model"].update(dtype="float16"), r"config.model.dtype: found 'float16'"),
        (lambda v: v["data"].update(batch_size=3), r"config.data.batch_size: found 3, expected 4 or more: every image"),
        (lambda v: v["loss"].update(pfr_weight=-1), r"config.loss: expected pmd_weight and pfr_weight of 0 or more"),
        (
            lambda v: v["loss"].update(num_negatives=0),
            r"config.loss: expected .* num_negatives and match_scale above 0",
        ),
        (lambda v: v["loss"].update(negatives="shard"), r"config.loss.negatives: found 'shard', expected 'batch' or"),
        (lambda v: v["model"].update(pmd=3), r"config.model.pmd: found 3, expected a group of settings"),
        (lambda v: v["model"]["pmd"].update(num_heads=3), r"pmd.num_heads: found 3, expected a divisor of width 32"),
        (lambda v: v["model"]["pmd"].update(num_heads=1), r"pmd.num_heads: found 1, expected 2 or more: PFR halves"),
        (lambda v: v["model"]["pmd"].update(num_pairs=2), r"pmd.num_pairs: found 2, expected 1 to 1: each starts from"),
        (lambda v: v["model"]["pmd"].update(attention_dropout=1), r"pmd.attention_dropout: found 1.0, expected 0 to"),
        (lambda v: v["model"]["pfr"].update(init="zeros"), r"pfr.init: found 'zeros', expected 'random' or 'ones'"),
        (lambda v: v["model"].update(ipd="on"), r"config.model.ipd, .*: found 'on', 'mask' and 0.2, expected 'off'"),
        (lambda v: v["model"].update(ipd="detector"), r"found config.data.train_boxes='' and .*, expected the files"),
        (lambda v: v["data"].update(query_boxes="x"), r"config.model.ipd='off', which would not read them"),
        (lambda v: detector(v, kind="video"), r"detector.kind: found 'video', expected 'none', 'frame' or 'clip'"),
        (lambda v: detector(v, num_boxes=5), r"detector.num_boxes and num_queries: found \(5, 4\), expected 0 <"),
        (lambda v: detector(v, heads=3), r"detector.width, heads and layers: found \(32, 3, 2\), expected 1 or"),
        (lambda v: detector(v, width=12), r"detector.width: found 12, expected a multiple of 8"),
        (lambda v: detector(v, temporal_layers=-1), r"detector.temporal_layers: found -1, expected 0 or more"),
        (lambda v: detector(v) or v["loss"]["detection"].update(l1_weight=-1), r"config.loss.detection: found .*=-1.0"),
        (lambda v: detector(v) or v["model"].update(ipd="boxes"), r"config.model.ipd: found 'boxes', expected 'off'"),
        (lambda v: v["data"].update(device_resize_height=99), r"found 99 and 0, expected both 0, or both .* \(16\) or"),
        (lambda v: v["eval"].update(min_score=2), r"config.eval.min_score and draw_clips: found 2.0 and 0"),
        (lambda v: v["train"].update(total_steps=2), r"config.train.total_steps: found 2, expected more than"),
        (lambda v: v["train"].update(log_interval_steps=0), r"config.train: log_interval_steps"),
        (lambda v: v["train"].update(grad_cache_chunks=0), r"grad_cache_chunks: found 0, expected 1 or more, and a"),
        (lambda v: v["train"].update(grad_cache_chunks=3), r"grad_cache_chunks: found 3, .* of config.data.batch_size"),
        (lambda v: detector(v) or v["train"].update(grad_cache_chunks=2), r"found 2, expected 1 with .*='frame'"),
    ],
)
def test_bad_settings(change, message):
    values = small_values()
    change(values)
    with pytest.raises(ConfigError, match=message):
        resolve(values)


def test_whole_numbers_are_fine_for_shares():
    values = base.get_config().to_dict()
    values["data"]["image_crop_min_area"] = 1
    values["optimizer"]["clip_norm"] = 2
    assert resolve(values).optimizer.clip_norm == 2.0
