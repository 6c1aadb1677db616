"""Views: the parts that an example is made of, such as an image, frames, or boxes.

A view names the columns of the data set that it reads, and turns a row into its part of an example. `pipeline` and
`detection` hold the lists of views that make their examples, and read the union of the views' columns. A new modality
is one class and one entry in a list. The prices of products, for example:

    class PriceView(View):
        columns = ("price",)

        def train(self, example: TrainExample) -> Part:
            return {"price": np.float32(example.row["price"])}

    def train_views(config: InputConfig) -> list[View]:
        return [..., PriceView()]

Views work in the order of their list, and may read what earlier views decided, such as `example.frames`. All random
draws come from one generator, so a new view that draws goes to the end of its list: the other views then keep their
draws.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rice_jax.config import InputConfig
from rice_jax.input import transforms
from rice_jax.input.decode import NO_PICTURE, WHOLE, Encoded
from rice_jax.input.items import ProductItems
from rice_jax.input.product_boxes import ProductBoxes, frame_boxes, stored_boxes
from rice_jax.input.source import Source, build_command
from rice_jax.input.transforms import Box, Crop
from rice_jax.types import DataError

# A box is dropped if a crop leaves less than this share of its area: too little to recognize the product.
MIN_BOX_SHARE = 0.25

Spread = Callable[[int, int], Int[np.ndarray, " K"]]  # of a count of frames, and how many to choose
Part = dict[str, Any]  # of an example: numbers, arrays, and `Encoded` pictures by their names in the batch


@dataclasses.dataclass(kw_only=True)
class Example:
    """A row that becomes an example, and what its views have decided so far.

    Attributes:
        source: data set of the row.
        index: number of the example among those of its stream.
        row: {column: value}, with pictures still encoded; empty for the filling of the last batch in evaluation.
        frames: numbers of the chosen frames, ascending.
        crops: windows of the chosen frames.
    """

    source: Source | ProductItems
    index: int
    row: dict[str, Any]
    frames: Int[np.ndarray, " K"] = dataclasses.field(default_factory=lambda: np.arange(0))
    crops: list[Crop] = dataclasses.field(default_factory=list)

    def count_frames(self) -> int:
        """The number of stored frames.

        Raises:
            DataError: there are none.
        """
        if not len(self.row["frames"]):
            raise DataError(
                f"{self.source.directory}: row {self.row['index']} ({self._ids()}) has no frames. "
                f"The builder leaves such clips out; build the data set again: {build_command(self.source.name)}"
            )
        return len(self.row["frames"])

    def undecodable(self, picture: str, error: OSError) -> DataError:
        """The error of a picture, e.g. "frame 3", that cannot be decoded."""
        row = f"row {self.row['index']} ({self._ids()})"
        return DataError(
            f"{self.source.directory}: {picture} of {row} cannot be decoded: {error}. "
            f"The builder leaves such pictures out; build the data set again: {build_command(self.source.name)}"
        )

    def _ids(self) -> str:
        names = [name for name in ("clip_id", "image_id", "item_id") if name in self.row]
        return ", ".join(f"{name} {self.row[name].decode()}" for name in names)


@dataclasses.dataclass(kw_only=True)
class TrainExample(Example):
    """An example with random draws.

    Attributes:
        rng: generator of all draws.
        max_hue: largest turn of the hues, as a share of half a circle.
    """

    rng: np.random.Generator
    max_hue: float

    @functools.cached_property
    def hue(self) -> Float[np.ndarray, "3 3"]:
        """The turn of the hues that all pictures share, drawn when the first view asks for it."""
        return transforms.random_hue(self.rng, self.max_hue)


class View:
    """Base class of views: a part of the examples for training, for evaluation, or for both.

    Attributes:
        columns: features of the data set that it reads.
        optional: further features, which it reads if the data set has them.
    """

    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def train(self, example: TrainExample) -> Part:
        """The part of a training example."""
        raise NotImplementedError(f"{type(self).__name__} makes no training examples")

    def evaluate(self, example: Example) -> Part:
        """The part of an evaluation example, without random draws; of the same shapes for filling."""
        raise NotImplementedError(f"{type(self).__name__} makes no evaluation examples")


def required_columns(views: Iterable[View]) -> list[str]:
    """The union of the views' columns, sorted."""
    return sorted({column for view in views for column in view.columns})


def open_source(config: InputConfig, name: str, views: Sequence[View], split: str | None = None) -> Source:
    """Opens a data set to read the columns that the views name.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: it lacks the split or a column.
    """
    optional = sorted({column for view in views for column in view.optional})
    return Source(config.data_dir, name, required_columns(views), optional, split)


class ImageView(View):
    """The picture of a product: `image`. In training, any of its photos, if the data set has several."""

    columns = ("image_id", "image")
    optional = ("photos",)

    def __init__(self, config: InputConfig):
        self._config = config

    def train(self, example: TrainExample) -> Part:
        config, rng, hue = self._config, example.rng, example.hue
        photos = [example.row["image"], *example.row.get("photos", ())]
        photo = photos[rng.integers(len(photos))] if len(photos) > 1 else photos[0]  # one draws nothing
        crop = transforms.random_crop(rng, config.resize, config.image_size, (config.image_crop_min_area, 1.0))
        return self._encode(example, photo, crop, draw_color(config, rng, hue))

    def evaluate(self, example: Example) -> Part:
        if not example.row:
            return {"image": NO_PICTURE}
        crop = transforms.center_crop(self._config.resize, self._config.image_size)
        return self._encode(example, example.row["image"], crop)

    def _encode(
        self, example: Example, photo: bytes, crop: Crop, color: Float[np.ndarray, "3 4"] | None = None
    ) -> Part:
        return {"image": Encoded((), [photo], ["image"], [crop], color, example.undecodable)}


class ImageKeyView(View):
    """A number that is equal for equal image ids: `image_key`."""

    columns = ("image_id",)

    def train(self, example: TrainExample) -> Part:
        return {"image_key": image_key(example.row["image_id"])}


class FramesView(View):
    """Evenly spaced frames of a video, padded to `num_frames`: `video` and `frame_mask`.

    Decides `example.frames` and `example.crops`.
    """

    def __init__(
        self,
        config: InputConfig,
        product_boxes: ProductBoxes | None = None,
        id_column: str = "clip_id",
        spread: Spread = transforms.sample_frames,
    ):
        """Names the columns.

        Args:
            config: how to choose, crop and color frames.
            product_boxes: boxes to which frames are cropped first, if `config.ipd_use` is "crop".
            id_column: feature with the id of the video.
            spread: chooses frames evenly.
        """
        self._config, self._spread = config, spread
        self._product_boxes = product_boxes if config.ipd_use == "crop" else None
        self.columns = (id_column, "frames", *(self._product_boxes.features if self._product_boxes else ()))

    def evaluate(self, example: Example) -> Part:
        config = self._config
        if example.row:
            example.frames = self._spread(example.count_frames(), config.num_frames)
        center = transforms.center_crop(config.resize, config.image_size)
        example.crops = [transforms.inside(window, center) for window in self._windows(example)]
        return encoded_frames(example, config.num_frames)

    def _windows(self, example: Example) -> list[Crop]:
        """The part of each chosen frame that the model may see."""
        if self._product_boxes is None:
            return [WHOLE] * len(example.frames)
        boxes = self._product_boxes.of(example.row, example.frames)
        return [WHOLE if box is None else transforms.around_box(box, self._config.ipd_margin) for box in boxes]


class RandomFramesView(FramesView):
    """Frames of a video for training, chosen, cropped, mirrored and colored as the settings say."""

    def __init__(
        self,
        config: InputConfig,
        product_boxes: ProductBoxes | None = None,
        id_column: str = "clip_id",
        spread: Spread = transforms.sample_frames,
    ):
        super().__init__(config, product_boxes, id_column, spread)
        if config.crop_around_box or config.boxed_frames:
            self.columns += ("boxes",)

    def train(self, example: TrainExample) -> Part:
        config, rng = self._config, example.rng
        boxes = stored_boxes(example.row)
        example.frames = self._choose(rng, example.count_frames(), boxes)
        # One change of color for all frames: a stream's colors are those of its camera and light.
        color = draw_color(config, rng, example.hue)
        windows = self._windows(example)
        if config.crop == "frame":
            shown = [boxes[frame] for frame in example.frames]
            crops = [
                self._random_crop(rng, box and transforms.box_inside(box, window))
                for box, window in zip(shown, windows, strict=True)
            ]
        else:
            crops = [self._random_crop(rng)] * len(windows)
        example.crops = list(map(transforms.inside, windows, crops))
        return encoded_frames(example, config.num_frames, color)

    def _choose(self, rng: np.random.Generator, count: int, boxes: Sequence[Box | None]) -> Int[np.ndarray, " K"]:
        config, candidates = self._config, np.arange(count)
        if config.boxed_frames and any(boxes):
            candidates = np.flatnonzero([box is not None for box in boxes])
        if config.random_frames:
            frames = candidates[transforms.random_frames(rng, len(candidates), config.num_frames)]
        else:
            frames = candidates[self._spread(len(candidates), config.num_frames)]
        return transforms.cut_tail(rng, frames, config.num_frames) if config.cut_tail else frames

    def _random_crop(self, rng: np.random.Generator, box: Box | None = None) -> Crop:
        config = self._config
        area = (config.frame_crop_min_area, config.frame_crop_max_area)
        held = box if config.crop_around_box else None
        return transforms.random_crop(rng, config.resize, config.image_size, area, held)


class PatchMaskView(View):
    """The patches of the chosen frames that show the product, all for padding: `patch_mask`."""

    def __init__(self, config: InputConfig, product_boxes: ProductBoxes):
        self._config, self._product_boxes = config, product_boxes
        self.columns = product_boxes.features

    def train(self, example: TrainExample) -> Part:
        return self.evaluate(example)

    def evaluate(self, example: Example) -> Part:
        grid = self._config.image_size // self._config.patch_size
        mask = np.ones((self._config.num_frames, grid * grid), bool)
        boxes = self._product_boxes.of(example.row, example.frames)
        for position, (box, crop) in enumerate(zip(boxes, example.crops, strict=True)):
            mask[position] = transforms.patch_mask(box and transforms.box_inside(box, crop), grid)
        return {"patch_mask": mask}


class BoxesView(View):
    """The boxes in the chosen frames after their crops: `boxes` [T, M, 4] and `box_mask` [T, M]."""

    def __init__(self, config: InputConfig, columns: tuple[str, ...], optional: tuple[str, ...]):
        """Takes the columns of `frame_boxes`, of which some data sets may lack some."""
        self._config, self.columns, self.optional = config, columns, optional

    def train(self, example: TrainExample) -> Part:
        return self.evaluate(example)

    def evaluate(self, example: Example) -> Part:
        most = self._config.num_boxes
        cropped = np.zeros((self._config.num_frames, most, 4), np.float32)
        mask = np.zeros(cropped.shape[:2], bool)
        boxes = frame_boxes(example.row) if example.row else []
        for position, (frame, crop) in enumerate(zip(example.frames, example.crops, strict=True)):
            for place, box in enumerate(boxes[frame][:most]):
                rest = transforms.box_inside(box, crop)
                if rest is not None and _share_left(box, rest, crop) >= MIN_BOX_SHARE:
                    cropped[position, place], mask[position, place] = rest, True
        return {"boxes": cropped, "box_mask": mask}


def encoded_frames(example: Example, num_frames: int, color: Float[np.ndarray, "3 4"] | None = None) -> Part:
    """The chosen frames, for the batch to decode into a padded `video`, and their `frame_mask`."""
    files = [example.row["frames"][frame] for frame in example.frames]
    names = [f"frame {frame}" for frame in example.frames]
    video = Encoded((num_frames,), files, names, example.crops, color, example.undecodable)
    return {"video": video, "frame_mask": np.arange(num_frames) < len(files)}


def image_key(image_id: bytes) -> np.int32:
    """A number that is equal for equal image ids; two different ids share one with a probability of 1 in 4 billion."""
    return np.frombuffer(hashlib.blake2b(image_id, digest_size=4).digest(), "<i4")[0]


def draw_color(
    config: InputConfig, rng: np.random.Generator, hue: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "3 4"] | None:
    """Draws a change of color, after a turn of the hues; None if the settings ask for neither."""
    if not config.changes_color:
        return None
    color = transforms.random_color(rng, config.color_jitter)
    return np.hstack([color[:, :3] @ hue, color[:, 3:]])


def _share_left(box: Box, rest: Box, crop: Crop) -> float:
    """The share of a box's area that a crop leaves; `rest` is in shares of the crop."""
    window = (crop.right - crop.left) * (crop.bottom - crop.top)
    area = (rest.right - rest.left) * (rest.bottom - rest.top) * window
    return area / ((box.right - box.left) * (box.bottom - box.top))
