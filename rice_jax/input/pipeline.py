"""Batches of pixels, for training and for evaluation.

The order of the training examples and every random draw are a function of the seed and of the example's position in
the endless stream of shuffled epochs, and are made before the stream is shared out. So a global batch is the same
whatever the number of processes, workers and threads, and the position of a run is one integer.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import grain
import numpy as np
from jaxtyping import Bool, Float, Int

from rice_jax.config import InputConfig
from rice_jax.input import transforms
from rice_jax.input.decode import NO_PICTURE, WHOLE, Batcher, Encoded
from rice_jax.input.items import ItemPairs
from rice_jax.input.product_boxes import ProductBoxes, stored_boxes
from rice_jax.input.source import Source, build_command
from rice_jax.input.transforms import Box, Crop
from rice_jax.types import DataError

Rows = Source | ItemPairs


def train_batches(
    config: InputConfig, start: int = 0, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless training batches, each epoch in a new order.

    Args:
        config: what to read and how.
        start: number of examples that all processes together have taken before; whatever number of processes, workers
            and threads took them, the stream continues exactly there.
        process_index: which share of each global batch to yield, 0..process_count - 1.
        process_count: processes that share a global batch; their shares, joined in this order, are the batch of one.

    Returns:
        Iterator over dicts of numpy arrays, b = batch_size / process_count, T = num_frames, S = image_size:
        `image` uint8 [b, S, S, 3] and `video` uint8 [b, T, S, S, 3], RGB 0..255, not normalised;
        `frame_mask` bool [b, T], True = a frame, False = padding (zeros), at least one True;
        `patch_mask` bool [b, T, N], True = a patch that shows the product, only where the settings ask for it;
        `image_key` int32 [b], equal for equal image ids; `index` int32 [b], row of the data set.
        With `config.domains` an epoch holds every product once (`ItemPairs`): then `image_key` is equal for equal
        products and `index` counts these. Its `close()` ends the threads and workers.

    Raises:
        FileNotFoundError: the data set is not there.
        DataError: the batch cannot be shared evenly, or is larger than the data set; later, a clip without frames or a
            picture that cannot be decoded.
    """
    local_size = share(config.batch_size, process_index, process_count, "config.data.batch_size")
    boxes = ProductBoxes(config, config.train_boxes, ("boxes",))
    choosing = ("boxes",) if config.crop_around_box or config.boxed_frames else ()
    features = {"clip_id", "image_id", "frames", "image", *boxes.features, *choosing}
    source = ItemPairs(config) if config.domains else Source(config.data_dir, config.train, sorted(features))
    if len(source) < config.batch_size:
        raise DataError(
            f"{source.directory}: found {len(source)} examples, expected at least one batch of {config.batch_size}; "
            f"lower config.data.batch_size or build more data"
        )
    rows = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat(None)
    examples = rows.random_map(TrainExample(config, source, boxes))[start:]
    return read(examples, config, local_size, process_index, process_count)


def eval_batches(
    config: InputConfig,
    role: str,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | None = None,
) -> grain.DatasetIterator:
    """All queries, gallery images or test items once, in their order, or chosen ones, without anything random.

    Args:
        config: what to read and how.
        role: "query" yields videos, "gallery" images; one of `config.domain_names` its test items as videos.
        batch_size: global number of rows; the last batch is filled up with zeros.
        process_index: which share of each global batch to yield, 0..process_count - 1.
        process_count: processes that share a global batch; all get the same number of batches.
        rows: which rows to yield and in which order, of all processes together; the number of rows stands for a row
            of filling. None = all.

    Returns:
        Iterator over dicts of numpy arrays as in `train_batches`: `video`, `frame_mask` and `patch_mask`, or `image`;
        `index` int32 [b], row of the data set; `mask` bool [b], True = a row, False = filling (zeros, index behind
        the last row).

    Raises:
        FileNotFoundError: the data set is not there.
        DataError: the batch cannot be shared evenly; later, a clip without frames or a picture that
            cannot be decoded.
    """
    local_size = share(batch_size, process_index, process_count, "the evaluation's batch size")
    example = _Item(config, role) if role in config.domain_names else _EXAMPLES[role](config)
    num_rows = len(example.source)
    rows = range(num_rows) if rows is None else rows
    filling = range(num_rows, num_rows + -len(rows) % batch_size)
    examples = grain.MapDataset.source([*rows, *filling]).map(example)
    return read(examples, config, local_size, process_index, process_count)


def image_key(image_id: bytes) -> np.int32:
    """A number that is equal for equal image ids; different ids share one by chance in 1 of 4 billion pairs."""
    return np.frombuffer(hashlib.blake2b(image_id, digest_size=4).digest(), "<i4")[0]


class TrainExample(grain.transforms.RandomMap):
    def __init__(self, config: InputConfig, source: Rows, boxes: ProductBoxes):
        self._config, self._source, self._product_boxes = config, source, boxes

    def random_map(self, index: int, rng: np.random.Generator) -> dict:
        row = self._source.draw(index, rng)
        hue = transforms.random_hue(rng, self._config.pair_hue)
        image_crop, image_colour = self._image_crop(rng), self._colour(rng, hue)
        count = count_frames(self._source, row)
        boxes = stored_boxes(row)
        frames = self._frames(rng, count, boxes)
        colour = self._colour(rng, hue)  # one for all frames: a stream's colours are those of its camera and light
        found = self._product_boxes.of(row, frames)
        windows = [_window(self._config, box) for box in found]
        if self._config.crop == "frame":
            crops = [
                self._frame_crop(rng, boxes[frame] and transforms.box_inside(boxes[frame], window))
                for frame, window in zip(frames, windows, strict=True)
            ]
        else:
            crops = [self._frame_crop(rng)] * len(frames)
        crops = list(map(transforms.inside, windows, crops))
        return {
            "image": encoded_image(self._source, row, image_crop, image_colour),
            **encoded_frames(self._source, row, frames, crops, self._config, colour),
            **_patch_mask(self._config, found, crops),
            "image_key": image_key(row["image_id"]),
            "index": np.int32(index),
        }

    def _image_crop(self, rng: np.random.Generator) -> Crop:
        config = self._config
        return transforms.random_crop(rng, config.resize, config.image_size, (config.image_crop_min_area, 1.0))

    def _frame_crop(self, rng: np.random.Generator, box: Box | None = None) -> Crop:
        config = self._config
        area = (config.frame_crop_min_area, config.frame_crop_max_area)
        held = box if config.crop_around_box else None
        return transforms.random_crop(rng, config.resize, config.image_size, area, held)

    def _colour(self, rng: np.random.Generator, hue: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 4"] | None:
        if not self._config.changes_color:
            return None
        colour = transforms.random_colour(rng, self._config.color_jitter)
        return np.hstack([colour[:, :3] @ hue, colour[:, 3:]])

    def _frames(self, rng: np.random.Generator, count: int, boxes: Sequence[Box | None]) -> Int[np.ndarray, " K"]:
        config, candidates = self._config, np.arange(count)
        if config.boxed_frames and any(boxes):
            candidates = np.flatnonzero([box is not None for box in boxes])
        if config.random_frames:
            frames = candidates[transforms.random_frames(rng, len(candidates), config.num_frames)]
        else:
            frames = candidates[transforms.sample_frames(len(candidates), config.num_frames)]
        return transforms.cut_tail(rng, frames, config.num_frames) if config.cut_tail else frames


class _Query(grain.transforms.Map):
    def __init__(self, config: InputConfig):
        self._config = config
        self._product_boxes = ProductBoxes(config, config.query_boxes, ("boxes", "box_frame"))
        self.source = Source(config.data_dir, config.query, ("clip_id", "frames", *self._product_boxes.features))

    def map(self, index: int) -> dict:
        config, is_row = self._config, index < len(self.source)
        row = self.source[index] if is_row else {}
        frames = transforms.sample_frames(count_frames(self.source, row) if is_row else 0, config.num_frames)
        found = self._product_boxes.of(row, frames)
        centre = transforms.centre_crop(config.resize, config.image_size)
        crops = [transforms.inside(_window(config, box), centre) for box in found]
        return {
            **encoded_frames(self.source, row, frames, crops, config),
            **_patch_mask(config, found, crops),
            "index": np.int32(index),
            "mask": np.bool_(is_row),
        }


class _Item(_Query):
    def __init__(self, config: InputConfig, name: str):
        self._config = config
        self._product_boxes = ProductBoxes(config, "", ())
        self.source = Source(config.data_dir, name, ("item_id", "frames"), split="test")


class _GalleryImage(grain.transforms.Map):
    def __init__(self, config: InputConfig):
        self._config = config
        self.source = Source(config.data_dir, config.gallery, ("image_id", "image"))

    def map(self, index: int) -> dict:
        config, is_row = self._config, index < len(self.source)
        if is_row:
            crop = transforms.centre_crop(config.resize, config.image_size)
            image = encoded_image(self.source, self.source[index], crop)
        else:
            image = NO_PICTURE
        return {"image": image, "index": np.int32(index), "mask": np.bool_(is_row)}


_EXAMPLES = {"query": _Query, "gallery": _GalleryImage}


def count_frames(source: Rows, row: dict) -> int:
    if not len(row["frames"]):
        raise DataError(
            f"{source.directory}: row {row['index']} ({_ids(row)}) has no frames. "
            f"The builder leaves such clips out; build the data set again: {build_command(source.name)}"
        )
    return len(row["frames"])


def encoded_image(source: Rows, row: dict, crop: Crop, colour: Float[np.ndarray, "3 4"] | None = None) -> Encoded:
    """The image of a row, for the batch to decode."""
    return Encoded((), [row["image"]], ["image"], [crop], colour, partial(_undecodable, source, row))


def encoded_frames(
    source: Rows,
    row: dict,
    frames: Int[np.ndarray, " K"],
    crops: Sequence[Crop],
    config: InputConfig,
    colour: Float[np.ndarray, "3 4"] | None = None,
) -> dict[str, Encoded | Bool[np.ndarray, " T"]]:
    """The chosen frames of a row, for the batch to decode into a padded `video`, and its `frame_mask`."""
    files, names = [row["frames"][frame] for frame in frames], [f"frame {frame}" for frame in frames]
    video = Encoded((config.num_frames,), files, names, crops, colour, partial(_undecodable, source, row))
    return {"video": video, "frame_mask": np.arange(config.num_frames) < len(frames)}


def _window(config: InputConfig, box: Box | None) -> Crop:
    """The part of a frame that is all the model gets to see."""
    if box is None or config.ipd_use != "crop":
        return WHOLE
    return transforms.around_box(box, config.ipd_margin)


def _patch_mask(config: InputConfig, boxes: Sequence[Box | None], crops: Sequence[Crop]) -> dict[str, np.ndarray]:
    """The `patch_mask` of the chosen frames, all True for padding; nothing unless the settings ask for it."""
    if config.ipd == "off" or config.ipd_use != "mask":
        return {}
    grid = config.image_size // config.patch_size
    mask = np.ones((config.num_frames, grid * grid), bool)
    for position, (box, crop) in enumerate(zip(boxes, crops, strict=True)):
        mask[position] = transforms.patch_mask(box and transforms.box_inside(box, crop), grid)
    return {"patch_mask": mask}


def _undecodable(source: Rows, row: dict, picture: str, error: OSError) -> DataError:
    return DataError(
        f"{source.directory}: {picture} of row {row['index']} ({_ids(row)}) cannot be decoded: {error}. "
        f"The builder leaves such pictures out; build the data set again: {build_command(source.name)}"
    )


def _ids(row: dict) -> str:
    return ", ".join(f"{name} {row[name].decode()}" for name in ("clip_id", "image_id", "item_id") if name in row)


def read(
    examples: grain.MapDataset, config: InputConfig, local_size: int, process_index: int, process_count: int
) -> grain.DatasetIterator:
    """A process's share of the batches of examples, made by as many workers and threads as the settings say."""
    batches = examples.batch(local_size, drop_remainder=True, batch_fn=Batcher(config))[process_index::process_count]
    # An element is a whole batch, which all threads decode together while the next one's rows are read.
    ahead = min(2, config.num_threads)
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=max(1, ahead))
    dataset = batches.to_iter_dataset(options)
    if config.num_workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.num_workers))
    return iter(dataset)


def share(batch_size: int, process_index: int, process_count: int, name: str) -> int:
    if batch_size % process_count:
        raise DataError(f"{name}: found {batch_size}, expected a multiple of the number of processes ({process_count})")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index: found {process_index}, expected 0 to {process_count - 1}")
    return batch_size // process_count
