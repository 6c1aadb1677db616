"""Tests of views: an added view adds its part to the examples and changes no other part."""

import dataclasses

import numpy as np
import pytest

from rice_jax.input import detection, pipeline
from rice_jax.input.pipeline import eval_batches, train_batches
from rice_jax.input.views import ImageKeyView, View, image_key, open_source, required_columns
from rice_jax.types import DataError
from tests.input import tiny_shop
from tests.input.test_pipeline import assert_same, joined, take


class TitleView(View):
    """The length of a query's title, 0 for filling."""

    columns = ("title",)
    optional = ("source",)

    def evaluate(self, example):
        assert "source" not in example.row
        return {"title_length": np.int32(len(example.row["title"].decode()) if example.row else 0)}


class NoisyBoxesView(View):
    """The number of boxes in the chosen frames, and a random number."""

    columns = ("boxes",)

    def train(self, example):
        boxes = np.stack(example.row["boxes"])[example.frames]
        return {"num_boxes": np.int32(boxes.any(axis=1).sum()), "noise": example.rng.random()}


def test_a_view_adds_its_part_to_training_examples(config, monkeypatch):
    config = dataclasses.replace(config, color_jitter=0.4, random_frames=True)
    expected = joined(take(train_batches(config), 5))
    views = pipeline.train_views
    monkeypatch.setattr(pipeline, "train_views", lambda config: [*views(config), NoisyBoxesView()])
    found = joined(take(train_batches(config), 5))
    num_boxes, noise = found.pop("num_boxes"), found.pop("noise")
    assert_same(found, expected)
    assert len(set(noise.tolist())) == len(noise)
    for index, kept, count in zip(found["index"], found["frame_mask"].sum(1), num_boxes, strict=True):
        assert count == sum(box == tiny_shop.BOX for box in tiny_shop.TRAIN[index]["boxes"][:kept])


def test_a_view_adds_its_part_to_evaluation_examples(config, monkeypatch):
    expected = joined(list(eval_batches(config, "query", 4)))
    views = pipeline.query_views
    monkeypatch.setattr(pipeline, "query_views", lambda config: [*views(config), TitleView()])
    found = joined(list(eval_batches(config, "query", 4)))
    np.testing.assert_array_equal(found.pop("title_length"), [6, 6, 6, 6, 6, 0, 0, 0])
    assert_same(found, expected)


def test_a_data_set_is_read_in_the_columns_of_its_views(config):
    views = pipeline.train_views(config)
    assert required_columns(views) == ["clip_id", "frames", "image", "image_id"]
    assert set(open_source(config, config.train, views)[0]) == {"clip_id", "frames", "image", "image_id", "index"}
    boxed = pipeline.train_views(dataclasses.replace(config, ipd="boxes"))
    assert required_columns(boxed) == ["boxes", "clip_id", "frames", "image", "image_id"]
    around = dataclasses.replace(config, boxed_frames=True)
    assert required_columns(pipeline.train_views(around)) == required_columns(boxed)
    assert required_columns(pipeline.query_views(around)) == ["clip_id", "frames"], "only training chooses by boxes"
    assert required_columns(pipeline.gallery_views(config)) == ["image", "image_id"]
    assert required_columns(detection.train_views(config)) == ["boxes", "clip_id", "frames"]
    with pytest.raises(DataError, match=r"shop/gallery/1.0.0: found no feature \['clip_id', 'frames'\] among"):
        open_source(config, config.gallery, views)


def test_pairs_of_items_lack_the_columns_of_a_view(config, monkeypatch):
    monkeypatch.setattr(pipeline, "train_views", lambda config: [TitleView()])
    with pytest.raises(DataError, match=r"config.data.domains: found no column \['title'\] among \['boxes', 'clip_id'"):
        train_batches(dataclasses.replace(config, domains="rope/pages,rope/videos"))


def test_a_view_says_which_examples_it_does_not_make(config, monkeypatch):
    monkeypatch.setattr(pipeline, "gallery_views", lambda config: [ImageKeyView()])
    with pytest.raises(NotImplementedError, match="ImageKeyView makes no evaluation examples"):
        list(eval_batches(config, "gallery", 6))
    monkeypatch.setattr(pipeline, "train_views", lambda config: [View()])
    with pytest.raises(NotImplementedError, match="View makes no training examples"):
        take(train_batches(config), 1)


def test_image_key_is_stable():
    assert image_key(b"fff8b484-2eeb-11ee-b7bb-77cb20e634dc") == 1906432925
    assert len({int(image_key(str(number).encode())) for number in range(10_000)}) == 10_000
