"""The pictures of a page: thumbnails of frames and images, each stored once."""

import base64
import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rice_jax.input.pictures import as_shown, open_picture, read_file
from rice_jax.input.product_boxes import ProductBoxes, frame_boxes
from rice_jax.input.source import Source
from rice_jax.input.transforms import sample_frames
from rice_jax.types import DataError

HEIGHT, WIDTH = 144, 192  # of a thumbnail at most, pixels
QUALITY = 70  # of a thumbnail's JPEG


class Thumbnail(NamedTuple):
    """A small picture: its place in `Album.pictures`, and its size in pixels."""

    place: int
    width: int
    height: int


class Pictures:
    """Thumbnails of a page, each stored once.

    Attributes:
        pictures: base64 of the thumbnails' JPEG files.
        num_characters: total length of `pictures`.
    """

    def __init__(self) -> None:
        """Starts without pictures."""
        self._thumbnails: dict[Hashable, Thumbnail] = {}
        self.pictures: list[str] = []
        self.num_characters = 0

    def add(self, name: Hashable, make: Callable[[], tuple[bytes, Sequence[int]]]) -> Thumbnail:
        """The thumbnail with that name; at the first call with a name, `make` (e.g. `thumbnail`) provides it."""
        if name not in self._thumbnails:
            encoded, size = make()
            self._thumbnails[name] = Thumbnail(len(self.pictures), *size)
            self.pictures.append(base64.b64encode(encoded).decode())
            self.num_characters += len(self.pictures[-1])
        return self._thumbnails[name]


class Album(Pictures):
    """Reads pictures of queries and galleries from the data sets when a page needs them."""

    def __init__(
        self,
        data_dir: str,
        query: str,
        gallery: str,
        image_rows: Mapping[tuple[str, str], int],
        num_frames: int,
        boxes: ProductBoxes | None = None,
    ):
        """Opens the data sets.

        Args:
            data_dir, query, gallery: as in `DataConfig`.
            image_rows: {(gallery id, image id): row of the gallery's data set}.
            num_frames: of a query that are shown at most, chosen as for its embedding.
            boxes: detected boxes; None = there are none.

        Raises:
            FileNotFoundError: a data set is missing.
        """
        super().__init__()
        found = boxes.features if boxes else ()
        self._queries = Source(data_dir, query, ("clip_id", "frames", *found), optional=("boxes", "box_frame"))
        self._gallery = Source(data_dir, gallery, ("image",), optional=("title",))
        self._rows, self._num_frames, self._boxes = image_rows, num_frames, boxes
        self._titles: dict[int, str] = {}

    def query(self, row: int, clip_id: str) -> list[dict[str, Any]]:
        """Reads the frames of a query that its embedding is made of.

        Args:
            row: of the data set.
            clip_id: the clip that is expected in this row.

        Returns:
            A dict for each frame: `thumbnail`; `truths`, the data set's boxes, the intended product's first; `found`,
            the detected boxes. Boxes are left, top, right, bottom as shares of the frame.

        Raises:
            DataError: the row has another clip.
        """
        stored = self._queries[row]
        if stored["clip_id"].decode() != clip_id:
            raise DataError(
                f"{self._queries.directory}: found clip {stored['clip_id'].decode()} in row {row}, expected {clip_id}: "
                "the data set is not the one that was evaluated; evaluate again (rice eval)"
            )
        chosen = sample_frames(len(stored["frames"]), self._num_frames)
        truths = frame_boxes(stored)
        found = self._boxes.of(stored, chosen) if self._boxes else [None] * len(chosen)
        return [
            {
                "thumbnail": self.add(("frame", row, int(frame)), partial(thumbnail, stored["frames"][frame])),
                "truths": truths[frame],
                "found": [box] if box else [],
            }
            for frame, box in zip(chosen, found, strict=True)
        ]

    def image(self, gallery_id: str, image_id: str) -> dict[str, Any]:
        """Reads an image of a gallery: its `id`, `title` ("" = unknown) and `thumbnail` (None = it does not exist)."""
        row = self._rows.get((gallery_id, image_id))
        if row is None:
            return {"id": image_id, "title": "", "thumbnail": None}
        small = self.add(("image", row), lambda: thumbnail(self._read_image(row)))
        return {"id": image_id, "title": self._titles[row], "thumbnail": small}

    def _read_image(self, row: int) -> bytes:
        stored = self._gallery[row]
        self._titles[row] = stored.get("title", b"").decode()
        return stored["image"]


def thumbnail(picture: bytes | Path | UInt8[np.ndarray, "H W 3"]) -> tuple[bytes, Sequence[int]]:
    """Shrinks a picture.

    Args:
        picture: its file or the content of it, which is shown as a viewer shows it; or RGB, 0 to 255.

    Returns:
        A JPEG of at most `WIDTH` × `HEIGHT` pixels, never larger than the picture, and its width and height.

    Raises:
        OSError: the picture cannot be decoded.
    """
    if isinstance(picture, Path):
        picture = read_file(picture)
    small = open_picture(picture) if isinstance(picture, bytes) else Image.fromarray(picture)
    small.draft("RGB", (2 * WIDTH, 2 * HEIGHT))
    small = as_shown(small)
    small.thumbnail((WIDTH, HEIGHT))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue(), small.size
