"""Searches the products of an index with words.

A CLIP's text tower embeds texts among pictures, so a text is compared with the pictures of the products. Any tower that
has embedded the titles of an index (`Index.text`) embeds texts among titles.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

from rice_jax.index.store import Index, fields_of
from rice_jax.index.text import Texts
from rice_jax.recognition.matches import Match
from rice_jax.recognition.products import Products, Where, by_gallery, first_places, freeze, in_gallery, select
from rice_jax.types import DataError

By = Literal["pictures", "titles"]  # what words are compared with
PICTURES: By = "pictures"
TITLES: By = "titles"
BY = PICTURES, TITLES
NUM_TITLES = 24  # of the index, that are embedded to see whether a tower knows its pictures
CHANCE = 0.4  # mean share of pictures before a title's own; it is 0.5 for any other model's tower


def choose_products(index: Index, gallery: str | None = None, where: Where | None = None) -> Products:
    """The products of a gallery, None = of all, that meet the conditions.

    Raises:
        DataError: there is no such gallery, column, or product.
    """
    of_galleries = by_gallery(index)
    products = in_gallery(of_galleries, gallery)
    return select(index, of_galleries, gallery, freeze(where)) if where else products


def choose_space(index: Index, texts: Texts, by: By | None = None) -> By:
    """What words are compared with: one of `BY`.

    Args:
        index: that is searched.
        texts: embeds the words.
        by: as asked for; None = titles, if this tower has embedded them, unless they find their own pictures.

    Raises:
        DataError: the texts cannot be compared with it.
    """
    if not index.image_ids:
        raise DataError("found no images in the index, expected at least one; add some with `rice index`")
    size = len(index.vectors[0] if index.projection is None else index.projection)
    has_titles = index.text is not None and index.text.fingerprint == texts.fingerprint
    if by == TITLES and not has_titles:
        raise DataError(f"{texts.source}: has not embedded the titles of the index; `rice index --text_model` does")
    fits = texts.is_clip and texts.dimensions == size
    if by == TITLES or (by is None and has_titles and not (fits and _titles_find_pictures(index))):
        return TITLES
    if not texts.is_clip:
        raise DataError(
            f"{texts.source}: is a BERT, whose texts have no place among pictures; use the text tower of the CLIP or "
            "Chinese-CLIP whose encoder made the index, or index the titles with this one (rice index --text_model)"
        )
    if texts.dimensions != size:
        raise DataError(
            f"{texts.source}: embeds texts in {texts.dimensions} numbers, and the index has pictures in {size}; use "
            "the text tower of the CLIP whose encoder made the index"
        )
    return PICTURES


def search_words(
    index: Index, vector: Float32[np.ndarray, " D"], by: By, products: Products, top: int
) -> tuple[Match, ...]:
    """The products whose pictures or titles are most similar to a text, best first.

    Args:
        index: that is searched.
        vector: the text's embedding.
        by: of `choose_space`.
        products: of `choose_products`.
        top: number of products.

    Returns:
        Matches, each with the largest cosine of its images and without a confidence. By titles, products without one
        are left out.
    """
    if by == PICTURES:
        scores = index.vectors @ _project(index, vector)
    else:
        assert index.text, "of `choose_space`"
        scores = np.where(index.text.vectors.any(axis=1), index.text.vectors @ vector, -np.inf)
    best = np.maximum.reduceat(scores[products.rows], products.edges[:-1])
    places = [place for place in first_places(best, top).tolist() if np.isfinite(best[place])]
    return tuple(_match(index, products.images(place), scores) for place in places)


def knows_pictures(index: Index, titles: Sequence[int], vectors: Float32[np.ndarray, "n D"]) -> bool:
    """Whether titles are nearer to their own pictures than chance would have it.

    Args:
        index: that is searched.
        titles: rows of the index, with titles.
        vectors: embeddings of these titles.
    """
    cosines = _project(index, vectors) @ index.vectors.T
    own = np.take_along_axis(cosines, np.asarray(titles)[:, None], axis=1)
    return bool((cosines > own).mean() < CHANCE)


def _titles_find_pictures(index: Index) -> bool:
    rows = some_titles(index)
    return bool(rows and index.text and knows_pictures(index, rows, index.text.vectors[rows]))


def some_titles(index: Index) -> list[int]:
    """Rows of the index with titles, evenly spread; [] = too few to tell anything."""
    rows = list({title: row for row, title in enumerate(index.titles) if title}.values())
    return rows[:: len(rows) // NUM_TITLES][:NUM_TITLES] if len(rows) >= NUM_TITLES else []


def _project(index: Index, vectors: Float32[np.ndarray, "*n D"]) -> Float32[np.ndarray, "*n N"]:
    return vectors if index.projection is None else vectors @ index.projection


def _match(index: Index, images: np.ndarray, scores: Float32[np.ndarray, " G"]) -> Match:
    row = int(images[scores[images].argmax()])
    return Match(
        id=index.product_ids[row],
        gallery=index.gallery_ids[row],
        title=next(filter(None, (index.titles[image] for image in images)), ""),
        score=float(scores[row]),
        confidence=None,
        image_id=index.image_ids[row],
        fields=fields_of(index, images.tolist()),
    )
