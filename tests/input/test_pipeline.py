import dataclasses
import io
import itertools
import multiprocessing
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rice_jax.input import transforms
from rice_jax.input.pipeline import eval_batches, train_batches
from rice_jax.input.views import image_key
from tests.input import tiny_shop

NUM_TRAIN = len(tiny_shop.TRAIN)


def take(batches, count: int) -> list[dict]:
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def joined(batches: list[dict]) -> dict:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def squashed(encoded: bytes, size: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).resize((size, size), Image.Resampling.BICUBIC), int)


def shows(pixels: np.ndarray, encoded: bytes) -> bool:
    """Whether pixels are the whole picture, resized, mirrored or not."""
    expected = squashed(encoded, len(pixels))
    return any(
        np.abs(pixels - other).max() <= 12 and np.abs(pixels - other).mean() < 1
        for other in (expected, expected[:, ::-1])
    )


def test_shapes_masks_and_padding(config):
    batch = take(train_batches(config), 1)[0]
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((4, 28, 28, 3), "uint8"),
        "video": ((4, 10, 28, 28, 3), "uint8"),
        "frame_mask": ((4, 10), "bool"),
        "image_key": ((4,), "int32"),
        "index": ((4,), "int32"),
    }
    many = joined(take(train_batches(config), 20))
    kept = many["frame_mask"].sum(1)
    assert not many["video"][~many["frame_mask"]].any(), "padding is zero"
    assert many["video"][many["frame_mask"]].any((1, 2, 3)).all()
    assert (many["frame_mask"] == (np.arange(10) < kept[:, None])).all(), "frames first, then padding"
    counts = np.array(tiny_shop.FRAME_COUNTS)[many["index"]]
    assert (kept[counts < 10] == counts[counts < 10]).all(), "short clips are never cut"
    assert kept.min() >= 1 and set(kept[counts == 10]) > {10, 1}


def test_the_pixels_are_those_of_the_row(config):
    whole = dataclasses.replace(config, resize=28, cut_tail=False)
    many = joined(take(train_batches(whole), 6))
    for position, row in enumerate(many["index"]):
        stored = tiny_shop.TRAIN[row]
        assert shows(many["image"][position], stored["image"])
        assert many["frame_mask"][position].sum() == len(stored["frames"])
        assert all(map(shows, many["video"][position], stored["frames"]))
        assert many["image_key"][position] == image_key(stored["image_id"].encode())


def test_seed_decides_everything(config):
    first = joined(take(train_batches(config), 6))
    assert_same(joined(take(train_batches(config), 6)), first)
    other = joined(take(train_batches(dataclasses.replace(config, seed=8)), 6))
    assert (other["index"] != first["index"]).any()


def test_every_epoch_holds_every_row_once_in_its_own_order(config):
    rows = joined(take(train_batches(config), NUM_TRAIN))["index"]  # 4 epochs, their borders inside batches
    epochs = rows.reshape(4, NUM_TRAIN)
    assert (np.sort(epochs) == np.arange(NUM_TRAIN)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_row_is_augmented_differently_each_time(config):
    many = joined(
        take(train_batches(dataclasses.replace(config, frame_crop_min_area=0.5, image_crop_min_area=0.5)), NUM_TRAIN)
    )
    images = many["image"][many["index"] == 3]
    assert len(images) == 4 and len(np.unique(images, axis=0)) == 4


@pytest.mark.parametrize("start", [4, 5, 11, 40, 44_000_000_003])
def test_starting_anywhere_continues_the_stream(config, start):
    stream = joined(take(train_batches(config, start - start % 4), 4))
    found = joined(take(train_batches(config, start), 3))
    skip = start % 4
    assert_same(found, {name: array[skip : skip + 12] for name, array in stream.items()})


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_same_global_batches(config, process_count):
    expected = take(train_batches(config, start=8), 4)
    shares = [take(train_batches(config, 8, index, process_count), 4) for index in range(process_count)]
    for step, batch in enumerate(expected):
        assert_same(joined([share[step] for share in shares]), batch)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_threads_change_nothing(config, num_threads):
    found = take(train_batches(dataclasses.replace(config, num_threads=num_threads)), 5)
    assert_same(joined(found), joined(take(train_batches(config), 5)))


@pytest.mark.slow
def test_workers_change_nothing_and_leave_sigterm_to_the_run(config):
    batches = train_batches(dataclasses.replace(config, num_workers=2), start=6)
    found = [next(batches)]
    for worker in multiprocessing.active_children():
        worker.terminate()
    found += take(batches, 8)  # more than are read ahead
    assert_same(joined(found), joined(take(train_batches(config, start=6), 9)))


@pytest.mark.parametrize("crop_min_area", [1.0, 0.5])
def test_crop_per_frame_or_per_video(config, crop_min_area):
    base = dataclasses.replace(
        config, cut_tail=False, frame_crop_min_area=crop_min_area, image_crop_min_area=crop_min_area, color_jitter=0.4
    )
    for crop, distinct in (("video", {1}), ("frame", set(range(2, 11)))):
        many = joined(take(train_batches(dataclasses.replace(base, crop=crop)), 6))
        videos = many["video"][many["index"] == tiny_shop.SAME_FRAMES]
        assert {len(np.unique(video, axis=0)) for video in videos} <= distinct
        assert len(videos) == 2 and (videos[0] != videos[1]).any()


def test_color_is_one_draw_per_video_and_another_per_image(config):
    base = dataclasses.replace(config, resize=28, cut_tail=False, crop="video")
    plain = joined(take(train_batches(base), 3))
    changed = joined(take(train_batches(dataclasses.replace(base, color_jitter=0.4)), 3))
    np.testing.assert_array_equal(changed["index"], plain["index"])
    gain = changed["video"].mean((2, 3), dtype=float) / np.maximum(plain["video"].mean((2, 3), dtype=float), 1)
    same = changed["index"] == tiny_shop.SAME_FRAMES
    assert np.ptp(gain[same], axis=1).max() < 1e-9, "all frames alike"
    image_gain = changed["image"].mean((1, 2), dtype=float) / plain["image"].mean((1, 2), dtype=float)
    assert np.abs(image_gain - gain[:, 0]).max() > 0.05


def test_a_pair_turns_its_hues_together(config, monkeypatch):
    colors = []
    render = transforms.render

    def spy(encoded, crop, size, color):
        if threading.current_thread() is threading.main_thread():  # no thread of another test's iterator
            colors.append((encoded, color))
        return render(encoded, crop, size, color)

    monkeypatch.setattr(transforms, "render", spy)
    turned = dataclasses.replace(config, pair_hue=1.0, cut_tail=False, num_threads=0)
    batch = take(train_batches(turned), 1)[0]
    different = set()
    images = [colors.pop(0) for _ in batch["index"]]  # a batch renders its images before its frames
    for row, image in zip(batch["index"], images, strict=True):
        stored = tiny_shop.TRAIN[row]
        pair = [image, *(colors.pop(0) for _ in stored["frames"])]
        assert [encoded for encoded, _ in pair] == [stored["image"], *stored["frames"]]
        assert all((color == pair[0][1]).all() for _, color in pair)
        different.add(pair[0][1].tobytes())
    assert len(different) == 4


def test_one_random_frame(config, monkeypatch):
    rendered, render = [], transforms.render

    def counted(*args):
        rendered.append(threading.current_thread())
        return render(*args)

    monkeypatch.setattr(transforms, "render", counted)
    one = dataclasses.replace(config, num_frames=1, random_frames=True, resize=28, num_threads=0)
    many = joined(take(train_batches(one), 44))
    assert many["frame_mask"].all() and many["video"].shape == (176, 1, 28, 28, 3)
    assert rendered.count(threading.main_thread()) == 2 * 176, "nothing is decoded but the image and the frame"
    frames = tiny_shop.TRAIN[5]["frames"]
    chosen = [
        [frame for frame in range(10) if shows(video[0], frames[frame])] for video in many["video"][many["index"] == 5]
    ]
    assert all(len(frame) == 1 for frame in chosen) and len({frame[0] for frame in chosen}) >= 6


def test_frames_with_a_box_only(config):
    whole = dataclasses.replace(config, resize=28, cut_tail=False, boxed_frames=True)
    many = joined(take(train_batches(whole), 11))
    for position, row in enumerate(many["index"]):
        stored = tiny_shop.TRAIN[row]
        boxed = [frame for frame, box in zip(stored["frames"], stored["boxes"], strict=True) if box == tiny_shop.BOX]
        expected = boxed or stored["frames"]
        assert many["frame_mask"][position].sum() == len(expected)
        assert all(map(shows, many["video"][position], expected))


def test_windows_around_the_box(config, monkeypatch):
    held = []
    draw = transforms.random_crop

    def spy(rng, resize, size, area, box=None):
        if threading.current_thread() is threading.main_thread():
            held.append(box)
        return draw(rng, resize, size, area, box)

    monkeypatch.setattr(transforms, "random_crop", spy)
    around = dataclasses.replace(config, frame_crop_min_area=0.1, crop_around_box=True, cut_tail=False, num_threads=0)
    batch = take(train_batches(around), 1)[0]
    expected = []
    for row in batch["index"]:
        expected.append(None)  # the shop image
        for box in tiny_shop.TRAIN[row]["boxes"]:
            expected.append((box.xmin, box.ymin, box.xmax, box.ymax) if box == tiny_shop.BOX else None)
    # Threads prepare more batches than the first; the draws of a batch are in the order of its rows.
    for found, wanted in zip(held[: len(expected)], expected, strict=True):
        assert (found is None) == (wanted is None)
        assert wanted is None or found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("role, rows", [("query", tiny_shop.QUERIES), ("gallery", tiny_shop.GALLERY)])
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_evaluation_yields_every_row_once_in_order(config, role, rows, process_count):
    shares = [list(eval_batches(config, role, 4, index, process_count)) for index in range(process_count)]
    assert {len(share) for share in shares} == {2}
    whole = joined([joined([share[step] for share in shares]) for step in range(2)])
    np.testing.assert_array_equal(whole["index"], np.arange(8))
    np.testing.assert_array_equal(whole["mask"], np.arange(8) < len(rows))
    pixels = whole["image" if role == "gallery" else "video"]
    assert not pixels[len(rows) :].any()
    for row, stored in enumerate(rows):
        if role == "gallery":
            expected = [stored["image"]]
            found = pixels[row][None]
        else:
            expected = [stored["frames"][frame] for frame in transforms.sample_frames(len(stored["frames"]), 10)]
            found = pixels[row][whole["frame_mask"][row]]
        assert len(found) == len(expected)
        for picture, encoded in zip(found, expected, strict=True):
            assert np.abs(picture - squashed(encoded, 32)[2:30, 2:30]).mean() < 1


def test_evaluation_yields_chosen_rows(config):
    every = joined(list(eval_batches(config, "gallery", 6)))
    rows = [5, 0, 5, 6, 2]  # 6 is filling
    shares = [list(eval_batches(config, "gallery", 4, index, 2, rows=rows)) for index in range(2)]
    found = joined([joined([share[step] for share in shares]) for step in range(2)])
    np.testing.assert_array_equal(found["index"][found["mask"]], [5, 0, 5, 2])
    np.testing.assert_array_equal(found["mask"], [True, True, True, False, True, False, False, False])
    np.testing.assert_array_equal(found["image"][found["mask"]], every["image"][[5, 0, 5, 2]])
    assert not found["image"][~found["mask"]].any()


def test_nothing_is_random_in_evaluation(config):
    wild = dataclasses.replace(
        config, seed=99, cut_tail=True, random_frames=True, frame_crop_min_area=0.3, color_jitter=0.5
    )
    for role in ("query", "gallery"):
        assert_same(joined(list(eval_batches(wild, role, 2))), joined(list(eval_batches(config, role, 6))))


def test_a_batch_that_cannot_be_shared_is_an_error(config):
    with pytest.raises(ValueError, match=r"config.data.batch_size: found 4, expected a multiple .*\(3\)"):
        train_batches(config, process_count=3)
    with pytest.raises(ValueError, match="evaluation"):
        eval_batches(config, "query", 5, process_count=2)
    with pytest.raises(ValueError, match="process_index: found 2"):
        train_batches(config, process_index=2, process_count=2)


def test_a_batch_larger_than_the_data_is_an_error(config):
    with pytest.raises(ValueError, match=r"found 11 examples, .* batch of 12"):
        train_batches(dataclasses.replace(config, batch_size=12))


def test_a_damaged_picture_is_an_error_that_names_it(config, tmp_path):
    damaged = [dict(row) for row in tiny_shop.TRAIN[:4]]
    damaged[2]["frames"] = [*damaged[2]["frames"][:3], b"\xff\xd8\xff damaged"]
    damaged[2]["boxes"] = damaged[2]["boxes"][:4]
    tiny_shop.build(tmp_path / "shop" / "train", "train", damaged, {})
    broken = dataclasses.replace(config, data_dir=str(tmp_path), cut_tail=False)
    with pytest.raises(ValueError, match=r"shop/train/1.0.0: frame 3 of row 2 \(clip_id clip-2.*rice build shop"):
        take(train_batches(broken), 1)


def test_a_clip_without_frames_is_an_error_that_names_it(config, tmp_path):
    rows = [*tiny_shop.QUERIES[:1], tiny_shop.QUERIES[1] | {"frames": []}]
    tiny_shop.build(tmp_path / "shop" / "query", "test", rows, {})
    broken = dataclasses.replace(config, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"shop/query/1.0.0: row 1 \(clip_id query-1\) has no frames"):
        list(eval_batches(broken, "query", 2))


def painted(box: tfds.features.BBox, size: tuple[int, int] = (96, 96)) -> bytes:
    """A black picture with a white box."""
    picture = np.zeros((*size[::-1], 3), np.uint8)
    width, height = size
    rows = slice(round(box.ymin * height), round(box.ymax * height))
    columns = slice(round(box.xmin * width), round(box.xmax * width))
    picture[rows, columns] = 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def white_products(tmp_path_factory, config):
    """Settings that read clips whose frames are black, with a white product in its box."""
    root = tmp_path_factory.mktemp("painted")
    boxes = [
        tfds.features.BBox(ymin=y, ymax=y + 0.5, xmin=x, xmax=x + 0.25)
        for y, x in [(0.25, 0.5), (0.0, 0.0), (0.5, 0.75)]
    ]
    frames = list(map(painted, boxes))
    ids = [f"frame-{i}" for i in range(3)]
    clip = {"clip_id": "clip", "frames": frames, "frame_ids": ids, "image_id": "image", "image": frames[0]}
    about = {"gallery_id": "live", "image_ids": ["image"], "title": ""}
    tiny_shop.build(root / "shop" / "train", "train", [clip | {"boxes": boxes}] * 4, {})
    # The first frame has a second box; the last has none.
    box_frame = {"boxes": [boxes[0], boxes[2], boxes[1]], "box_frame": [0, 0, 1]}
    tiny_shop.build(root / "shop" / "query", "test", [clip | about | box_frame], {})
    return dataclasses.replace(
        config, data_dir=str(root), num_frames=4, image_size=32, resize=36, patch_size=4, cut_tail=False, ipd="boxes"
    )


def share_white(pixels: np.ndarray) -> np.ndarray:
    """The share of white in each 4×4 patch of pictures [..., 32, 32, 3], in reading order."""
    white = pixels[..., 0].reshape(*pixels.shape[:-3], 8, 4, 8, 4).astype(float) / 255
    return white.mean(axis=(-1, -3)).reshape(*pixels.shape[:-3], 64)


@pytest.mark.parametrize("frame_crop_min_area", [1.0, 0.3])
def test_kept_patches_are_those_that_show_the_product(white_products, frame_crop_min_area):
    config = dataclasses.replace(white_products, frame_crop_min_area=frame_crop_min_area)
    many = joined(take(train_batches(config), 30))
    share = share_white(many["video"])[:, :3]
    kept = many["patch_mask"][:, :3]
    assert many["patch_mask"].dtype == bool and many["patch_mask"][:, 3].all(), "padding keeps all patches"
    seen = kept.any(axis=-1) & ~kept.all(axis=-1)
    assert seen.mean() > 0.8 and not kept.all(axis=-1)[seen].any()
    assert kept[seen][share[seen] > 0.9].all(), "white patches are kept"
    assert not kept[seen][share[seen] < 0.005].any(), "black patches are not"
    np.testing.assert_array_equal(kept.all(axis=-1)[~seen], True)


def test_masks_of_queries_come_from_the_first_box_of_a_frame(white_products):
    batch = joined(list(eval_batches(white_products, "query", 2)))
    share, kept = share_white(batch["video"][0]), batch["patch_mask"][0]
    for frame in (0, 1):
        assert kept[frame][share[frame] > 0.9].all() and not kept[frame][share[frame] < 0.005].any()
    assert kept[2:].all(), "frames without a box and padding keep all patches"
    assert batch["patch_mask"][1].all() and not batch["mask"][1], "filling keeps all patches"


def test_masks_from_a_file(white_products, tmp_path):
    path = tmp_path / "boxes.jsonl"
    path.write_text("".join(f'{{"frame_id": "frame-{i}", "boxes": [[0, 0, 0.5, 1]]}}\n' for i in range(3)))
    config = dataclasses.replace(white_products, ipd="detector", query_boxes=str(path), train_boxes=str(path))
    left = np.arange(64) % 8 < 4
    batch = joined(list(eval_batches(config, "query", 1)))
    np.testing.assert_array_equal(batch["patch_mask"][0], [left, left, left, np.ones(64, bool)])
    kept = joined(take(train_batches(config), 8))["patch_mask"][:, :3].reshape(-1, 8, 8)
    assert (kept == kept[:, :1]).all() and {tuple(mask[0]) for mask in kept} >= {tuple(left[:8]), tuple(~left[:8])}


def test_frames_cut_to_the_product(white_products):
    config = dataclasses.replace(white_products, ipd_use="crop", ipd_margin=0.0, resize=32)
    batch = joined(list(eval_batches(config, "query", 1)))
    assert "patch_mask" not in batch
    # A box of 0.25 × 0.5 in a window of 0.5 × 0.5: the middle half, or the left one at the picture's edge.
    columns = batch["video"][0, :2, 16, :, 0] > 127
    np.testing.assert_array_equal(columns[0], (np.arange(32) >= 8) & (np.arange(32) < 24))
    np.testing.assert_array_equal(columns[1], np.arange(32) < 16)
    assert share_white(batch["video"][0, 2]).mean() == pytest.approx(0.125, abs=0.01), "without a box it is whole"
    many = joined(take(train_batches(config), 4))
    np.testing.assert_allclose(share_white(many["video"][:, :3]).mean(axis=-1), 0.5, atol=0.02)


def test_unknown_boxes_change_nothing(config):
    assert_same(
        *(take(train_batches(settings), 1)[0] for settings in (dataclasses.replace(config, ipd_use="crop"), config))
    )
    boxed = take(train_batches(dataclasses.replace(config, ipd="boxes", patch_size=7)), 1)[0]
    mask = boxed.pop("patch_mask")
    assert_same(boxed, take(train_batches(config), 1)[0])
    assert mask.shape == (4, 10, 16) and mask[~boxed["frame_mask"]].all()
