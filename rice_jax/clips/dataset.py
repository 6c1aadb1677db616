"""Makes data sets, as training reads them, out of labeled clips and the pictures of an index."""

import dataclasses
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image

from rice_jax.clips.frames import Unusable, by_video, read_parts
from rice_jax.clips.labels import Clip, refuse
from rice_jax.files import replacing
from rice_jax.index.store import Index
from rice_jax.input.pictures import as_shown, open_picture, read_file
from rice_jax.input.transforms import sample_frames
from rice_jax.recognition.video import Frame
from rice_jax.types import DataError

NAME, VERSION = "clips", "1.0.0"
TRAIN, QUERY, GALLERY = f"{NAME}/train", f"{NAME}/query", f"{NAME}/gallery"
MAX_FRAMES = 16  # of a clip that are kept, spread evenly
QUALITY = 95  # of their JPEGs
EXAMPLES_PER_SHARD = 1024

TEXT = tfds.features.Text
PICTURE = tfds.features.Image(encoding_format="jpeg")  # encoded bytes are stored unchanged
FEATURES: dict[str, dict[str, Any]] = {
    TRAIN: {
        "clip_id": TEXT(),
        "image_id": TEXT(),
        "frames": tfds.features.Sequence(PICTURE),
        "image": PICTURE,
    },
    QUERY: {
        **dict.fromkeys(("clip_id", "gallery_id", "title", "category", "scale", "duration", "number"), TEXT()),
        "image_ids": tfds.features.Sequence(TEXT()),
        "frames": tfds.features.Sequence(PICTURE),
    },
    GALLERY: {"gallery_id": TEXT(), "image_id": TEXT(), "product_id": TEXT(), "title": TEXT(), "image": PICTURE},
}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Making:
    """How clips become examples.

    Attributes:
        interval_seconds: one frame of each such interval of a video is read.
        short_side: frames with a longer short side are shrunk to it, pixels.
    """

    interval_seconds: float
    short_side: int


def write_data_sets(
    data_dir: Path, index: Index, train: Sequence[Clip], held: Sequence[Clip], making: Making, *, replace: bool = True
) -> dict[str, int]:
    """Writes data sets of pairs to train on, of clips to evaluate on, and of the pictures of the shop.

    A set is written whole or not at all, and one that is there already is kept if its labels are the same. The frames
    of each video are kept until all sets are written, so a program that was stopped continues with the next video.

    Args:
        data_dir: directory of the sets.
        index: of the shop; its pictures are read from their files.
        train: clips with products, each of which is paired with all pictures of its product.
        held: clips with products, to evaluate on.
        making: how.
        replace: whether sets of other labels are replaced.

    Returns:
        The number of examples of each set.

    Raises:
        DataError: some clips or pictures cannot be used; they are listed. Or there are sets of other labels, and
            `replace` is False.
    """
    labels = _digest(index, train, held, making)
    directories = {name: data_dir / name / VERSION for name in FEATURES}
    if any(_labels(directory) != labels for directory in directories.values()):
        if not replace:
            raise DataError(
                f"{data_dir}: was made of other labels, pictures, or settings, and a run has been trained on it; "
                "choose another --out, or use the labels of before"
            )
        pictures = _read_pictures(index)
        frames = _read_frames(data_dir / "frames", [*train, *held], making)
        rows = {clip: _rows_of(index, clip.product) for clip in [*train, *held]}
        names = _names(index.gallery_ids, index.image_ids)
        shop = zip(names, _names(index.gallery_ids, index.product_ids), index.titles, pictures, strict=True)
        examples: dict[str, Iterable[dict[str, Any]]] = {
            TRAIN: _pairs(train, frames, rows, pictures),
            QUERY: (_query(clip, frames[clip], [names[row] for row in rows[clip]]) for clip in held),
            GALLERY: (
                {"gallery_id": "shop", "image_id": name, "product_id": product, "title": title, "image": picture}
                for name, product, title, picture in shop
            ),
        }
        counts = {TRAIN: {}, QUERY: {"num_queries": len(held)}, GALLERY: {"num_images": len(names)}}
        for name, directory in directories.items():
            _write(directory, name, examples[name], {"labels": labels, "skipped": {}} | counts[name])
        shutil.rmtree(data_dir / "frames")
    return {name: _length(directory) for name, directory in directories.items()}


def count_pairs(index: Index, clips: Sequence[Clip]) -> int:
    """The number of examples that `write_data_sets` makes of clips to train on."""
    return sum(len(_rows_of(index, clip.product)) for clip in clips)


def _pairs(
    clips: Sequence[Clip], frames: dict[Clip, list[bytes]], rows: dict[Clip, list[int]], pictures: Sequence[bytes]
) -> Iterator[dict[str, Any]]:
    """Each clip with each picture of its product. The product stands for the image, since both are no negatives."""
    for clip in clips:
        for row in rows[clip]:
            yield {
                "clip_id": clip_id(clip),
                "image_id": clip.product,
                "frames": frames[clip],
                "image": pictures[row],
            }


def _query(clip: Clip, frames: list[bytes], image_ids: list[str]) -> dict[str, Any]:
    unknown = dict.fromkeys(("title", "category", "scale", "duration", "number"), "")
    return {"clip_id": clip_id(clip), "gallery_id": "shop", "image_ids": image_ids, "frames": frames} | unknown


def clip_id(clip: Clip) -> str:
    """The name of a clip in a data set: the line of its label."""
    return Path(clip.place).name


def _read_pictures(index: Index) -> list[bytes]:
    """The files of all pictures of an index.

    Raises:
        DataError: naming those that cannot be read or have changed.
    """
    pictures, wrong = [], []
    for path, digest in zip(index.paths, index.digests, strict=True):
        try:
            encoded = read_file(path)
            if digest and hashlib.sha256(encoded).hexdigest() != digest:
                raise OSError("it has changed since it was indexed")
            open_picture(encoded)
            pictures.append(encoded)
        except OSError as error:
            wrong.append(f"{path}: {error.strerror or error}")
    refuse(wrong, f"{len(wrong)} of {len(index.paths)} pictures of the index cannot be used; index the shop again:")
    return pictures


def _read_frames(directory: Path, clips: Sequence[Clip], making: Making) -> dict[Clip, list[bytes]]:
    """Some frames of each clip, as JPEGs; those of each video are kept in a file.

    Raises:
        DataError: naming the clips that cannot be used.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found: dict[Clip, list[bytes]] = {}
    unusable: list[Unusable] = []
    videos = by_video(clips)
    for number, (path, own) in enumerate(videos.items(), start=1):
        key = json.dumps([str(path.absolute()), [clip[2:4] for clip in own], dataclasses.astuple(making)])
        kept = directory / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
        if kept.exists():
            found |= dict(zip(own, pq.read_table(kept)["frames"].to_pylist(), strict=True))
            continue
        unit = "clip" if len(own) == 1 else "clips"
        logger.info("reading video %d of %d: %s, %d %s", number, len(videos), path, len(own), unit)
        read, broken = read_parts(
            own, lambda frames: [(f.time, _jpeg(f, making)) for f in frames], making.interval_seconds
        )
        unusable += broken
        if read and not broken:
            frames = [[jpeg for time, jpeg in read if clip.holds(time)] for clip in own]
            few = [[all_of[place] for place in sample_frames(len(all_of), MAX_FRAMES)] for all_of in frames]
            with replacing(kept) as partial:
                pq.write_table(pa.table({"frames": pa.array(few, pa.list_(pa.binary()))}), partial)
            found |= dict(zip(own, few, strict=True))
    refuse(
        [str(entry) for entry in unusable],
        f"{len(unusable)} of {len(clips)} clips cannot be used; repair their files or leave out their lines, and run "
        "the same command again, which reads only the videos that are missing:",
    )
    return found


def _jpeg(frame: Frame, making: Making) -> bytes:
    """A frame as a viewer shows it, shrunk."""
    if isinstance(frame.picture, np.ndarray):
        picture = Image.fromarray(frame.picture)
    else:
        encoded = read_file(frame.picture) if isinstance(frame.picture, Path) else frame.picture
        picture = as_shown(open_picture(encoded))
    scale = making.short_side / min(picture.size)
    if scale < 1:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _write(directory: Path, name: str, examples: Iterable[dict[str, Any]], metadata: dict[str, Any]) -> None:
    """Writes a data set, whole or not at all; one that exists is replaced."""
    partial = directory.with_name(f"incomplete.{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME,
        version=VERSION,
        data_dir=str(partial),
        module_name=__name__,
        config_name=name.removeprefix(f"{NAME}/"),
    )
    split = "train" if name == TRAIN else "test"
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(FEATURES[name]),
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, EXAMPLES_PER_SHARD, file_format="array_record")
    writer.initialize_splits([split])
    for example in examples:
        writer.add_examples({split: [example]})
    writer.close_all()
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _digest(index: Index, train: Sequence[Clip], held: Sequence[Clip], making: Making) -> str:
    """Of all that the examples are made of."""
    clips = [[(str(clip.path.absolute()), *clip[1:4], clip_id(clip)) for clip in own] for own in (train, held)]
    shop = list(zip(*_ids_and_products(index), index.titles, index.digests, index.paths, strict=True))
    return hashlib.sha256(json.dumps([clips, shop, dataclasses.astuple(making)]).encode()).hexdigest()


def _labels(directory: Path) -> str:
    try:
        return json.loads((directory / "metadata.json").read_text(encoding="utf-8"))["labels"]
    except FileNotFoundError:
        return ""


def _length(directory: Path) -> int:
    return tfds.builder_from_directory(directory).info.splits.total_num_examples


def _rows_of(index: Index, product: str) -> list[int]:
    return [row for row, own in enumerate(index.product_ids) if own == product]


def _names(gallery_ids: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names of images or products that tell apart those of several galleries."""
    return [f"{gallery}/{name}" if gallery else name for gallery, name in zip(gallery_ids, names, strict=True)]


def _ids_and_products(index: Index) -> tuple[list[str], list[str], list[str]]:
    return index.gallery_ids, index.image_ids, index.product_ids
