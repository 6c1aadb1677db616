import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import linear_sum_assignment

from rice_jax.losses.detection import detection_loss

WEIGHTS = dict(no_object_weight=0.1, l1_weight=5.0, giou_weight=2.0)


def overlap(a, b):
    """GIoU of two boxes, corners, in plain numbers."""
    size = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)  # noqa: E731
    shared = size([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
    hull = size([*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])])
    union = size(a) + size(b) - shared
    return shared / union - (hull - union) / hull


def oracle(logits, predicted, boxes, box_mask, frame_mask):
    """DETR's losses in float64, frame by frame, with scipy's assignment."""
    weights, entropies, l1, gious = [], [], [], []
    for b, t in zip(*np.nonzero(frame_mask), strict=True):
        p = 1 / (1 + np.exp(-logits[b, t].astype(float)))
        found = predicted[b, t].astype(float)
        corners = np.concatenate([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], axis=1)
        truths = boxes[b, t][box_mask[b, t]].astype(float)
        centers = np.concatenate([(truths[:, :2] + truths[:, 2:]) / 2, truths[:, 2:] - truths[:, :2]], axis=1)
        distance = np.abs(found[:, None] - centers[None]).sum(-1)
        general = np.array([[overlap(x, y) for y in truths] for x in corners]).reshape(len(p), len(truths))
        rows, columns = linear_sum_assignment(-p[:, None] + 5 * distance - 2 * general)
        target = np.isin(np.arange(len(p)), rows)
        weights += np.where(target, 1, 0.1).tolist()
        entropies += (-np.log(np.where(target, p, 1 - p))).tolist()
        l1 += distance[rows, columns].tolist()
        gious += (1 - general[rows, columns]).tolist()
    parts = {
        "class": np.average(entropies, weights=weights),
        "l1": np.sum(l1) / max(len(l1), 1),
        "giou": np.sum(gious) / max(len(gious), 1),
    }
    return {"loss": parts["class"] + 5 * parts["l1"] + 2 * parts["giou"], **parts}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.6, (4, 3, 3, 2))
    return dict(
        logits=rng.normal(size=(4, 3, 6)).astype(np.float32),
        predicted=rng.uniform(0.1, 0.9, (4, 3, 6, 4)).astype(np.float32),
        boxes=np.concatenate([low, low + rng.uniform(0.05, 0.4, low.shape)], axis=-1).astype(np.float32),
        box_mask=np.arange(3) < rng.integers(0, 4, (4, 3, 1)),
        frame_mask=np.arange(3) < rng.integers(1, 4, (4, 1)),
    )


@jax.jit
def loss(arrays):
    return detection_loss(**{name: jnp.asarray(value) for name, value in arrays.items()}, **WEIGHTS)


@jax.jit
def value_and_gradient(arrays):
    differentiable = {name: arrays[name] for name in ("logits", "predicted")}
    return jax.value_and_grad(lambda some: loss(arrays | some)["loss"])(differentiable)


def test_is_that_of_a_loop_with_scipys_assignment(arrays):
    found = loss(arrays)
    expected = oracle(**arrays)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name


def test_one_box_by_hand():
    found = loss(
        dict(
            logits=np.array([[[0.0, np.log(3.0)]]], np.float32),  # probabilities 1/2 and 3/4
            predicted=np.array([[[[0.25, 0.5, 0.5, 1.0], [0.9, 0.9, 0.1, 0.1]]]], np.float32),
            boxes=np.array([[[[0.0, 0.0, 1.0, 1.0]]]], np.float32),
            box_mask=np.ones((1, 1, 1), bool),
            frame_mask=np.ones((1, 1), bool),
        )
    )
    # The first query is nearer: it covers half of the box, its center is 1/4 and its width 1/2 off.
    assert float(found["l1"]) == pytest.approx(0.75)
    assert float(found["giou"]) == pytest.approx(0.5)
    assert float(found["class"]) == pytest.approx((np.log(2) + 0.1 * np.log(4)) / 1.1)


def test_padding_changes_neither_value_nor_gradient(arrays):
    before, gradients = value_and_gradient(arrays)
    changed = dict(arrays)
    rng = np.random.default_rng(1)
    changed["boxes"] = np.where(arrays["box_mask"][..., None], arrays["boxes"], rng.random((4, 3, 3, 4), np.float32))
    padded = ~arrays["frame_mask"]
    assert padded.any()
    for name in ("logits", "predicted"):
        changed[name] = np.where(
            padded.reshape(padded.shape + (1,) * (arrays[name].ndim - 2)), np.float32(0.3), arrays[name]
        )
    changed["box_mask"] = arrays["box_mask"] | padded[..., None]
    after, changed_gradients = value_and_gradient(changed)
    assert float(after) == pytest.approx(float(before), rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(changed_gradients[name], gradient, atol=1e-7)
        assert not np.asarray(gradient)[padded].any() and np.asarray(gradient)[~padded].any()
    wider = {
        name: np.pad(arrays[name], ((0, 0), (0, 0), (0, 2)) + ((0, 0),) * (name == "boxes"))
        for name in ("boxes", "box_mask")
    }
    assert float(loss(arrays | wider)["loss"]) == pytest.approx(float(before), rel=1e-6)


def test_frames_without_boxes_teach_that_there_is_nothing(arrays):
    nothing = arrays | {"box_mask": np.zeros_like(arrays["box_mask"])}
    value, gradients = value_and_gradient(nothing)
    assert np.isfinite(value) and (np.asarray(gradients["logits"])[arrays["frame_mask"]] > 0).all()
    no_frame = nothing | {"frame_mask": np.zeros_like(arrays["frame_mask"])}
    assert float(loss(no_frame)["loss"]) == 0


def test_gradients_are_those_of_finite_differences(arrays):
    """As long as the assignment stays, which small differences do not change."""
    some = {name: jnp.asarray(arrays[name]) for name in ("logits", "predicted")}
    check_grads(lambda some: loss(arrays | some)["loss"], (some,), order=1, modes="rev", atol=3e-2, rtol=3e-2, eps=1e-3)
