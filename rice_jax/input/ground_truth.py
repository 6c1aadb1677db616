"""The ground truth of a retrieval data set: its queries, its gallery, and its metadata, without pictures."""

import json
from typing import Any, NamedTuple

from rice_jax.config import InputConfig
from rice_jax.input.source import Source, version_directory


class Gallery(NamedTuple):
    """The images of all galleries; every field has one entry for each."""

    gallery_ids: list[str]
    image_ids: list[str]
    product_ids: list[str]  # the same for all images of a product in a gallery

    @property
    def rows(self) -> dict[tuple[str, str], int]:
        """{(gallery id, id of an image or product): the image's row}; a product's is that of its first image."""
        rows: dict[tuple[str, str], int] = {}
        for names in (self.image_ids, self.product_ids):  # an image keeps its row if a product has its name
            for row, key in enumerate(zip(self.gallery_ids, names, strict=True)):
                rows.setdefault(key, row)
        return rows


class Query(NamedTuple):
    """A clip to search with; unknown texts are ""."""

    clip_id: str
    gallery_id: str
    image_ids: tuple[str, ...]  # images of the true products: any of these is a hit
    title: str
    category: str
    scale: str
    duration: str
    number: str
    source: str = ""  # MovingFashion's regular or hard
    speech: str = ""  # "with" or "without", where it has a part in the ranking


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


def read_gallery_index(data_dir: str, name: str) -> Gallery:
    """Reads the gallery images, in the order of `index` in `eval_batches`.

    Each image of a data set without products, as earlier versions built them, is a product by itself.

    Args:
        data_dir, name: of the data set, as in `Source`.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: it lacks a feature.
    """
    source = Source(data_dir, name, ("gallery_id", "image_id"), optional=("product_id",))
    names = [(row["gallery_id"], row["image_id"], row.get("product_id", row["image_id"])) for row in source]
    return Gallery(*([_text(own) for own in column] for column in (zip(*names, strict=True) if names else ((),) * 3)))


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
