"""What the queries and the gallery are, without their pictures."""

import json
from typing import NamedTuple

from rice_jax.config import InputConfig
from rice_jax.input.source import Source, version_directory


class Query(NamedTuple):
    """A clip to search with; a text is "" when it is unknown."""

    clip_id: str
    gallery_id: str
    image_ids: tuple[str, ...]  # ground truth: any of them is a hit
    title: str
    category: str
    scale: str
    duration: str
    number: str
    source: str = ""  # MovingFashion's regular or hard


def read_query_index(config: InputConfig) -> list[Query]:
    """Reads the queries, in the order of the rows that `eval_batches` numbers.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: it lacks a feature.
    """
    defaults = Query._field_defaults
    required = [name for name in Query._fields if name not in defaults]
    rows = Source(config.data_dir, config.query, required, optional=defaults)
    return [Query(**{name: _text(row[name]) for name in Query._fields if name in row}) for row in rows]


def read_gallery_index(config: InputConfig) -> tuple[list[str], list[str]]:
    """Reads the gallery images, in the order of the rows that `eval_batches` numbers.

    Returns:
        The gallery that each image belongs to, and the image's id.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: it lacks a feature.
    """
    rows = list(Source(config.data_dir, config.gallery, ("gallery_id", "image_id")))
    return [_text(row["gallery_id"]) for row in rows], [_text(row["image_id"]) for row in rows]


def read_metadata(config: InputConfig, role: str) -> dict:
    """What the builder noted beside a data set, e.g. how many queries there should be and which it left out.

    Args:
        config: what to read.
        role: "train", "query" or "gallery".

    Returns:
        The content of `metadata.json`.

    Raises:
        FileNotFoundError: the data set is not there, or has no such file.
    """
    return json.loads((version_directory(config.data_dir, getattr(config, role)) / "metadata.json").read_text())


def _text(value):
    return value.decode() if isinstance(value, bytes) else tuple(map(_text, value))
