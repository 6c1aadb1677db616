import dataclasses
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rice_jax.input.detection import clip_windows, detection_batches, frame_id, window_batches
from rice_jax.types import DataError

SIZE = (120, 160)  # width, height
COUNTS = [1, 2, 3, 7, 4, 3]  # frames of the clips
NUM_FRAMES = sum(COUNTS)


def box_of(clip, frame):
    """The product's box in pixels; every third frame has none."""
    if (clip + frame) % 3 == 2:
        return None
    rng = np.random.default_rng(100 * clip + frame)
    left, top = rng.integers(0, 60, 2)
    return left, top, left + rng.integers(20, 60), top + rng.integers(20, 100)


def picture(box):
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def relative(box):
    left, top, right, bottom = np.array(box) / [*SIZE, *SIZE]
    return tfds.features.BBox(top, left, bottom, right)


def row(clip):
    frames = range(COUNTS[clip])
    shown = [(frame, box_of(clip, frame)) for frame in frames if box_of(clip, frame) is not None]
    clutter = tfds.features.BBox(0.9, 0.9, 1.0, 1.0)
    return {
        "clip_id": f"clip-{clip}",
        "frame_ids": [f"clip-{clip}-{frame:04}" for frame in frames],
        "frames": [picture(box_of(clip, frame)) for frame in frames],
        "boxes": [box for _, product in shown for box in (relative(product), clutter)],
        "box_frame": [np.int32(frame) for frame, _ in shown for _ in range(2)],
    }


@pytest.fixture(scope="module")
def settings(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("detection")
    features = tfds.features
    kinds = {"frames": features.Image(encoding_format="jpeg"), "boxes": features.BBoxFeature(), "box_frame": np.int32}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION, name, url_infos = tfds.core.Version("1.0.0"), "clips", None

        def _info(self):
            sequences = {
                name: features.Sequence(kinds.get(name, features.Text())) for name in row(0) if name != "clip_id"
            }
            described = features.FeaturesDict({"clip_id": features.Text(), **sequences})
            return tfds.core.DatasetInfo(builder=self, features=described, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((clip, row(clip)) for clip in range(len(COUNTS)))

    Builder(data_dir=str(root), file_format="array_record").download_and_prepare()
    return dataclasses.replace(
        config, data_dir=str(root), train="clips", num_frames=3, image_size=64, resize=72, num_boxes=2, cut_tail=False
    )


def take(batches, count):
    return [next(batches) for _ in range(count)]


def seen_box(pixels):
    """The box around the white pixels, in shares of the picture; None without white pixels."""
    rows, columns = (np.flatnonzero((pixels[..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(pixels)


@pytest.mark.parametrize("area", [(1.0, 1.0), (0.3, 0.9)])
@pytest.mark.parametrize("crop", ["frame", "video"])
def test_boxes_follow_their_products(settings, area, crop):
    """Boxes follow resize, crop and flip; the edge cuts them, and drops them if little is left."""
    changed = dataclasses.replace(settings, frame_crop_min_area=area[0], frame_crop_max_area=area[1], crop=crop)
    compared = dropped = cut = 0
    for batch in take(detection_batches(changed), 20):
        clips = [batch[name] for name in ("video", "boxes", "box_mask", "frame_mask")]
        for video, boxes, mask, frames in zip(*clips, strict=True):
            assert not mask[~frames].any() and not boxes[~mask].any()
            for pixels, box, keep in zip(video[frames], boxes[frames], mask[frames], strict=True):
                seen = seen_box(pixels)
                if not keep[0]:
                    dropped += seen is not None
                    continue
                np.testing.assert_allclose(box[0], seen, atol=1.6 / 64)
                compared += 1
                cut += (box[0] == 0).any() or (box[0] == 1).any()
    assert compared > 50 and cut > 5
    assert dropped > 0 or area == (1.0, 1.0)


def test_a_box_is_dropped_when_less_than_a_quarter_is_left(settings):
    """Dropped boxes show less of their white area than kept boxes."""
    changed = dataclasses.replace(settings, frame_crop_min_area=0.1, frame_crop_max_area=0.3)
    kept, dropped = [], []
    for batch in take(detection_batches(changed), 30):
        for b, t in zip(*np.nonzero(batch["frame_mask"]), strict=True):
            if seen_box(batch["video"][b, t]) is not None:
                (kept if batch["box_mask"][b, t, 0] else dropped).append(batch["video"][b, t].mean() / 255)
    assert len(kept) > 20 and len(dropped) > 5
    assert np.mean(dropped) < np.mean(kept) / 2


def test_only_the_first_boxes_of_a_frame_count(settings):
    one = dataclasses.replace(settings, num_boxes=1)
    both, first = (take(detection_batches(some), 3) for some in (settings, one))
    for more, fewer in zip(both, first, strict=True):
        np.testing.assert_array_equal(more["boxes"][:, :, :1], fewer["boxes"])
        np.testing.assert_array_equal(more["video"], fewer["video"])
        assert more["box_mask"][:, :, 1].any() and fewer["boxes"].shape[2] == 1


def test_the_stream_continues_anywhere_for_any_number_of_processes(settings):
    whole = take(detection_batches(settings), 6)
    for number, batch in enumerate(take(detection_batches(settings, start=8), 3)):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, whole[2 + number][name])
    shares = [take(detection_batches(settings, 8, process, 2), 2) for process in range(2)]
    for number in range(2):
        for name, value in whole[2 + number].items():
            np.testing.assert_array_equal(np.concatenate([share[number][name] for share in shares]), value)


@pytest.mark.parametrize("num_frames", [1, 3, 10])
def test_every_frame_is_in_one_window_that_spans_its_clip(settings, num_frames):
    settings = dataclasses.replace(settings, num_frames=num_frames)
    windows = clip_windows(settings, "clips")
    assert windows[:, 3].sum() == NUM_FRAMES and windows[:, 3].max() <= num_frames
    batches = list(window_batches(settings, "clips", windows, 4))
    assert len({batch["video"].shape for batch in batches}) == 1
    ids, rows = [], 0
    for batch in batches:
        assert not batch["frame_mask"][~batch["mask"]].any()
        rows += batch["mask"].sum()
        for b, t in zip(*np.nonzero(batch["frame_mask"]), strict=True):
            ids.append(frame_id(batch["frame_ids"][b, t]))
            clip, number = map(int, ids[-1].split("-")[1:])
            seen = seen_box(batch["video"][b, t])
            assert (seen is None) == (not batch["box_mask"][b, t, 0])
            if seen is not None:
                np.testing.assert_allclose(batch["boxes"][b, t, 0], np.array(box_of(clip, number)) / [*SIZE, *SIZE])
    assert rows == len(windows)
    assert sorted(ids) == sorted(
        f"clip-{clip}-{frame:04}" for clip, count in enumerate(COUNTS) for frame in range(count)
    )


def test_processes_share_the_windows(settings):
    windows = clip_windows(settings, "clips")
    whole = list(window_batches(settings, "clips", windows, 4))
    shares = [list(window_batches(settings, "clips", windows, 4, process, 2)) for process in range(2)]
    assert len(whole) == len(shares[0]) == len(shares[1])
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_errors(settings):
    with pytest.raises(DataError, match="found 6 examples, expected at least one batch of 7"):
        detection_batches(dataclasses.replace(settings, batch_size=7))
    windows = clip_windows(settings, "clips")
    with pytest.raises(DataError, match="the evaluation.s batch size: found 3, expected a multiple"):
        window_batches(settings, "clips", windows, 3, 0, 2)


def test_a_data_set_without_frame_ids(config):
    with pytest.raises(DataError, match="found no feature .'frame_ids'. among"):
        clip_windows(config, "shop/gallery")
