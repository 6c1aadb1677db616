"""Batches of pixels, for training and for evaluation.

The order of the training examples and every random draw are functions of the seed and of the example's position in the
endless stream of shuffled epochs. Both are fixed before the stream is divided among processes, workers and threads. A
global batch is therefore the same for any number of them, and the position of a run is one integer.
"""

import signal
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from rice_jax.config import InputConfig
from rice_jax.input.decode import Collate
from rice_jax.input.items import ItemPairs, ItemTriplets
from rice_jax.input.product_boxes import ProductBoxes
from rice_jax.input.source import Source
from rice_jax.input.teacher import teacher_views
from rice_jax.input.text_views import ITEM_SPEECH, PAIR_SPEECH, PAIR_TITLE, SPEECH, TITLE, text_views
from rice_jax.input.views import (
    Example,
    FramesView,
    ImageKeyView,
    ImageView,
    Part,
    PatchMaskView,
    RandomFramesView,
    TrainExample,
    View,
    open_source,
    required_columns,
)
from rice_jax.types import DataError


def train_batches(
    config: InputConfig, start: int = 0, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Makes endless training batches, with a new order in each epoch.

    Args:
        config: what to read and how.
        start: number of examples that all processes together have taken before. The stream continues there, whatever
            the number of processes, workers and threads that took them.
        process_index: which share of each global batch to yield, 0..process_count - 1.
        process_count: processes that share a global batch. Its rows are those of all shares, in the order of the mesh's
            devices, which a TPU slice need not number by process.

    Returns:
        Iterator over dicts of numpy arrays, b = batch_size / process_count, T = num_frames, S = image_size:
        `image` uint8 [b, S, S, 3] and `video` uint8 [b, T, S, S, 3], RGB 0..255, not normalized;
        `frame_mask` bool [b, T], True = a frame, False = padding (zeros), at least one True;
        `patch_mask` bool [b, T, N], True = a patch that shows the product, only where the settings ask for it;
        `image_key` int32 [b], equal for equal image ids; `index` int32 [b], row of the data set;
        with `config.text` the title and the speech, and with `config.teacher_dim` the `teacher`, as `types.Batch` says.
        With `config.domains` an epoch holds every product once (`ItemPairs`): then `image_key` is equal for equal
        products, and `index` is the number of the product. `close()` ends the iterator's threads and workers.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: the batch does not divide by the number of processes, or is larger than the data set; later, a clip
            has no frames or a picture cannot be decoded.
    """
    views = train_views(config)
    source = _open_pairs(config, views) if config.domains else open_source(config, config.train, views)
    return random_batches(config, source, views, start, process_index, process_count)


def eval_batches(
    config: InputConfig,
    role: str,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | None = None,
) -> grain.DatasetIterator:
    """Makes batches of all queries, gallery images or test items in their order, or of chosen ones, without randomness.

    Args:
        config: what to read and how.
        role: "query" yields videos, "gallery" images; one of `config.domain_names` its test items as videos.
        batch_size: global number of rows; the last batch is filled up with zeros.
        process_index: which share of each global batch to yield, 0..process_count - 1.
        process_count: processes that share a global batch; all get the same number of batches.
        rows: rows to yield, in this order, for all processes together; the number of rows in the data set stands for
            a row of filling. None = all.

    Returns:
        Iterator over dicts of numpy arrays as in `train_batches`: `video`, `frame_mask` and `patch_mask`, or `image`;
        the speech, or the title;
        `index` int32 [b], row of the data set; `mask` bool [b], True = a row, False = filling (zeros, with an index
        past the last row).

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: the batch does not divide by the number of processes; later, a clip has no frames or a picture
            cannot be decoded.
    """
    local_size = share(batch_size, process_index, process_count, "the evaluation's batch size")
    source, views = _open_role(config, role)
    num_rows = len(source)
    rows = range(num_rows) if rows is None else rows
    filling = range(num_rows, num_rows + -len(rows) % batch_size)
    examples = grain.MapDataset.source([*rows, *filling]).map(EvalExamples(source, views, range(num_rows)))
    return read(examples, config, local_size, process_index, process_count)


def fixed_batches(
    config: InputConfig,
    source: Source,
    views: Sequence[View],
    rows: Sequence[int] | Int[np.ndarray, " N"],
    batch_size: int,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """Makes batches of evaluation examples of some rows in their order, the last one filled up; see `eval_batches`."""
    local_size = share(batch_size, process_index, process_count, "the evaluation's batch size")
    examples = grain.MapDataset.range(len(rows) + -len(rows) % batch_size).map(EvalExamples(source, views, rows))
    return read(examples, config, local_size, process_index, process_count)


def train_views(config: InputConfig) -> list[View]:
    """Views of a pair of a video and an image."""
    boxes = ProductBoxes(config, config.train_boxes, ("boxes",))
    texts = text_views(config, *((PAIR_TITLE, PAIR_SPEECH) if config.domains else (TITLE, SPEECH)))
    pictures = [ImageView(config), RandomFramesView(config, boxes), *_patch_masks(config, boxes)]
    return [*pictures, ImageKeyView(), *texts, *teacher_views(config)]


def query_views(config: InputConfig) -> list[View]:
    """Views of a clip to search with."""
    boxes = ProductBoxes(config, config.query_boxes, ("boxes", "box_frame"))
    return [FramesView(config, boxes), *_patch_masks(config, boxes), *text_views(config, SPEECH)]


def gallery_views(config: InputConfig) -> list[View]:
    """Views of a shop's image."""
    return [ImageView(config), *text_views(config, TITLE)]


def item_views(config: InputConfig) -> list[View]:
    """Views of a product item, whose pictures are the frames of a video without boxes."""
    boxes = ProductBoxes(config, "", ())
    frames = FramesView(config, boxes, id_column="item_id")
    return [frames, *_patch_masks(config, boxes), *text_views(config, ITEM_SPEECH)]


def _patch_masks(config: InputConfig, boxes: ProductBoxes) -> list[View]:
    return [PatchMaskView(config, boxes)] if config.ipd != "off" and config.ipd_use == "mask" else []


def _open_pairs(config: InputConfig, views: Sequence[View]) -> ItemPairs:
    if missing := sorted(set(required_columns(views)) - ItemPairs.columns):
        raise DataError(
            f"config.data.domains: found no column {missing} among {sorted(ItemPairs.columns)}, which pairs of items "
            "have; turn off the settings that need it"
        )
    return ItemPairs(config)


def _open_role(config: InputConfig, role: str) -> tuple[Source, list[View]]:
    """The data set and the views of a role."""
    if role in config.domain_names:
        views = item_views(config)
        return open_source(config, role, views, split="test"), views
    roles = {"query": (config.query, query_views), "gallery": (config.gallery, gallery_views)}
    name, make_views = roles[role]
    views = make_views(config)
    return open_source(config, name, views), views


def random_batches(
    config: InputConfig,
    source: Source | ItemPairs | ItemTriplets,
    views: Sequence[View],
    start: int,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """Makes endless training batches out of views; see `train_batches` for the arguments."""
    local_size = share(config.batch_size, process_index, process_count, "config.data.batch_size")
    if len(source) < config.batch_size:
        raise DataError(
            f"{source.directory}: found {len(source)} examples, expected at least one batch of {config.batch_size}; "
            "lower config.data.batch_size or build more data"
        )
    rows = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat(None)
    examples = rows.random_map(_TrainExamples(config, source, views))[start:]
    return read(examples, config, local_size, process_index, process_count)


class _TrainExamples(grain.transforms.RandomMap):
    def __init__(self, config: InputConfig, source: Source | ItemPairs | ItemTriplets, views: Sequence[View]):
        self._max_hue, self._source, self._views = config.pair_hue, source, views

    def random_map(self, index: int, rng: np.random.Generator) -> Part:
        row = self._source.draw(index, rng)
        example = TrainExample(source=self._source, index=index, row=row, rng=rng, max_hue=self._max_hue)
        parts = [view.train(example) for view in self._views]
        return join(parts) | {"index": np.int32(index)}


class EvalExamples(grain.transforms.Map):
    """Makes evaluation examples by their number; numbers past the last one give filling."""

    def __init__(self, source: Source, views: Sequence[View], rows: Sequence[int] | Int[np.ndarray, " N"]):
        """Takes the views, and the row of the data set for each number of an example."""
        self._source, self._views, self._rows = source, views, rows

    def map(self, index: int) -> Part:
        is_row = index < len(self._rows)
        row = self._source[int(self._rows[index])] if is_row else {}
        example = Example(source=self._source, index=index, row=row)
        parts = [view.evaluate(example) for view in self._views]
        return join(parts) | {"index": np.int32(index), "mask": np.bool_(is_row)}


def join(parts: Sequence[Part]) -> Part:
    """The entries of all parts."""
    return {name: value for part in parts for name, value in part.items()}


def read(
    examples: grain.MapDataset, config: InputConfig, local_size: int, process_index: int, process_count: int
) -> grain.DatasetIterator:
    """A process's share of the batches of examples, made by as many workers and threads as the settings say."""
    batches = examples.batch(local_size, drop_remainder=True, batch_fn=Collate(config))[process_index::process_count]
    # An element is a whole batch: all threads decode it together while the rows of the next one are read.
    ahead = min(2, config.num_threads)
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=max(1, ahead)))
    if config.num_workers:
        options = grain.MultiprocessingOptions(num_workers=config.num_workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_ignore_sigterm)
    return iter(dataset)


def _ignore_sigterm(*_) -> None:
    """Leaves SIGTERM to the run, which takes the batches of a last step and then ends its workers.

    A scheduler sends it to all processes of a job, workers included.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def share(batch_size: int, process_index: int, process_count: int, name: str) -> int:
    """The size of a process's share of a global batch.

    Args:
        batch_size: global.
        process_index: of the process, 0..process_count - 1.
        process_count: number of processes.
        name: of the batch size, for the error.

    Raises:
        DataError: the batch does not divide by the number of processes, or there is no such process.
    """
    if batch_size % process_count:
        raise DataError(f"{name}: found {batch_size}, expected a multiple of the number of processes ({process_count})")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index: found {process_index}, expected 0 to {process_count - 1}")
    return batch_size // process_count
