"""A small shop in the stored format; all pictures differ, except for the frames of the last training clip."""

import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def picture(number: int, size: tuple[int, int] = (54, 96)) -> bytes:
    """A JPEG of smooth noise, different for each number."""
    coarse = Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 4, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


BOX, NO_BOX = tfds.features.BBox(0.1, 0.6, 0.3, 0.9), tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
FRAME_COUNTS = [1, 3, 10, 10, 2, 10, 10, 4, 10, 10, 10]
SAME_FRAMES = 10  # the clip with identical frames
TRAIN = [
    {
        "clip_id": f"clip-{row}",
        "image_id": f"image-{row // 2}",  # neighbors share an image
        "frames": [picture(1000 * row + (frame if row != SAME_FRAMES else 0)) for frame in range(count)],
        # Every second frame of a clip has a box; a third of the clips has none.
        "boxes": [BOX if frame % 2 and row % 3 else NO_BOX for frame in range(count)],
        "image": picture(1000 * (row // 2) + 500, size=(80, 80)),
    }
    for row, count in enumerate(FRAME_COUNTS)
]
QUERIES = [
    {
        "clip_id": f"query-{row}",
        "gallery_id": f"live-{row % 2}",
        "image_ids": [f"shop-{row}", "shop-5"],
        "frames": [picture(100_000 + 1000 * row + frame) for frame in range(3 * row + 1)],
        "title": "简约西装外套",
        "category": "女装",
        "scale": "small",
        "duration": "",
        "number": "few",
    }
    for row in range(5)
]
GALLERY = [
    {"gallery_id": f"live-{row % 2}", "image_id": f"shop-{row}", "image": picture(200_000 + row, size=(80, 80))}
    for row in range(6)
]


def build(directory: pathlib.Path, split: str, rows: list[dict], metadata: dict, version: str = "1.0.0") -> None:
    """Writes rows as the real builders do: as ArrayRecord, in order, with pictures unchanged."""
    features = tfds.features

    def feature(value):
        if isinstance(value, list):
            return features.Sequence(feature(value[0]))
        if isinstance(value, tfds.features.BBox):
            return features.BBoxFeature()
        if isinstance(value, int):
            return features.Scalar(np.int32)
        return features.Image(encoding_format="jpeg") if isinstance(value, bytes) else features.Text()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        name = directory.name
        url_infos = None  # nothing is downloaded; looking for a list of URLs would need importlib_resources

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict({name: feature(value) for name, value in rows[0].items()}),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(metadata),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(rows)

    Builder(data_dir=str(directory.parent), file_format="array_record").download_and_prepare()
