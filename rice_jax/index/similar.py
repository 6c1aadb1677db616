"""What the vectors of an index tell: products that look alike, and pictures that are near to everything."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from rice_jax.index.catalog import of_gallery
from rice_jax.index.store import Index

ALIKE = 0.98  # cosine of two products' pictures, from which on a clip hardly tells the products apart
HUB = 3.0  # robust standard deviations by which a picture's mean cosine exceeds its gallery's median
LEAST_PICTURES = 20  # of a gallery in which a picture can be said to be unusual
MOST_PICTURES = 30_000  # of a gallery whose pictures are compared with each other, which takes time
BLOCK = 1024  # pictures compared with all others at a time
NUM_NAMED = 5

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A product of a gallery and the other one that is most like it, by their most similar pictures."""

    cosine: float
    gallery: str
    product: str
    other: str


class Hub(NamedTuple):
    """A picture that is near to everything, by its mean cosine with the pictures of its gallery's other products."""

    mean_cosine: float
    gallery: str
    image: str


def report_similar(directory: Path, index: Index) -> None:
    """Names products that look alike, and pictures that are near to everything, in the log."""
    pairs, hubs = alike(index), near_to_everything(index)
    if pairs:
        products = {(pair.gallery, name) for pair in pairs for name in (pair.product, pair.other)}
        named = [f"{of_gallery(pair.gallery, pair.product)} and {pair.other!r} to {pair.cosine:.2f}" for pair in pairs]
        logger.warning(
            "%s: %d products look like another one, and may be taken for it: %s. If they are one product, give their "
            "pictures the same `product`",
            directory,
            len(products),
            _some(named),
        )
    if hubs:
        named = [f"{of_gallery(hub.gallery, hub.image)} (mean cosine {hub.mean_cosine:.2f})" for hub in hubs]
        logger.warning(
            "%s: %s near to all others, and their products may be named too often: %s. Pictures that show "
            "the product larger, and less around it, help",
            directory,
            "1 picture is" if len(hubs) == 1 else f"{len(hubs)} pictures are",
            _some(named),
        )


def alike(index: Index, least: float = ALIKE) -> list[Pair]:
    """The pairs of different products of a gallery that look alike, most similar first.

    Args:
        index: galleries of more than `MOST_PICTURES` are left out.
        least: cosine from which on two pictures look alike.

    Returns:
        Each product with the one that is most like it; two that are so of each other are one pair.
    """
    pairs: dict[tuple[str, frozenset[str]], Pair] = {}
    for gallery, rows in _galleries(index).items():
        if len(rows) > MOST_PICTURES:
            logger.info("gallery %r has %d pictures, too many to look for products that are alike", gallery, len(rows))
            continue
        names = np.array([index.product_ids[row] for row in rows], object)
        vectors, number = index.vectors[rows], np.unique(names, return_inverse=True)[1]
        best: dict[str, Pair] = {}
        for start in range(0, len(rows), BLOCK):
            cosines = vectors[start : start + BLOCK] @ vectors.T
            cosines[number[start : start + BLOCK, None] == number] = -1
            nearest = cosines.argmax(axis=1)
            for place in np.flatnonzero(cosines.max(axis=1) >= least).tolist():
                other = int(nearest[place])
                pair = Pair(float(cosines[place, other]), gallery, names[start + place], names[other])
                best[pair.product] = max(pair, best.get(pair.product, pair), key=lambda pair: pair.cosine)
        for pair in best.values():
            pairs.setdefault((gallery, frozenset((pair.product, pair.other))), pair)
    return sorted(pairs.values(), key=lambda pair: (-pair.cosine, *pair[1:]))


def near_to_everything(index: Index) -> list[Hub]:
    """The pictures whose mean cosine with other products' is unusually large for their gallery, largest first.

    Many clips are near to such a picture too. The mean cosine tells how many are wrongly taken for it better than the
    number of pictures that have it among their ten nearest (docs/results.md), and needs no comparison of all pairs.
    """
    hubs = []
    for gallery, rows in _galleries(index).items():
        means = _mean_cosines(index, rows)
        if len(rows) < LEAST_PICTURES:
            continue
        median = np.median(means)
        deviation = 1.4826 * np.median(np.abs(means - median))  # that of a normal distribution
        for place in np.flatnonzero(means > median + HUB * max(deviation, 1e-3)).tolist():
            hubs.append(Hub(float(means[place]), gallery, index.image_ids[rows[place]]))
    return sorted(hubs, key=lambda hub: (-hub.mean_cosine, *hub[1:]))


def _mean_cosines(index: Index, rows: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The mean cosine of each picture and those of other products of its gallery; 0 if there are none."""
    number = np.unique([index.product_ids[row] for row in rows], return_inverse=True)[1]
    vectors = index.vectors[rows].astype(np.float64)
    own = np.zeros((number.max() + 1, vectors.shape[1]))
    np.add.at(own, number, vectors)
    others = len(rows) - np.bincount(number)[number]
    sums = vectors @ vectors.sum(axis=0) - np.einsum("ne,ne->n", vectors, own[number])
    return np.where(others > 0, sums / np.maximum(others, 1), 0.0)


def _galleries(index: Index) -> dict[str, Int64[np.ndarray, " n"]]:
    names, number = np.unique(np.array(index.gallery_ids, object), return_inverse=True)
    return {name: np.flatnonzero(number == place) for place, name in enumerate(names.tolist())}


def _some(named: list[str]) -> str:
    more = [f"and {len(named) - NUM_NAMED} more"] if len(named) > NUM_NAMED else []
    return ", ".join([*named[:NUM_NAMED], *more])
