import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from rice_jax.config import MeshConfig
from rice_jax.models.create import create_model, create_params
from rice_jax.models.detr import patch_centers, sine_position
from rice_jax.parallel.mesh import create_mesh
from tests.settings import model_of, small_config

BATCH, FRAMES = 2, 3


@functools.cache
def detector_of(kind, **settings):
    """Parameters, of which those that are zero at the start are made something, and a compiled forward pass."""
    config = model_of(small_config(task="detection", model__detector__kind=kind, **settings))
    mesh = create_mesh(MeshConfig(fsdp=1))
    params = jax.tree.map(np.asarray, create_params(config, mesh, seed=0))
    rng = np.random.default_rng(0)
    params["detector"]["box_3"]["kernel"] = rng.normal(0, 0.1, (32, 4)).astype(np.float32)
    one = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 2)
    graphdef = create_model(config, one)
    return params, jax.jit(
        lambda params, video, mask: nnx.merge(graphdef, params).detect({"video": video, "frame_mask": mask})
    )


@pytest.fixture
def video():
    return np.random.default_rng(1).integers(0, 256, (BATCH, FRAMES, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("kind", ["frame", "clip"])
def test_every_layer_answers_with_boxes_and_logits(kind, video):
    params, detect = detector_of(kind)
    found = detect(params, video, np.ones((BATCH, FRAMES), bool))
    assert found.logits.shape == (2, BATCH, FRAMES, 4) and found.boxes.shape == (2, BATCH, FRAMES, 4, 4)
    assert found.logits.dtype == found.boxes.dtype == jnp.float32
    assert (np.asarray(found.boxes) > 0).all() and (np.asarray(found.boxes) < 1).all()
    assert len(np.unique(np.asarray(found.boxes).round(6), axis=None)) > 16, "not one answer for all"


def test_frames_are_searched_alone_or_together(video):
    other = video.copy()
    other[:, 1] = 255 - other[:, 1]
    mask = np.ones((BATCH, FRAMES), bool)
    for kind, together in (("frame", False), ("clip", True)):
        params, detect = detector_of(kind)
        before, after = (np.asarray(detect(params, pictures, mask).boxes) for pictures in (video, other))
        assert np.abs(before - after)[:, :, 1].max() > 1e-4
        assert (np.abs(before - after)[:, :, [0, 2]].max() > 1e-4) == together, kind


@pytest.mark.parametrize("kind", ["frame", "clip"])
def test_padding_frames_change_nothing(kind, video):
    params, detect = detector_of(kind)
    mask = np.array([[True, True, False], [True, False, False]])
    before = detect(params, video, mask)
    other = np.where(mask[..., None, None, None], video, 255 - video)
    for x, y in zip(before, detect(params, other, mask), strict=True):
        np.testing.assert_allclose(np.asarray(x)[:, mask], np.asarray(y)[:, mask], atol=1e-6)
    shorter = detect(params, video[:, :2], mask[:, :2])
    for x, y in zip(before, shorter, strict=True):
        np.testing.assert_allclose(np.asarray(x)[:, mask], np.asarray(y)[:, mask[:, :2]], atol=2e-5)
    none = detect(params, video, np.zeros_like(mask))
    assert all(np.isfinite(x).all() for x in none)


def test_a_clip_knows_the_order_of_its_frames_and_a_lone_frame_its_clip(video):
    params, detect = detector_of("clip")
    mask = np.ones((BATCH, FRAMES), bool)
    forward, backward = (np.asarray(detect(params, pictures, mask).boxes) for pictures in (video, video[:, ::-1]))
    assert np.abs(forward - backward[:, :, ::-1]).max() > 1e-4
    params, detect = detector_of("frame")
    forward, backward = (np.asarray(detect(params, pictures, mask).boxes) for pictures in (video, video[:, ::-1]))
    np.testing.assert_allclose(forward, backward[:, :, ::-1], atol=1e-6)


def test_without_temporal_blocks_a_clip_has_only_its_times_beyond_a_frame_detectors_weights():
    frame, _ = detector_of("frame")
    clip, _ = detector_of("clip", model__detector__temporal_layers=0)
    assert clip["detector"].keys() - frame["detector"].keys() == {"time"}


def test_positions_of_places_differ_and_of_near_ones_less():
    position = np.asarray(sine_position(patch_centers(16), 32))
    assert position.shape == (16, 32) and np.abs(position).max() <= 1
    distance = np.linalg.norm(position[0] - position, axis=-1)
    assert distance[0] == 0 and (distance[1:] > 0.1).all()
    np.testing.assert_allclose(patch_centers(4), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


def test_sharing_the_encoder_means_the_same_parameters():
    detector, _ = detector_of("frame")
    rice = jax.eval_shape(lambda: create_params(model_of(small_config()), create_mesh(MeshConfig(fsdp=1)), seed=0))
    shapes = [jax.tree.map(np.shape, params["encoder"]) for params in (detector, rice)]
    assert shapes[0] == shapes[1]
