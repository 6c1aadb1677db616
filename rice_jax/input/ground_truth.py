"""The ground truth of a retrieval data set: its queries, its gallery, and its metadata, without pictures."""

import json
from typing import Any, NamedTuple

from rice_jax.config import InputConfig
from rice_jax.input.source import Source, version_directory


class Query(NamedTuple):
    """A clip to search with; unknown texts are ""."""

    clip_id: str
    gallery_id: str
    image_ids: tuple[str, ...]  # the true product's images: any of them is a hit
    title: str
    category: str
    scale: str
    duration: str
    number: str
    source: str = ""  # MovingFashion's regular or hard


def read_query_index(config: InputConfig) -> list[Query]:
    """Reads the queries, in the order of `index` in `eval_batches`.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: it lacks a feature.
    """
    defaults = Query._field_defaults
    required = [name for name in Query._fields if name not in defaults]
    rows = Source(config.data_dir, config.query, required, optional=defaults)
    return [Query(**{name: _text(row[name]) for name in Query._fields if name in row}) for row in rows]


def read_gallery_index(config: InputConfig) -> tuple[list[str], list[str]]:
    """Reads the gallery images, in the order of `index` in `eval_batches`.

    Returns:
        The gallery that each image belongs to, and the image's id.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: it lacks a feature.
    """
    rows = list(Source(config.data_dir, config.gallery, ("gallery_id", "image_id")))
    return [_text(row["gallery_id"]) for row in rows], [_text(row["image_id"]) for row in rows]


def read_metadata(config: InputConfig, role: str) -> dict:
    """Reads what the builder noted about a data set, e.g. which queries it left out.

    Args:
        config: data sets.
        role: "train", "query" or "gallery".

    Returns:
        The content of `metadata.json`.

    Raises:
        FileNotFoundError: the data set or its file is missing.
    """
    names = {"train": config.train, "query": config.query, "gallery": config.gallery}
    return json.loads((version_directory(config.data_dir, names[role]) / "metadata.json").read_text())


def _text(value: Any) -> Any:
    """Decodes bytes, and sequences of bytes to tuples."""
    return value.decode() if isinstance(value, bytes) else tuple(map(_text, value))
